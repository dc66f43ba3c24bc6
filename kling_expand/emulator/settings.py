"""The settings of an emulator, described once for Python, the command line and the control route."""

import base64
import math
import time
from collections.abc import Callable
from typing import Any

from attrs import Attribute, define, field, fields
from yarl import URL

from .http.codes import ACCOUNT_CODES, CODES

FLAT_ENGINE = "flat"  # it needs no worker process, and paints when a picture is downloaded


_SECRET_PREFIX = "whsec_"  # noqa: S105 - the documented prefix of secrets
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _option(
    default: Any,
    text: str,
    *,
    fixed: bool = False,
    secret: bool = False,
    choices: tuple[Any, ...] = (),
    parser: Callable[[Any], object] | None = None,
) -> Any:
    """Return a field with a help text. A *fixed* one cannot change while the emulator runs.

    *parser* raises ValueError for a value that is not allowed.
    """
    metadata = {"help": text, "fixed": fixed, "choices": choices, "parser": parser}
    validator = None if parser is None else lambda _settings, _field, value: parser(value)
    return field(default=default, repr=not secret, validator=validator, metadata=metadata)


def _check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be between 0 and 65535, got {port}")


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def _check_public_url(text: str) -> None:
    try:
        url = URL(text)
        valid = not text or (url.scheme in {"http", "https"} and bool(url.host))
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"public_url must be an http or https URL, such as https://kling.test, got {text!r}")


def _check_webhook_secret(secret: str) -> None:
    if secret:
        signing_key(secret)


def signing_key(secret: str) -> bytes:
    """Return the key inside a webhook secret.

    Raises:
        ValueError: if the secret is not `whsec_` followed by Base64.
    """
    try:
        if secret.startswith(_SECRET_PREFIX):
            return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        pass
    raise ValueError(f"webhook_secret must be {_SECRET_PREFIX} followed by Base64")


def parse_misregister(text: str) -> tuple[float, float, float]:
    """Return the shift to the right and down in pixels, and the scale, from `DX,DY,SCALE`.

    Raises:
        ValueError: if the text has another form, a shift is above 100 pixels, or the scale is not near 1.
    """
    try:
        shift_x, shift_y, scale = map(float, text.split(",")) if text else (0.0, 0.0, 1.0)
    except ValueError:
        shift_x = shift_y = scale = math.nan
    if not (abs(shift_x) <= 100 and abs(shift_y) <= 100 and 0.9 <= scale <= 1.1):
        limit = "DX,DY,SCALE with shifts of at most 100 pixels and a scale between 0.9 and 1.1"
        raise ValueError(f"misregister must be {limit}, such as 0.7,-1.2,1.004, got {text!r}")
    return shift_x, shift_y, scale


