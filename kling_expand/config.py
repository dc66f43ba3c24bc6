"""Settings, credentials, and all access to environment variables."""

import hashlib
import logging
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypedDict, Unpack
from urllib.parse import urlsplit

from attrs import evolve, field, fields, frozen

from .errors import ConfigurationError, requirement
from .models import ARGUMENTS, FLAG, TEXT, WHOLE, Dialect, Rule, is_number, nearest_name, optional, shown

if TYPE_CHECKING:
    from ssl import SSLContext

DEFAULT_BASE_URL = "https://api-singapore.klingai.com"  # outside China (doc)
PARALLEL_TASKS = 9  # slots of an image resource pack (doc)

LOG_LEVELS = ("debug", "info", "warning", "error")

TOKEN_LIFETIME = 1800.0  # seconds for which a token is valid (doc)
RENEW_MARGIN = 300.0  # a token is replaced this many seconds before it expires
BACKDATE = 5.0  # seconds by which `nbf` lies in the past (doc)
MAX_CLOCK_SKEW = 5.0  # seconds; a smaller difference between the service's clock and ours is ignored


def misconfigured(name: str, value: object, limit: str, advice: str = "") -> ConfigurationError:
    """Return the error for an option that violates a limit."""
    return ConfigurationError(requirement(name, value, limit, advice))


def option(*rules: Rule) -> tuple[Rule, ...]:
    """Return copies of *rules* that raise `ConfigurationError`, for a client option or a setting."""
    return tuple(evolve(rule, error=misconfigured) for rule in rules)


NUMBER = option(
    Rule("must be a number above 0", lambda value: is_number(value) and 0 < value < math.inf),
)
COUNT = (*NUMBER, *option(WHOLE))


def _url(value: str) -> str:
    url = value.strip().rstrip("/") if isinstance(value, str) else ""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or set("@?# ") & set(url):
        # The value is not shown: a URL may hold a password, and this message is logged.
        raise ConfigurationError(
            "base_url must be https://host or http://host, without a user name or a query"
        )
    return url


def _dialect(value: str) -> Dialect:
    try:
        return Dialect(value)
    except ValueError:
        choices = " or ".join(Dialect)
        raise misconfigured("dialect", shown(value), f"must be {choices}") from None


def _proxy(value: str | None, name: str = "proxy") -> str | None:
    if value is None:
        return None
    url = value.strip().rstrip("/") if isinstance(value, str) else ""
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or parts.path or parts.query or " " in url:
        # The value is not shown, as it may hold a password.
        advice = "for any other kind of proxy, such as SOCKS, pass your own aiohttp session as http="
        raise ConfigurationError(
            f"{name} must be http://host:port or http://user:password@host:port; {advice}"
        )
    return url


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESERVED_HEADERS = {
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
}


