"""Who is let in, and with which words is everybody else kept out?"""

import base64
import json
import warnings
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.raw_client import EDITING, calling

from kling_expand.emulator.http.auth import authenticate
from kling_expand.emulator.http.codes import Refusal

NOW = 1_800_000_000.0
KEYS = {"access_key": "ak", "secret_key": "s" * 32, "api_key": "api-key-kling-here"}


def signed(secret: str = KEYS["secret_key"], algorithm: str = "HS256", **changes: Any) -> str:
    """A header value with a JWT as documented, with changes; None takes a claim out."""
    claims = {"iss": "ak", "exp": NOW + 1800, "nbf": NOW - 5} | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    return "Bearer " + jwt.encode(kept, secret, algorithm=algorithm)


def outcome(header: str | None, **keys: str) -> tuple[int, str]:
    """(code, message), or (0, "") for whoever is let in."""
    try:
        authenticate(header, now=NOW, **(KEYS | keys))
    except Refusal as refusal:
        return refusal.code, refusal.message
    return 0, ""


@pytest.mark.parametrize(
    "header",
    [
        signed(),
        signed(iat=NOW, exp=NOW + 3600),
        signed(iat=NOW + 60),
        signed(nbf=None),
        signed(aud="anybody"),
        signed().replace("Bearer", "bearer"),
        "Bearer api-key-kling-here",
    ],
)
def test_known_callers_are_let_in(header: str) -> None:
    """By the documented token, by those of other clients in use, and by the static key."""
    assert outcome(header) == (0, "")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (1001, "Authorization is empty")),
        ("", (1001, "Authorization is empty")),
        ("Bearer ", (1001, "Authorization is empty")),
        ("Bearer api-key-kling-other", (1002, "api key not found")),
        ("Bearer nonsense", (1002, "The token was expected to have 3 parts, but got 0")),
        ("Basic ab", (1002, "The token was expected to have 3 parts, but got 0")),
        ("Bearer a.b", (1002, "The token was expected to have 3 parts, but got 2")),
        ("Bearer a.b.c.d", (1002, "The token was expected to have 3 parts, but got > 3")),
        ("Bearer a.b.c", (1002, "Authorization is invalid")),
        ("Bearer ä.b.c", (1002, "Authorization is invalid")),
        ("Bearer \udcff.b.c", (1002, "Authorization is invalid")),
        (signed("x" * 32), (1000, "Auth failed")),
        (signed("x" * 64, "HS512"), (1002, "Authorization is invalid")),
        (signed(iss="somebody"), (1002, "access key not found")),
        (signed(iss=None), (1002, "access key not found")),
        (signed(nbf=NOW + 1), (1003, "Authorization is not yet valid")),
        (signed(exp=NOW), (1004, "Authorization has expired")),
        (signed(exp=None), (1002, "the token's exp is invalid")),
        (signed(exp="later"), (1002, "the token's exp is invalid")),
        (signed(exp=float("inf")), (1002, "the token's exp is invalid")),
    ],
)
def test_strangers_are_told_why(header: str | None, expected: tuple[int, str]) -> None:
    """The codes 1000 to 1004, with the texts seen on the real service."""
    assert outcome(header) == expected


def test_a_token_without_signature_opens_nothing() -> None:
    """`alg: none` is the oldest trick."""
    parts = [json.dumps({"alg": "none"}), json.dumps({"iss": "ak", "exp": NOW + 60}), ""]
    token = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)
    assert outcome("Bearer " + token)[0] == 1002


def test_short_secrets_work_without_a_warning() -> None:
    """Some accounts have one; the test's own signing warns, the check does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = signed("short")
    assert outcome(header, secret_key="short") == (0, "")


@given(st.text() | st.text().map(lambda text: f"Bearer {text}"))
def test_any_header_is_refused_in_words(header: str) -> None:
    """No header but the right one, and none escapes as an error of Python's."""
    assert outcome(header)[0] in {1000, 1001, 1002}


async def test_refusals_come_as_401_with_an_envelope() -> None:
    """Over HTTP: status, code, message and a request id, and no task is made."""
    async with calling() as call:
        for header, code in (("", 1001), ("Bearer x", 1002)):
            status, body = await call("POST", EDITING, data=b"{}", headers={"Authorization": header})
            assert (status, body["code"]) == (401, code)
        async with call.session.get(call.emulator.url + EDITING) as answer:
            body = await answer.json()
        assert (answer.status, body["message"]) == (401, "Authorization is empty")
        assert call.emulator.account.refusals == {1001: 2, 1002: 1}


async def test_moving_the_clock_outdates_no_token() -> None:
    """Whoever made it knows nothing of the move."""
    async with calling(clock=lambda: NOW, **KEYS) as call:
        call.emulator.advance(86400)
        status, _ = await call("GET", EDITING, headers={"Authorization": signed()})
        assert status == 200
