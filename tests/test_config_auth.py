"""Tokens, verified by an independent implementation, with a clock that the tests set."""

import base64
import hmac
import json
import warnings
from itertools import pairwise
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.config import (
    BACKDATE,
    RENEW_MARGIN,
    TOKEN_LIFETIME,
    KeyPair,
    Settings,
    StaticKey,
    account_name,
)
from kling_expand.errors import ConfigurationError

SECRET = "a-secret-of-more-than-thirty-two-bytes-in-all"
START = 1_750_000_000.0


class Clock:
    """A clock in Unix seconds that tests can move."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def pair(clock: Clock) -> KeyPair:
    """A key pair that uses the test clock."""
    return KeyPair("access-key-0123456789", SECRET, clock=clock)


def claims(token: str, secret: str = SECRET) -> dict[str, Any]:
    """Verify the signature of a token, but not its times, and return its claims."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: Any = {"verify_exp": False, "verify_nbf": False}
        found: dict[str, Any] = jwt.decode(token, secret, algorithms=["HS256"], options=options)
    return found


def test_a_token_has_the_documented_claims(pair: KeyPair) -> None:
    """An independent implementation finds HS256 and exactly the three documented claims."""
    token = pair.token()
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    expected = {
        "iss": "access-key-0123456789",
        "exp": int(START + TOKEN_LIFETIME),
        "nbf": int(START - BACKDATE),
    }
    assert claims(token) == expected


def test_a_token_is_signed_with_hmac_sha256(pair: KeyPair) -> None:
    """The signature is the HMAC-SHA256 of the first two parts, as computed by the standard library alone."""
    head, body, signature = pair.token().split(".")
    digest = hmac.digest(SECRET.encode(), f"{head}.{body}".encode(), "sha256")
    assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == signature
    assert json.loads(base64.urlsafe_b64decode(body + "=="))["iss"] == "access-key-0123456789"


def test_a_wrong_secret_fails_the_verification(pair: KeyPair) -> None:
    """Both ways of reading a token above do verify its signature."""
    with pytest.raises(jwt.InvalidSignatureError):
        claims(pair.token(), "another-secret-of-more-than-thirty-two-bytes")


def test_a_token_is_reused_until_shortly_before_its_expiry(pair: KeyPair, clock: Clock) -> None:
    """A token is used for most of its lifetime, and never close to its expiry."""
    first = pair.token()
    clock.now = START + TOKEN_LIFETIME - RENEW_MARGIN - 1
    assert pair.token() == first
    clock.now = START + TOKEN_LIFETIME - RENEW_MARGIN
    assert pair.token() != first


@given(st.lists(st.floats(-10_000, 10_000), max_size=20))
def test_a_token_is_always_valid_when_returned(steps: list[float]) -> None:
    """However the clock moves, even backwards, a token is valid now and for some time."""
    clock = Clock()
    pair = KeyPair("access", SECRET, clock=clock)
    for step in steps:
        clock.now += step
        found = claims(pair.token())
        assert found["nbf"] <= clock.now + RENEW_MARGIN - BACKDATE
        assert clock.now + RENEW_MARGIN - 1 <= found["exp"] <= clock.now + TOKEN_LIFETIME + RENEW_MARGIN


def test_a_clock_set_back_makes_a_new_token(pair: KeyPair, clock: Clock) -> None:
    """After the clock is set back, a new token is made, because the old one would not be valid yet."""
    first = pair.token()
    clock.now = START - 3600
    assert claims(pair.token())["nbf"] == int(START - 3600 - BACKDATE)
    assert pair.token() != first


def test_only_the_refused_token_is_forgotten(pair: KeyPair, clock: Clock) -> None:
    """If many calls are refused at once, the first renews the token and the others use the new token."""
    first = pair.token()
    clock.now += 10
    assert pair.renew(first) is True
    second = pair.token()
    assert second != first
    clock.now += 10
    assert pair.renew(first) is True
    assert pair.token() == second


@pytest.mark.parametrize("skew", [-7200.0, -60.0, 60.0, 7200.0])
def test_the_services_clock_is_followed(pair: KeyPair, clock: Clock, skew: float) -> None:
    """A renewed token is valid by the service's clock and is kept as long as any other token."""
    pair.renew(pair.token(), server_time=clock.now + skew)
    token = pair.token()
    found = claims(token)
    assert (found["nbf"], found["exp"]) == (int(START + skew - BACKDATE), int(START + skew + TOKEN_LIFETIME))
    clock.now += TOKEN_LIFETIME - RENEW_MARGIN - 1
    assert pair.token() == token
    clock.now += 1
    assert claims(pair.token())["exp"] == int(clock.now + skew + TOKEN_LIFETIME)


