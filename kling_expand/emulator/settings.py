"""What can be set on an emulator? One flat list; the command line and the control route read it."""

import time
from collections.abc import Callable
from typing import Any

from attrs import Attribute, define, field, fields

from .http.codes import ACCOUNT_CODES


def _option(
    default: Any, text: str, *, fixed: bool = False, secret: bool = False, among: tuple[Any, ...] = ()
) -> Any:
    """A field that knows its help text; `fixed`: not to be changed while the emulator runs."""
    meta = {"help": text, "fixed": fixed, "among": among}
    return field(default=default, repr=not secret, metadata=meta)


@define(kw_only=True, eq=False)
class Settings:
    """Durations are seconds; what is not fixed may be changed at any time and counts from then on."""

    host: str = _option("127.0.0.1", "address to listen on", fixed=True)
    port: int = _option(0, "port to listen on; 0: a free one", fixed=True)
    access_key: str = _option("emulator-access-key", "`iss` of a JWT")
    secret_key: str = _option("emulator-secret-key-0123456789abcdef", "what signs a JWT", secret=True)
    api_key: str = _option("api-key-kling-emulator", "the static key", secret=True)
    state: str = _option("", "SQLite file to keep tasks in; empty: nothing outlives the process", fixed=True)
    clock: Callable[[], float] = field(default=time.time, repr=False, metadata={"fixed": True})

    queue_seconds: float = _option(0.5, "from submitted to processing")
    work_seconds: float = _option(2.0, "from processing to the end, at least as long as painting takes")
    jitter: float = _option(0.0, "sigma of a log-normal factor on both")
    seed: int = _option(0, "of jitter, faults and painted pictures", fixed=True)
    engine: str = _option(
        "patchmatch", "what paints: patchmatch, migan:PATH, or flat for load tests", fixed=True
    )
    workers: int = _option(2, "pictures painted at once", fixed=True)

    slots: int = _option(9, "images in flight at once, the sum of n: more is 429/1303")
    rate_limit: int = _option(0, "requests per --rate-seconds: more is 429/1302; 0: no limit")
    rate_seconds: float = _option(1.0, "see --rate-limit")
    retry_after: str = _option(
        "seconds", "form of the header sent with 1302", among=("seconds", "date", "none")
    )
    account_code: int = _option(0, "refuse every call with this code; 0: none", among=(0, *ACCOUNT_CODES))
    allow_duplicates: bool = _option(False, "accept an external_task_id again and bill twice")
    open_tasks: int = _option(100_000, "unfinished tasks at most, whatever their slots: more is 429/1303")
    body_bytes: int = _option(15_000_000, "longest request body")
    life_seconds: float = _option(
        30 * 86400.0, "how long an ended task and its pictures are kept", fixed=True
    )

    seed_shapes: bool = _option(
        False, "one-element array as data of query-one, no fields newer than the seeds"
    )
    succeeded: bool = _option(False, "spell the final status succeeded instead of succeed")
    list_mode: str = _option("newest", "order of lists", among=("newest", "oldest", "shuffled", "refused"))
    list_lag: float = _option(0.0, "lists show what was true so many seconds ago")
    list_foreign: int = _option(
        0, "after every so many tasks of a list, one that somebody else made; 0: none"
    )

    allow_private: bool = _option(
        False, "fetch images from private and loopback addresses, and call back to them"
    )
    fetch_seconds: float = _option(10.0, "longest time to fetch an image given by URL")
    webhook_secret: str = _option("", "whsec_… to sign callbacks with; empty: unsigned", secret=True)
    callback_order: str = _option("sent", "or all of a task's calls at its end", among=("sent", "shuffled"))
    callback_repeats: int = _option(1, "how often each call is made")
    callback_attempts: int = _option(3, "tries of each call until it is answered 2xx")
    callback_pause: float = _option(1.0, "before the second try, doubled before each further one")


def options() -> list["Attribute[Any]"]:
    """Every field with a help text: all but the clock."""
    return [option for option in fields(Settings) if "help" in option.metadata]


def change(settings: Settings, changes: dict[str, Any]) -> None:
    """Set several while running, all or none; raises ValueError naming the first that cannot be."""
    known = {option.name: option for option in options() if not option.metadata["fixed"]}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"{name} is no setting that can be changed")
        _check(known[name], value)
    for name, value in changes.items():
        setattr(settings, name, value)


def _check(option: "Attribute[Any]", value: Any) -> None:
    usual = type(option.default)
    fits = type(value) is usual or (usual is float and type(value) is int)
    if not fits or (usual in {int, float} and not 0 <= value < float("inf")):
        raise ValueError(f"{option.name} must be a {usual.__name__}")
    among = option.metadata["among"]
    if among and value not in among:
        raise ValueError(f"{option.name} must be one of {', '.join(map(str, among))}")
