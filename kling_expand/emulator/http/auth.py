"""Who is calling? A static key, or a JWT signed with the secret key; others are refused."""

import hmac
import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jwt

from .codes import Refusal

# Time is judged here, by a clock that can be given; an `iat` or an audience is nobody's business.
_OPTIONS: Any = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}


def check(authorization: str | None, *, access_key: str, secret_key: str, api_key: str, now: float) -> None:
    """Raise Refusal unless the header's value proves an identity at `now` (Unix seconds)."""
    token = (authorization or "").strip()
    if not token:
        raise Refusal(1001)
    scheme, _, rest = token.partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else token
    if not token:
        raise Refusal(1001)
    if hmac.compare_digest(token.encode(errors="replace"), api_key.encode(errors="replace")):
        return
    if token.startswith("api-key-"):
        raise Refusal(1002, "api key not found")
    _check_claims(_claims(token, secret_key), access_key, now)


@lru_cache(maxsize=64)  # a client shows the same token for half an hour
def _claims(token: str, secret_key: str) -> Mapping[str, Any]:
    dots = token.count(".")
    if dots != 2:
        found = "> 3" if dots > 2 else str(2 * dots)  # the service's library says 0 where there is no dot
        raise Refusal(1002, f"The token was expected to have 3 parts, but got {found}")
    if not token.isascii():
        raise Refusal(1002)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # short secrets exist; their owners cannot lengthen them
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