def _headers(value: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of the headers. No error message shows a value, because it may be a secret."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"headers must be a mapping of names to strings, got {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name) or name.lower() in _RESERVED_HEADERS:
            raise ConfigurationError(
                f"headers must have valid names that the client does not set itself, got {shown(name)}"
            )
        if not isinstance(text, str) or not text.isprintable():
            raise ConfigurationError(f"headers must have printable text as values, but {name} does not")
    return dict(value)


class SettingsOptions(TypedDict, total=False):
    """The fields of `Settings`, for editors and type checkers. None means the default."""

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
    trust_env: bool | None
    proxy: str | None
    headers: Mapping[str, str] | None
    ssl: "SSLContext | bool | None"
    cache_dir: str | os.PathLike[str] | Literal[False] | None


def _folder(value: object) -> Path | None:
    if value is None or value is False:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise misconfigured("cache_dir", shown(value), "must be a directory, or False to write no file")
    try:
        return Path(os.fsdecode(value)).expanduser()
    except RuntimeError:  # the user has no home directory
        return None


def _is_tls(value: object) -> bool:
    ssl = sys.modules.get("ssl")  # before `ssl` is imported, there is no context
    return isinstance(value, bool) or (ssl is not None and isinstance(value, ssl.SSLContext))


TLS = Rule("must be an ssl.SSLContext, or False to trust every certificate", _is_tls)


@frozen(kw_only=True)
class Settings:
    """The settings of a client. Durations are in seconds, sizes in bytes.

    - `base_url` is the address of the service or of a relay, and `dialect` is a `Dialect`.
    - `max_in_flight` counts pictures, not tasks: a task of n pictures holds n slots of the account.
    - `connect_timeout` limits one connection attempt. Until the service has answered once, it also limits all
      attempts together.
    - `read_timeout` limits one query. A create may take `create_timeout` plus the time that its body needs at
      `upload_speed` (bytes per second).
    - `retry_timeout` limits how long one call is retried. Lookups of a lost create do not count.
    - `max_retry_after` is the longest `Retry-After` that is obeyed. If the service asks for a
      longer wait, a poll waits only `max_retry_after` seconds, and any other call raises the service's error.
    - `poll_timeout` limits how long a task is polled while every read of it fails, and `refusal_timeout`
      while every read of it is refused.
    - `download_timeout` limits the download of one picture with all its retries. An attempt ends after
      `read_timeout` seconds without a byte.
    - `upload_bytes` limits the total size of the bodies of all creates in progress.

    These settings apply only to the client's own aiohttp session, not to one given as `http`:

    - `proxy` is ``http://host:port`` or ``http://user:password@host:port``, for all calls and downloads.
      Without it, `trust_env` decides whether the environment variables ``HTTP_PROXY``, ``HTTPS_PROXY`` and
      ``NO_PROXY`` are obeyed. A ``.netrc`` file is never read.
    - `ssl` is the `ssl.SSLContext` that verifies certificates, or True for the default context. False trusts
      every certificate.

    `headers` are added to each API call, and never to a download.

    `cache_dir` is the directory in which the durations of tasks are kept for later processes. The default is
    ``KLING_CACHE_DIR``, or else the user's cache directory. With False, or ``KLING_CACHE_DIR=off``, no file
    is written.
    """

    base_url: str = field(default=DEFAULT_BASE_URL, converter=_url)
    dialect: Dialect = field(default=Dialect.EDITING, converter=_dialect)
    max_in_flight: int = field(default=PARALLEL_TASKS, validator=COUNT)
    connect_timeout: float = field(default=10.0, validator=NUMBER)
    read_timeout: float = field(default=20.0, validator=NUMBER)
    create_timeout: float = field(default=30.0, validator=NUMBER)
    upload_speed: float = field(default=100_000.0, validator=NUMBER)
    retry_timeout: float = field(default=120.0, validator=NUMBER)
    max_retry_after: float = field(default=300.0, validator=NUMBER)
    poll_timeout: float = field(default=900.0, validator=NUMBER)
    refusal_timeout: float = field(default=60.0, validator=NUMBER)
    download_timeout: float = field(default=300.0, validator=NUMBER)
    upload_bytes: int = field(default=64 << 20, validator=COUNT)
    trust_env: bool = field(default=True, validator=option(FLAG))
    proxy: str | None = field(default=None, converter=_proxy, repr=False)
    headers: Mapping[str, str] = field(default=None, converter=_headers, repr=False, hash=False)
    ssl: "SSLContext | bool" = field(default=True, validator=option(TLS))
    cache_dir: Path | None = field(factory=lambda: _cache_dir({}), converter=_folder)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **given: Unpack[SettingsOptions]) -> Self:
        """Return settings from *given*. The environment or a default replaces each value that is None.

        The variables are ``KLING_BASE_URL`` and ``KLING_CACHE_DIR``. *environ* replaces `os.environ`.

        Raises:
            ConfigurationError: if a value is invalid, or a setting does not exist.
        """
        known = [each.name for each in fields(cls)]
        for name in given.keys() - {*known}:
            raise unknown_option(name, known)
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        base_url = _environ(environ).get("KLING_BASE_URL", "").strip()
        if base_url:
            chosen.setdefault("base_url", base_url)
        if "cache_dir" not in chosen:
            chosen["cache_dir"] = _cache_dir(_environ(environ))
        return cls(**chosen)


def _cache_dir(environ: Mapping[str, str]) -> Path | None:
    """Return the directory for cached files, or None if it is disabled."""
    given = environ.get("KLING_CACHE_DIR", "").strip()
    if given:
        return None if given.lower() == "off" else Path(given)
    fallback = {"win32": "~/AppData/Local", "darwin": "~/Library/Caches"}.get(sys.platform, "~/.cache")
    configured = environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    return Path(configured if Path(configured).is_absolute() else fallback, "kling-expand")


def environment_proxy(url: str) -> str | None:
    """Return the proxy for *url* according to ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``, or None.

    Raises:
        ConfigurationError: if the proxy cannot be used.
    """
    from urllib.request import getproxies, proxy_bypass  # imported here, after aiohttp has loaded it

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return _proxy(proxy, f"{parts.scheme.upper()}_PROXY")


