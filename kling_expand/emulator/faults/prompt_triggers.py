"""Words in a prompt that trigger failures without any other setup."""

import re
from collections.abc import Mapping

from kling_expand.emulator.http.codes import Refusal
from kling_expand.emulator.http.validation import INVALID_PIXELS

RISK_CONTROL = "Failure to pass the risk control system"
CODES = (1100, 1101, 1102, 1103, 1300, 1301, 1302, 1303, 1304, 5000, 5001, 5002)
FAILURES: Mapping[str, str] = {"risk-control": RISK_CONTROL, "invalid-pixel": INVALID_PIXELS}
HELP = (
    "Words in a prompt that make a create fail at once: "
    + ", ".join(f"emulate-{code}" for code in CODES)
    + ". Words that make its task fail later: "
    + ", ".join(f"emulate-{name}" for name in FAILURES)
    + "."
)
_TRIGGER = re.compile(r"emulate-([a-z0-9-]+)")


def refuse_if_triggered(prompt: str) -> None:
    """Refuse a create if a word in its prompt triggers an error code.

    Raises:
        Refusal: if the prompt has such a word. The first one determines the code.
    """
    for name in _TRIGGER.findall(prompt):
        if name.isdecimal() and int(name) in CODES:
            raise Refusal(int(name))


def triggered_failure(prompt: str) -> str:
    """Return the message of the failure that a prompt triggers, or an empty string."""
    return next((FAILURES[name] for name in _TRIGGER.findall(prompt) if name in FAILURES), "")
