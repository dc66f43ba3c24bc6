"""No secret appears in logs, errors and representations."""

import json
import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from support.log_secrets import SECRETS, SecretScanner

from kling_expand import KlingClient, KlingError, Ratios
from kling_expand.emulator.faults.plan import KINDS, Fault
from kling_expand.errors import WebhookError
from kling_expand.testing import emulated, virtual_time

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)
WHSEC = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
CLIENTS: list[dict[str, Any]] = [
    {},
    {"api_key": None, "access_key": "emulator-access-key", "secret_key": SECRETS[0]},
]


def test_the_scanner_finds_secrets() -> None:
    """The scanner reports only records with a secret in the message, the arguments or the traceback."""
    handler = SecretScanner()
    logger = logging.getLogger("a logger of its own")
    logger.propagate = False  # otherwise the fixture would also find it
    logger.addHandler(handler)
    logger.debug("all is well")
    assert handler.leaks == []
    logger.debug("the key is %s", SECRETS[0])
    logger.info("headers: %r", {"Authorization": "Bearer x"})
    try:
        int(SECRETS[1])
    except ValueError:
        logger.exception("it failed")
    assert (len(handler.leaks), handler.records) == (3, 4)


@virtual_time
async def logged_records() -> int:
    """Return the number of log records of an ordinary job."""
    handler = SecretScanner()
    logging.getLogger().addHandler(handler)
    try:
        async with emulated() as (_, kling):
            await kling.expand(PHOTO, WIDER)
    finally:
        logging.getLogger().removeHandler(handler)
    return handler.records


def test_every_test_is_scanned(secret_scanner: SecretScanner) -> None:
    """The scanner reads the DEBUG records of every library, here those of the event loop."""
    logged_records()
    assert logging.getLogger().level == logging.DEBUG
    assert secret_scanner.records > 0


@pytest.mark.parametrize("client", CLIENTS, ids=["key", "pair"])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"expired", "truncated_picture"}))
@virtual_time
async def test_no_failure_shows_a_secret(kind: str, client: dict[str, Any], tmp_path: Path) -> None:
    """After any fault, no error, cause, pickle, log or journal contains a secret."""
    options: dict[str, Any] = {"retry_timeout": 2.0, "webhook_secret": WHSEC, "journal": tmp_path / "run.db"}
    async with emulated(options | client) as (emulator, kling):
        made = await kling.create(PHOTO, WIDER, prompt="before")
        for route in ("create", "query", "list"):
            emulator.faults.chance(route, Fault(kind, seconds=100), 1)
        errors: list[KlingError] = []
        for call in (
            kling.get(made.task_id),
            kling.list(),
            kling.submit(PHOTO, WIDER, deadline=30).accepted(),
        ):
            try:
                await call
            except KlingError as error:
                errors.append(error)
        with pytest.raises(WebhookError) as caught:
            kling.receive({}, json.dumps({"task_id": made.task_id, "task_status": "failed"}).encode())
        emulator.faults.clear()
        assert errors or kind in {"ok", "odd_types", "slow_body", "slow_headers"}
        for each in (*errors, caught.value):
            shown = "".join(traceback.format_exception(each)) + repr(each) + repr(pickle.dumps(each))
            assert not [secret for secret in SECRETS if secret in shown]
        assert not [secret for secret in SECRETS if secret in repr(kling) + repr(kling.settings)]
    for path in tmp_path.iterdir():  # noqa: ASYNC240 - a test may
        written = path.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in written]


@pytest.mark.parametrize(
    "given",
    [
        {"api_key": "a secret with blanks"},
        {"access_key": "emulator-access-key"},
        {"api_key": "k", "base_url": "https://user:hunter2-secret@example.com"},
        {"api_key": "k", "webhook_secret": "whsec_not base64 secret!"},
    ],
    ids=["key", "half", "url", "webhook"],
)
def test_the_value_of_an_invalid_setting_is_not_shown(given: dict[str, Any]) -> None:
    """The message never shows the value of an invalid setting."""
    with pytest.raises(KlingError) as caught:
        KlingClient(**given)
    assert "secret" not in str(caught.value).replace("secret key", "").replace("webhook secret", "")