# ---------------------------------------------------------------------------- options of a client


def _has(*methods: str) -> Callable[[object], bool]:
    return lambda value: (
        not isinstance(value, type) and all(callable(getattr(value, each, None)) for each in methods)
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Sequence)
        and not isinstance(value, bytes | bytearray | memoryview)
        and all(isinstance(each, str) for each in value)
    )


def _are_functions(value: object) -> bool:
    return callable(value) or (isinstance(value, Sequence) and all(map(callable, value)))


# The rules for client options that are not settings. The session checks its own options.
OPTIONS: dict[str, tuple[Rule, ...]] = {
    "access_key": optional(TEXT),
    "secret_key": optional(TEXT),
    "api_key": optional(TEXT),
    "auth": optional(Rule("must be a KeyPair, a StaticKey or your own Auth", _has("token", "renew"))),
    "deadline": ARGUMENTS["deadline"],
    "budget": optional(WHOLE, Rule("must be at least 0 units", lambda value: value >= 0)),
    "run": (TEXT,),
    "journal": optional(
        Rule(
            "must be a path or a JobStore",
            lambda value: isinstance(value, str | os.PathLike) or _has("record_intent", "observe")(value),
        ),
        Rule("must not be empty", lambda value: value != "", "to use no journal, omit it or pass None"),
    ),
    "webhook_secret": optional(Rule("must be a string, or a sequence of strings", _are_texts)),
    "slots": optional(
        Rule(
            "must be a Slots object", _has("acquire", "accepted", "ended"), "for a number, use max_in_flight"
        )
    ),
    "schedule": optional(Rule("must be a PollSchedule, such as AdaptiveSchedule()", _has("wait", "learn"))),
    "listener": optional(Rule("must be a function, or a sequence of functions", _are_functions)),
    "rng": optional(Rule("must be a random.Random", _has("random", "uniform"))),
    "clock": (Rule("must be a function that returns Unix seconds", callable),),
}
_SECRET_OPTIONS = {"access_key", "secret_key", "api_key", "auth", "webhook_secret"}


def check_options(given: Mapping[str, Any]) -> None:
    """Check the arguments of a client against `OPTIONS`, and the names in ``given["options"]``.

    Raises:
        ConfigurationError: if a value is invalid, or an option does not exist.
    """
    for name, rules in OPTIONS.items():
        for rule in rules:
            if not rule.holds(given[name]):
                value = f"a {type(given[name]).__name__}" if name in _SECRET_OPTIONS else shown(given[name])
                raise misconfigured(name, value, rule.limit, rule.advice)
    known = {each.name for each in fields(Settings)}
    for name in given["options"].keys() - known:
        raise unknown_option(name, (given.keys() | known) - {"self", "options"})


def check_option(rules: Iterable[Rule], **values: object) -> None:
    """Check *values*, which are given by argument name, against *rules*.

    Raises:
        ConfigurationError: if a value is invalid.
    """
    for name, value in values.items():
        for rule in option(*rules):
            rule.check(name, value)


def unknown_option(name: str, known: Iterable[str]) -> ConfigurationError:
    """Return the error for an unknown option or setting."""
    advice = nearest_name(name, known) or f"the options are {', '.join(sorted(known))}"
    return ConfigurationError(f"there is no option {name!r}: {advice}")


# ---------------------------------------------------------------------------- credentials