@pytest.mark.parametrize("skew", [-5.0, -1.0, 0.0, 5.0])
def test_a_small_clock_difference_is_ignored(pair: KeyPair, clock: Clock, skew: float) -> None:
    """A difference of a few seconds counts as network latency and does not correct the clock."""
    pair.renew(pair.token(), server_time=clock.now + skew)
    assert claims(pair.token())["exp"] == int(START + TOKEN_LIFETIME)


def test_a_clock_offset_is_dropped_once_the_clocks_agree(pair: KeyPair, clock: Clock) -> None:
    """An offset is dropped once the clocks agree."""
    pair.renew(pair.token(), server_time=clock.now + 7200)
    clock.now += 7200
    pair.renew(pair.token(), server_time=clock.now)
    assert claims(pair.token())["exp"] == int(clock.now + TOKEN_LIFETIME)


@pytest.mark.parametrize("length", range(1, 40, 6))
def test_a_short_secret_causes_no_warning(length: int) -> None:
    """A short secret raises no warning. In these tests, a warning is an error."""
    pair = KeyPair("access", "s" * length)
    assert claims(pair.token(), "s" * length)["iss"] == "access"


def test_keys_may_be_in_any_script() -> None:
    """Keys may contain letters of any script, and blanks around them are removed."""
    pair = KeyPair(" Schlüssel\n", "\tgeheimß ")
    assert claims(pair.token(), "geheimß")["iss"] == "Schlüssel"


@pytest.mark.parametrize(("access", "secret"), [("", "s"), ("a", ""), (" ", "s"), ("a", "\n"), ("", "")])
def test_half_a_key_pair_is_refused(access: str, secret: str) -> None:
    """An incomplete key pair raises an error at once, before any request."""
    with pytest.raises(ConfigurationError):
        KeyPair(access, secret)


def test_no_secret_is_shown(pair: KeyPair) -> None:
    """`repr`, `str` and f-strings show at most the last four characters of a long access key."""
    pair.token()
    for shown in (repr(pair), str(pair), f"{pair}", f"{[pair]}"):
        assert SECRET not in shown
        assert "access-key" not in shown
        assert "6789" in shown
    assert repr(KeyPair("short", SECRET)) == "<KeyPair>"
    key = StaticKey("api-key-kling-0123456789")
    assert "kling" not in repr(key) + str(key)


def test_a_static_key_is_sent_unchanged() -> None:
    """A static key is sent unchanged and cannot be renewed."""
    key = StaticKey(" api-key-kling-0123456789\n")
    assert key.token() == "api-key-kling-0123456789"
    assert key.renew(key.token()) is False
    assert key.renew(key.token(), server_time=START) is False


@pytest.mark.parametrize("key", ["", " ", "a b", "a\r\nX-Evil: 1", "schlüssel", "a\x00b", "a\tb"])
def test_a_static_key_must_be_a_valid_header_value(key: str) -> None:
    """A key that is not a valid header value is refused, and the error does not repeat it."""
    with pytest.raises(ConfigurationError) as caught:
        StaticKey(key)
    assert not key.strip() or key not in str(caught.value)


def test_successive_tokens_overlap(pair: KeyPair, clock: Clock) -> None:
    """Over a day each token is used for 25 minutes and overlaps the next."""
    ends = []
    for _ in range(24 * 60):
        ends.append(claims(pair.token())["exp"])
        clock.now += 60
    distinct = sorted(set(ends))
    assert all(later - earlier == TOKEN_LIFETIME - RENEW_MARGIN for earlier, later in pairwise(distinct))


def test_an_account_is_named_by_its_service_and_a_digest_of_its_key() -> None:
    """The name differs by address, dialect and access key, and neither contains nor needs a secret."""
    names = [
        account_name(settings, auth)
        for settings in (Settings(), Settings(base_url="http://127.0.0.1:1"), Settings(dialect="direction"))
        for auth in (KeyPair("access-key", "one"), StaticKey("access-key-2"), KeyPair("access-key-3", "one"))
    ]
    assert len(set(names)) == len(names) == 9
    assert account_name(Settings(), KeyPair("access-key", "two")) == names[0]
    assert names[0].startswith("https://api-singapore.klingai.com (editing, key ")
    assert not any("access-key" in name for name in names)
