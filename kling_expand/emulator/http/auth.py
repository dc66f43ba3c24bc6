"""Authentication of API requests: a static key, or a JWT signed with the secret key."""

import hmac
import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jwt

from .codes import Refusal

# This module checks the times itself, with the clock of the emulator. Other claims are not checked.
_OPTIONS: Any = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}


def authenticate(
    authorization: str | None, *, access_key: str, secret_key: str, api_key: str, now: float
) -> None:
    """Check the value of an `Authorization` header at *now* (Unix seconds).

    Raises:
        Refusal: if the credentials are missing, wrong or not valid at *now* (code 1000 to 1004).
    """
    scheme, _, token = (authorization or "").strip().partition(" ")
    token = token.strip()
    if not token and scheme.lower() in {"", "bearer"}:
        raise Refusal(1001)
    if scheme.lower() != "bearer":  # the response to another scheme is not documented
        raise Refusal(1002)
    if hmac.compare_digest(token.encode(errors="replace"), api_key.encode(errors="replace")):
        return
    if token.startswith("api-key-"):
        raise Refusal(1002, "api key not found")
    _check_claims(_claims(token, secret_key), access_key, now)


@lru_cache(maxsize=64)  # a client uses one token for about 30 minutes
def _claims(token: str, secret_key: str) -> Mapping[str, Any]:
    dots = token.count(".")
    if dots != 2:
        parts = "> 3" if dots > 2 else str(2 * dots)  # the service reports 0 for a token without dots
        raise Refusal(1002, f"The token was expected to have 3 parts, but got {parts}")
    if not token.isascii():
        raise Refusal(1002)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyjwt warns of short secrets, but accounts with them exist
            claims: Mapping[str, Any] = jwt.decode(token, secret_key, algorithms=["HS256"], options=_OPTIONS)
    except jwt.InvalidSignatureError:
        raise Refusal(1000) from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise Refusal(1002) from None
    return claims


def _check_claims(claims: Mapping[str, Any], access_key: str, now: float) -> None:
    if claims.get("iss") != access_key:
        raise Refusal(1002, "access key not found")
    if _seconds(claims, "nbf", default=now) > now:
        raise Refusal(1003)
    if _seconds(claims, "exp", default=None) <= now:
        raise Refusal(1004)


def _seconds(claims: Mapping[str, Any], name: str, *, default: float | None) -> float:
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refusal(1002, f"the token's {name} is invalid")
    return value