class Auth(Protocol):
    """Credentials that provide bearer tokens."""

    def token(self) -> str:
        """Return a token for the next request."""
        ...

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Discard the token *refused*, and return whether a different token can be tried.

        *server_time* is the time of the service's clock in Unix seconds, or None if it is unknown.
        """
        ...


class KeyPair:
    """An account's *access_key* and *secret_key*, which provide JWTs signed with HS256.

    A token is used until shortly before it expires. Its claims are ``iss``, ``exp`` and ``nbf`` (documented).
    *clock* returns Unix seconds.

    Raises:
        ConfigurationError: if a key is missing or blank.
    """

    def __init__(self, access_key: str, secret_key: str, *, clock: Callable[[], float] = time.time) -> None:
        if not all(isinstance(key, str) and key.strip() for key in (access_key, secret_key)):
            raise ConfigurationError("access_key and secret_key must both be given and must not be blank")
        self._access_key = access_key.strip()
        self._secret_key = secret_key.strip()
        check_option(OPTIONS["clock"], clock=clock)
        self._clock = clock
        self._offset = 0.0  # seconds by which the service's clock is ahead of ours
        self._token = ""
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"<KeyPair …{self._access_key[-4:]}>" if len(self._access_key) > 12 else "<KeyPair>"

    @property
    def fingerprint(self) -> str:
        """A short digest of the access key, by which a journal recognizes its account."""
        return _fingerprint(self._access_key)

    def token(self) -> str:
        """Return the current token, or a new one if it expires soon."""
        now = self._clock()
        # Without the lower limit, a token would be kept for too long after the clock was set back.
        if not self._token or not self._renew_at - TOKEN_LIFETIME <= now < self._renew_at:
            self._token = self._sign(now + self._offset)
            self._renew_at = now + TOKEN_LIFETIME - RENEW_MARGIN
        return self._token

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Discard the token *refused*, and adjust to *server_time* (Unix seconds) if our clock differs."""
        if refused == self._token:  # otherwise another call has already renewed it
            self._token = ""
        offset = 0.0 if server_time is None else server_time - self._clock()
        self._offset = offset if abs(offset) > MAX_CLOCK_SKEW else 0.0
        return True

    def _sign(self, now: float) -> str:
        import jwt  # imported here, as a static key does not need it

        claims = {"iss": self._access_key, "exp": int(now + TOKEN_LIFETIME), "nbf": int(now - BACKDATE)}
        with warnings.catch_warnings():
            # Some accounts have secrets shorter than 32 bytes, and their owners cannot choose longer ones.
            warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
            return jwt.encode(claims, self._secret_key, algorithm="HS256")


class StaticKey:
    """A static *api_key* (``api-key-kling-…``), which is sent unchanged.

    Raises:
        ConfigurationError: if it is blank, or not printable ASCII without spaces.
    """

    def __init__(self, api_key: str) -> None:
        key = api_key.strip() if isinstance(api_key, str) else ""
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigurationError("api_key must be printable ASCII without spaces")
        self._api_key = key

    def __repr__(self) -> str:
        return "<StaticKey>"

    @property
    def fingerprint(self) -> str:
        """A short digest of the key, by which a journal recognizes its account."""
        return _fingerprint(self._api_key)

    def token(self) -> str:
        """Return the key."""
        return self._api_key

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        """Return False, because a static key cannot be renewed. *refused* and *server_time* are ignored."""
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
    """Return the given credentials, or else those of the environment.

    A static key takes precedence over a pair, and a blank value counts as missing. The variables in *environ*
    are ``KLING_API_KEY``, or ``KLING_ACCESS_KEY`` and ``KLING_SECRET_KEY``, or the same names with
    ``KLINGAI_`` instead of ``KLING_``.

    Raises:
        ConfigurationError: if there are none, or one key of a pair is missing.
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
            raise ConfigurationError(f"a key pair needs both keys: the {missing} is missing")
    raise ConfigurationError(
        "no credentials: set KLING_ACCESS_KEY and KLING_SECRET_KEY, or KLING_API_KEY"
        ", or pass them to KlingClient"
    )


def account_name(settings: Settings, auth: Auth) -> str:
    """Return the name by which a journal identifies its service and account. It contains no secret."""
    fingerprint = getattr(auth, "fingerprint", "")
    key = f", key {fingerprint}" if fingerprint else ""
    return f"{settings.base_url} ({settings.dialect}{key})"


def _fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def webhook_secret(given: str | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the console's Webhook Secret (``whsec_…``): *given*, or ``KLING_WEBHOOK_SECRET``."""
    return (given or _environ(environ).get("KLING_WEBHOOK_SECRET", "")).strip() or None


def enable_logging(environ: Mapping[str, str] | None = None) -> None:
    """Write the log of the package to stderr if ``KLING_LOG`` names a level, such as ``debug``.

    Raises:
        ConfigurationError: if ``KLING_LOG`` is not a level.
    """
    level = _environ(environ).get("KLING_LOG", "").strip()
    if not level:
        return
    if level.lower() not in LOG_LEVELS:
        raise misconfigured("KLING_LOG", repr(level), f"must be {', '.join(LOG_LEVELS)}")
    logger = logging.getLogger("kling_expand")
    logger.setLevel(level.upper())
    if not any(each.name == __name__ for each in logger.handlers):
        handler = logging.StreamHandler()
        handler.name = __name__
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


def environment_with(**changes: str) -> dict[str, str]:
    """Return this process's environment with *changes*, for a child process."""
    return {**os.environ, **changes}


def _environ(given: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if given is None else given
