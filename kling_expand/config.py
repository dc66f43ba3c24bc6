"""Settings with their defaults, credentials, and the only reader of the environment."""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypedDict, Unpack
from urllib.parse import urlsplit

from attrs import field, frozen

from .errors import ConfigurationError
from .models import Dialect

DEFAULT_BASE_URL = "https://api-singapore.klingai.com"  # outside China (doc)
PARALLEL_TASKS = 9  # slots of an image resource pack (doc)

LIFE = 1800.0  # seconds a token lives (doc)
MARGIN = 300.0  # seconds before the end of a token from which it is not used any more
BACKDATE = 5.0  # seconds `nbf` lies in the past (doc)
SKEW = 5.0  # seconds the service's clock may differ from ours before we follow it


def _positive(_settings: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{attribute.name} must be a number above 0, got {value!r}")


def _url(value: str) -> str:
    url = value.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or set("@?# ") & set(url):
        # The value is not shown: a URL may hold a password, and this message is logged.
        raise ConfigurationError("base_url must be https://host or http://host, without user or query")
    return url


def _dialect(value: str) -> Dialect:
    try:
        return Dialect(value)
    except ValueError:
        words = " or ".join(Dialect)
        raise ConfigurationError(f"dialect must be {words}, got {value!r}") from None


class SettingsFields(TypedDict, total=False):
    """The fields of `Settings`, for editors and type checkers; None means the default."""

    base_url: str | None
    dialect: str | None
    max_in_flight: int | None
    connect_timeout: float | None
    read_timeout: float | None
    create_timeout: float | None
    upload_speed: float | None
    retry_timeout: float | None
    max_retry_after: float | None
    poll_timeout: float | None
    refusal_timeout: float | None
    download_timeout: float | None
    upload_bytes: int | None


@frozen(kw_only=True)
class Settings:
    """The settings of a client. Durations are seconds, sizes bytes.

    - `max_in_flight` counts pictures, not tasks: a task of n pictures holds n slots of the account.
    - `connect_timeout` bounds one connection, and all tries before the service has answered once.
    - `read_timeout` bounds one query. A create may take `create_timeout` plus the time that its body
      needs at `upload_speed` (bytes a second).
    - `retry_timeout` bounds how long one call is retried.
    - `max_retry_after` is the longest `Retry-After` that is obeyed. A call for which the service asks
      for a longer wait raises `RateLimited`.
    - `poll_timeout` bounds how long a task is polled while every read of it fails, and
      `refusal_timeout` how long while every read of it is refused.
    - `download_timeout` bounds the download of one picture with all its retries. `read_timeout` seconds
      without a byte end one try.
    - `upload_bytes` bounds the bodies of all creates in progress.
    """

    base_url: str = field(default=DEFAULT_BASE_URL, converter=_url)
    dialect: Dialect = field(default=Dialect.EDITING, converter=_dialect)
    max_in_flight: int = field(default=PARALLEL_TASKS, validator=_positive)
    connect_timeout: float = field(default=10.0, validator=_positive)
    read_timeout: float = field(default=20.0, validator=_positive)
    create_timeout: float = field(default=30.0, validator=_positive)
    upload_speed: float = field(default=100_000.0, validator=_positive)
    retry_timeout: float = field(default=120.0, validator=_positive)
    max_retry_after: float = field(default=300.0, validator=_positive)
    poll_timeout: float = field(default=900.0, validator=_positive)
    refusal_timeout: float = field(default=60.0, validator=_positive)
    download_timeout: float = field(default=300.0, validator=_positive)
    upload_bytes: int = field(default=64 << 20, validator=_positive)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **given: Unpack[SettingsFields]) -> Self:
        """Return the settings that are *given* and not None, above `KLING_BASE_URL` and the defaults.

        Raises:
            ConfigurationError: a value is not possible.
        """
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        base_url = _environ(environ).get("KLING_BASE_URL", "").strip()
        if base_url:
            chosen.setdefault("base_url", base_url)
        return cls(**chosen)


# ---------------------------------------------------------------------------- credentials


class Auth(Protocol):
    """Credentials that give bearer tokens."""

    def token(self) -> str:
        """Return a token for the next request."""
        ...

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Invalidate the token *refused*, and return whether another token can be tried.

        *server_time* is the clock of the service in Unix seconds, or None if it is unknown.
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

    @property
    def fingerprint(self) -> str:
        """A short digest of the access key, by which a journal recognises its account."""
        return _fingerprint(self._access_key)

    def token(self) -> str:
        """Return the cached token, or a new one."""
        now = self._clock()
        # A clock that was set back would otherwise keep an old token for too long.
        if not self._token or not self._good_until - LIFE <= now < self._good_until:
            self._token = self._sign(now + self._offset)
            self._good_until = now + LIFE - MARGIN
        return self._token

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Drop the token *refused*, and follow the service's clock if ours differs."""
        if refused == self._token:  # else another call has renewed it already
            self._token = ""
        offset = 0.0 if server_time is None else server_time - self._clock()
        self._offset = offset if abs(offset) > SKEW else 0.0
        return True

    def _sign(self, now: float) -> str:
        import jwt  # imported here, as a static key does not need it

        claims = {"iss": self._access_key, "exp": int(now + LIFE), "nbf": int(now - BACKDATE)}
        with warnings.catch_warnings():
            # Secrets shorter than 32 bytes are in use, and their owners cannot choose longer ones.
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

    @property
    def fingerprint(self) -> str:
        """A short digest of the key, by which a journal recognises its account."""
        return _fingerprint(self._api_key)

    def token(self) -> str:
        """Return the key."""
        return self._api_key

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Return False: there is only one key, and it would be refused again."""
        del refused, server_time
        return False


def credentials(
    access_key: str | None = None,
    secret_key: str | None = None,
    api_key: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> Auth:
    """Return the credentials that are given, or else those of the environment.

    A static key beats a pair, and blank means absent. The names are ``KLING_API_KEY`` and
    ``KLING_ACCESS_KEY`` with ``KLING_SECRET_KEY``, or the same beginning with ``KLINGAI_``.

    Raises:
        ConfigurationError: there are none, or only half a pair.
    """
    environ = _environ(environ)
    names = ("ACCESS_KEY", "SECRET_KEY", "API_KEY")
    rows: list[Sequence[str | None]] = [(access_key, secret_key, api_key)]
    rows += [[environ.get(f"{prefix}_{name}") for name in names] for prefix in ("KLING", "KLINGAI")]
    for row in rows:
        access, secret, key = ((value or "").strip() for value in row)
        if key:
            return StaticKey(key)
        if access and secret:
            return KeyPair(access, secret, clock=clock)
        if access or secret:
            missing = "secret key" if access else "access key"
            raise ConfigurationError(f"a key pair must have both halves: the {missing} is missing")
    raise ConfigurationError(
        "no credentials: set KLING_ACCESS_KEY and KLING_SECRET_KEY, or KLING_API_KEY, "
        "or pass them to KlingClient"
    )


def account_name(settings: Settings, auth: Auth) -> str:
    """Return the name of the service and the account, as a journal keeps it. It holds no secret."""
    fingerprint = getattr(auth, "fingerprint", "")
    key = f", key {fingerprint}" if fingerprint else ""
    return f"{settings.base_url} ({settings.dialect}{key})"


def _fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def webhook_secret(given: str | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the console's Webhook Secret (``whsec_…``): *given*, or ``KLING_WEBHOOK_SECRET``."""
    return (given or _environ(environ).get("KLING_WEBHOOK_SECRET", "")).strip() or None


def _environ(given: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if given is None else given
