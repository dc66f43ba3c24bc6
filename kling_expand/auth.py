"""Bearer tokens from a key pair (JWT) or a static key, without I/O."""

import time
import warnings
from collections.abc import Callable
from typing import Protocol

from .errors import ConfigurationError

LIFE = 1800.0  # seconds a token lives (doc)
MARGIN = 300.0  # seconds before its end at which a token is no longer handed out
BACKDATE = 5.0  # seconds `nbf` lies in the past (doc)
SKEW = 5.0  # seconds the service's clock may differ from ours before we follow it


class Auth(Protocol):
    """Credentials that give bearer tokens."""

    def token(self) -> str:
        """Return a token for the next request."""
        ...

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Note that the token *refused* was not accepted, and return whether another is worth a try.

        *server_time* is the clock of the service in Unix seconds, where it tells.
        """
        ...


class KeyPair:
    """Access key and secret key: JWTs signed with HS256, cached until shortly before they end.

    `clock` gives Unix seconds. Claims are the documented ones: ``iss``, ``exp``, ``nbf``.
    """

    def __init__(self, access_key: str, secret_key: str, *, clock: Callable[[], float] = time.time) -> None:
        if not access_key.strip() or not secret_key.strip():
            raise ConfigurationError("access_key and secret_key must both be given, and not be blank")
        self._access_key = access_key.strip()
        self._secret_key = secret_key.strip()
        self._clock = clock
        self._offset = 0.0  # how far the service's clock is ahead of ours
        self._token = ""
        self._good_until = 0.0

    def __repr__(self) -> str:
        return f"<KeyPair …{self._access_key[-4:]}>" if len(self._access_key) > 12 else "<KeyPair>"

    def token(self) -> str:
        """Return the cached token, or a new one."""
        now = self._clock()
        # A clock that was set back would otherwise keep an old token for too long.
        if not self._token or not self._good_until - LIFE <= now < self._good_until:
            self._token = self._sign(now + self._offset)
            self._good_until = now + LIFE - MARGIN
        return self._token

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Forget *refused*, and follow the clock of the service if ours is off."""
        if refused == self._token:  # otherwise another call has renewed it already
            self._token = ""
        offset = 0.0 if server_time is None else server_time - self._clock()
        self._offset = offset if abs(offset) > SKEW else 0.0
        return True

    def _sign(self, now: float) -> str:
        import jwt  # here, as a static key needs none of it

        claims = {"iss": self._access_key, "exp": int(now + LIFE), "nbf": int(now - BACKDATE)}
        with warnings.catch_warnings():
            # Secrets shorter than 32 bytes are in use, and the account's owner cannot lengthen them.
            warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
            return jwt.encode(claims, self._secret_key, algorithm="HS256")


class StaticKey:
    """A static API key (``api-key-kling-…``), sent as it is."""

    def __init__(self, api_key: str) -> None:
        key = api_key.strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigurationError("api_key must be printable ASCII without blanks")
        self._api_key = key

    def __repr__(self) -> str:
        return "<StaticKey>"

    def token(self) -> str:
        """Return the key."""
        return self._api_key

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Return False: there is only one key, and it would be refused again."""
        del refused, server_time
        return False