@define(kw_only=True, eq=False)
class Settings:
    """The settings. Times are in seconds. A setting that is not fixed may change at any time."""

    host: str = _option("127.0.0.1", "address to listen on", fixed=True)
    port: int = _option(0, "port to listen on; 0: any free port", fixed=True, parser=_check_port)
    public_url: str = _option(
        "",
        "URL of the emulator for clients, such as https://kling.test; empty: the address of the request",
        parser=_check_public_url,
    )
    forwarded: bool = _option(
        False, "trust X-Forwarded-Proto and X-Forwarded-Host of a proxy in front of the emulator"
    )
    access_key: str = _option("emulator-access-key", "the access key, which is the `iss` of a JWT")
    secret_key: str = _option(
        "emulator-secret-key-0123456789abcdef", "the secret key that signs a JWT", secret=True
    )
    api_key: str = _option("api-key-kling-emulator", "the static API key", secret=True)
    state: str = _option("", "SQLite file that keeps tasks across restarts; empty: no file", fixed=True)
    clock: Callable[[], float] = field(default=time.time, repr=False, metadata={"fixed": True})

    queue_seconds: float = _option(0.5, "seconds from submitted to processing")
    work_seconds: float = _option(2.0, "seconds of processing; painting may take longer")
    jitter: float = _option(0.0, "sigma of a log-normal factor on queue and work seconds")
    seed: int = _option(0, "seed of jitter, faults and painted pictures", fixed=True)
    engine: str = _option("patchmatch", "painting engine: patchmatch, or flat for load tests", fixed=True)
    workers: int = _option(2, "pictures painted at the same time", fixed=True, parser=_check_workers)
    misregister: str = _option(
        "",
        "DX,DY,SCALE: shift the content of new pictures by DX and DY pixels to the right and down, and scale "
        "it around the middle; empty: the original is exactly in place",
        parser=parse_misregister,
    )

    slots: int = _option(
        9, "limit on images in flight (the sum of n over all open tasks); above it: 429/1303"
    )
    rate_limit: int = _option(0, "requests per rate limit window; above it: 429/1302; 0: no limit")
    rate_limit_window: float = _option(1.0, "seconds of the rate limit window")
    retry_after_format: str = _option(
        "seconds", "format of Retry-After in a 429/1302", choices=("seconds", "date", "none")
    )
    account_code: int = _option(
        0, "refuse every request with this error code; 0: none", choices=(0, *ACCOUNT_CODES)
    )
    allow_duplicates: bool = _option(False, "accept a used external_task_id again, and bill both tasks")
    max_open_tasks: int = _option(100_000, "limit on open tasks, whatever their slots; above it: 429/1303")
    max_body_bytes: int = _option(15_000_000, "limit on a request body in bytes; above it: 400/1200")
    retention_seconds: float = _option(
        30 * 86400.0, "seconds for which an ended task and its pictures are kept", fixed=True
    )

    task_format: str = _option(
        "object",
        "JSON of a task: object (current documentation), array (oldest: data of a query in an array, fewer "
        "fields) or outputs (newer API: id, status, outputs, billing)",
        choices=("object", "array", "outputs"),
    )
    task_id_format: str = _option(
        "digits", "format of new task ids: 18 digits, or 22 characters of text", choices=("digits", "text")
    )
    success_status: str = _option(
        "succeed", "status word of a successful task", choices=("succeed", "succeeded")
    )
    images_lag: float = _option(0.0, "seconds before a successful task lists its images")
    list_order: str = _option("newest", "order of lists", choices=("newest", "oldest", "shuffled"))
    list_code: int = _option(0, "refuse every list with this error code; 0: none", choices=(0, *CODES))
    list_lag: float = _option(0.0, "age of lists in seconds; newer tasks are missing, statuses are old")
    list_status_lag: float = _option(
        0.0, "age of the statuses in lists in seconds; very large: they never change"
    )
    list_foreign: int = _option(
        0, "after every N tasks of a list, add one that another program created; 0: none"
    )

    allow_private: bool = _option(
        False,
        "fetch images from private and loopback addresses too, and send callbacks there",
        fixed=True,  # the control routes need no credentials
    )
    fetch_timeout: float = _option(10.0, "seconds to fetch an image given by URL")
    webhook_secret: str = _option(
        "",
        "secret (whsec_...) that signs callbacks; empty: unsigned",
        secret=True,
        parser=_check_webhook_secret,
    )
    callback_order: str = _option(
        "sent",
        "sent: each callback when its status begins; shuffled: all callbacks of a task at its end",
        choices=("sent", "shuffled"),
    )
    callback_repeats: int = _option(1, "deliveries of each callback")
    callback_attempts: int = _option(3, "attempts at each delivery until a 2xx response")
    callback_backoff: float = _option(1.0, "seconds before the second attempt, doubled for each further one")


def options() -> list["Attribute[Any]"]:
    """Return every field with a help text, which is every field except the clock."""
    return [option for option in fields(Settings) if "help" in option.metadata]


def flag(option: "Attribute[Any]") -> str:
    """Return the command-line option of a setting."""
    return "--" + option.name.replace("_", "-")


def change(settings: Settings, changes: dict[str, Any]) -> None:
    """Change several settings of a running emulator: if one change is invalid, none is made.

    Raises:
        ValueError: if a name is unknown or fixed, or a value is not allowed.
    """
    changeable = {option.name: option for option in options() if not option.metadata["fixed"]}
    for name, value in changes.items():
        if name not in changeable:
            raise ValueError(f"{name} must be a setting that can change while the emulator runs")
        check(changeable[name], value)
    for name, value in changes.items():
        setattr(settings, name, value)


def check(option: "Attribute[Any]", value: Any) -> None:
    """Check the value of a setting.

    Raises:
        ValueError: if the value is not allowed.
    """
    expected = type(option.default)
    fits = type(value) is expected or (expected is float and type(value) is int)
    if not fits or (expected in {int, float} and not 0 <= value < float("inf")):
        sign = " of at least 0" if expected in {int, float} else ""
        raise ValueError(f"{option.name} must be {_KINDS[expected]}{sign}, got {value!r}")
    if option.metadata["parser"]:
        option.metadata["parser"](value)
    choices = option.metadata["choices"]
    if choices and value not in choices:
        raise ValueError(f"{option.name} must be one of {', '.join(map(str, choices))}, got {value!r}")
