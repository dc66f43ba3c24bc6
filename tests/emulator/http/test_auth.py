"""Authentication by static key and by JWT, and the documented refusals."""

import base64
import json
import time
import warnings
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.raw_client import EDITING, calling

from kling_expand.emulator import Emulator
from kling_expand.emulator.http.auth import authenticate
from kling_expand.emulator.http.codes import Refusal

NOW = 1_800_000_000.0
KEYS = {"access_key": "ak", "secret_key": "s" * 32, "api_key": "api-key-kling-here"}


def signed(secret: str = KEYS["secret_key"], algorithm: str = "HS256", **changes: Any) -> str:
    """Return the header with a documented JWT and changed claims. None removes a claim."""
    claims = {"iss": "ak", "exp": NOW + 1800, "nbf": NOW - 5} | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    return "Bearer " + jwt.encode(kept, secret, algorithm=algorithm)


def outcome(header: str | None, **keys: str) -> tuple[int, str]:
    """Return (code, message) of a refusal, or (0, "")."""
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
def test_valid_credentials_are_accepted(header: str) -> None:
    """The documented token, the tokens of other clients and the static key are accepted."""
    assert outcome(header) == (0, "")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (1001, "Authorization is empty")),
        ("", (1001, "Authorization is empty")),
        ("Bearer ", (1001, "Authorization is empty")),
        ("Bearer api-key-kling-other", (1002, "api key not found")),
        ("Bearer nonsense", (1002, "The token was expected to have 3 parts, but got 0")),
        ("Basic ab", (1002, "Authorization is invalid")),
        ("Bearer a.b", (1002, "The token was expected to have 3 parts, but got 2")),
        ("Bearer a.b.c.d", (1002, "The token was expected to have 3 parts, but got > 3")),
        ("Bearer a.b.c", (1002, "Authorization is invalid")),
        ("Bearer ä.b.c", (1002, "Authorization is invalid")),
        ("Bearer \udcff.b.c", (1002, "Authorization is invalid")),
        (signed("x" * 32), (1000, "Auth failed")),
        (signed("x" * 64, "HS512"), (1002, "Authorization is invalid")),
        (signed(iss="another-key"), (1002, "access key not found")),
        (signed(iss=None), (1002, "access key not found")),
        (signed(nbf=NOW + 1), (1003, "Authorization is not yet valid")),
        (signed(exp=NOW), (1004, "Authorization has expired")),
        (signed(exp=None), (1002, "the token's exp is invalid")),
        (signed(exp="later"), (1002, "the token's exp is invalid")),
        (signed(exp=float("inf")), (1002, "the token's exp is invalid")),
    ],
)
def test_invalid_credentials_are_refused(header: str | None, expected: tuple[int, str]) -> None:
    """Invalid credentials get codes 1000 to 1004, with the messages of the live service."""
    assert outcome(header) == expected


def test_an_unsigned_token_is_refused() -> None:
    """A token with `alg: none` is refused."""
    parts = [json.dumps({"alg": "none"}), json.dumps({"iss": "ak", "exp": NOW + 60}), ""]
    token = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)
    assert outcome("Bearer " + token)[0] == 1002


def test_short_secrets_work_without_a_warning() -> None:
    """A short secret key is accepted, and the check of its tokens emits no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = signed("short")
    assert outcome(header, secret_key="short") == (0, "")


@given(st.text() | st.text().map(lambda text: f"Bearer {text}"))
def test_any_other_header_is_refused(header: str) -> None:
    """Any other header is refused with a documented code, and raises no other exception."""
    assert outcome(header)[0] in {1000, 1001, 1002}


async def test_refusals_have_status_401_and_an_envelope() -> None:
    """A refused call gets status 401, a code, a message and a request id, and creates no task."""
    async with calling() as call:
        for header, code in (("", 1001), ("Bearer x", 1002)):
            status, body = await call("POST", EDITING, data=b"{}", headers={"Authorization": header})
            assert (status, body["code"]) == (401, code)
        async with call.session.get(call.emulator.url + EDITING) as response:
            body = await response.json()
        assert (response.status, body["message"]) == (401, "Authorization is empty")
        assert call.emulator.account.refusals == {1001: 2, 1002: 1}


async def test_advancing_the_clock_expires_no_token() -> None:
    """Tokens are checked against the real time, because clients do not know the offset."""
    async with calling(clock=lambda: NOW, **KEYS) as call:
        call.emulator.advance(86400)
        status, _ = await call("GET", EDITING, headers={"Authorization": signed()})
        assert status == 200


def token(emulator: Emulator, **claims: Any) -> str:
    """Return the header with a JWT like the documented sample, with changed claims."""
    now = time.time()
    usual = {"iss": emulator.access_key, "exp": now + 1800, "nbf": now - 5}
    return "Bearer " + jwt.encode(usual | claims, emulator.secret_key, algorithm="HS256")


async def test_a_jwt_is_accepted_over_http() -> None:
    """A JWT is accepted over HTTP, even with `iat` and a lifetime of 3600 s."""
    async with calling() as call:
        for claims in ({}, {"iat": time.time(), "exp": time.time() + 3600}):
            headers = {"Authorization": token(call.emulator, **claims)}
            status, _ = await call("GET", EDITING, headers=headers)
            assert status == 200
