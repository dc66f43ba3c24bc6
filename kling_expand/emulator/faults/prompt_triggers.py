"""What can a prompt make happen? Words that no ordinary prompt contains, so that failures need no other set-
up."""

import re
from collections.abc import Mapping

from kling_expand.emulator.http.codes import Refusal
from kling_expand.emulator.http.uploads import BAD_PIXELS

RISK_CONTROL = "Failure to pass the risk control system"
REFUSED = (1100, 1101, 1102, 1103, 1300, 1301, 1302, 1303, 1304, 5000, 5001, 5002)
FAILURES: Mapping[str, str] = {"risk-control": RISK_CONTROL, "invalid-pixel": BAD_PIXELS}
HELP = (
    "Words in a prompt that make a create fail at once: "
    + ", ".join(f"emulate-{code}" for code in REFUSED)
    + "; and that make its task fail later: "
    + ", ".join(f"emulate-{name}" for name in FAILURES)
    + "."
)
_WORD = re.compile(r"emulate-([a-z0-9-]+)")


def check(prompt: str) -> None:
    """Raise the Refusal that the prompt asks for."""
    for word in _WORD.findall(prompt):
        if word.isdecimal() and int(word) in REFUSED:
            raise Refusal(int(word))


def failure(prompt: str) -> str:
    """Why the task will fail, or nothing."""
    return next((FAILURES[word] for word in _WORD.findall(prompt) if word in FAILURES), "")
