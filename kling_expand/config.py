"""What can be set? Settings with their defaults; the only reader of the environment."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from attrs import field, frozen

from .auth import Auth, KeyPair, StaticKey
from .errors import ConfigurationError
from .models import Dialect

DEFAULT_BASE_URL = "https://api-singapore.klingai.com"  # outside China (doc)
PARALLEL_TASKS = 9  # slots of an image resource pack (doc)


def _positive(_settings: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{attribute.name} must be a number above zero, not {value!r}")


def _url(value: str) -> str:
    url = value.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or set("@?# ") & set(url):
        # It is not shown: who puts a password into a URL does not want to read it in a log.
        raise ConfigurationError("base_url must be https://host or http://host, and name no user or query")
    return url


def _dialect(value: str) -> Dialect:
    try:
        return Dialect(value)
    except ValueError:
        words = " or ".join(Dialect)
        raise ConfigurationError(f"dialect must be {words}, not {value!r}") from None


@frozen(kw_only=True)
class Settings:
    """Everything a client can be told. Durations are seconds, sizes bytes.

    `max_in_flight` counts pictures, not tasks: a task of n pictures holds n of the account's
    slots. `read_timeout` bounds one query; a create may take `create_timeout` plus the time its
    body needs at `upload_speed`. `retry_timeout` bounds how long one call is retried, and
    `poll_timeout` how long a task may go without any good news of it before its wait gives up.
    `download_timeout` bounds the download of one picture with all its retries; `read_timeout`
    seconds without a byte end one try of it.
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
    def from_env(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> Self:
        """`KLING_BASE_URL`, beneath whatever is *given* and is not None."""
        chosen = {name: value for name, value in given.items() if value is not None}
        base_url = environ.get("KLING_BASE_URL", "").strip()
        if base_url:
            chosen.setdefault("base_url", base_url)
        return cls(**chosen)


def credentials(
    access_key: str | None = None,
    secret_key: str | None = None,
    api_key: str | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    clock: Callable[[], float] = time.time,
) -> Auth:
    """The credentials given, or else the environment's.

    What is given beats the environment, a static key beats a pair, blank means absent, and half
    a pair is an error. The names are ``KLING_API_KEY`` and ``KLING_ACCESS_KEY`` with
    ``KLING_SECRET_KEY``, or the same beginning with ``KLINGAI_``. Raises `ConfigurationError`.
    """
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
            raise ConfigurationError(f"the {missing} is missing: a key pair needs both halves")
    raise ConfigurationError(
        "no credentials: set KLING_ACCESS_KEY and KLING_SECRET_KEY, or KLING_API_KEY, "
        "or pass them to KlingClient"
    )


def webhook_secret(given: str | None = None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The console's Webhook Secret (``whsec_…``): what is *given*, or ``KLING_WEBHOOK_SECRET``."""
    return (given or environ.get("KLING_WEBHOOK_SECRET", "")).strip() or None
