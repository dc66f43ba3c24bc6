"""Every public argument with wrong values raises an error that names it before anything is created."""

import datetime as dt
import inspect
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from attrs import fields

from kling_expand import (
    AdaptiveSchedule,
    ExpandRequest,
    KeyPair,
    KlingClient,
    Padding,
    Ratios,
    Slots,
    StaticKey,
    ToAspect,
    ToSize,
    Towards,
    blocking,
    calculate_expansion_ratios,
)
from kling_expand.config import Settings, SettingsOptions
from kling_expand.errors import ConfigurationError, InvalidRequest, KlingError, WebhookError
from kling_expand.models import RequestFields
from kling_expand.store.base import JobRecord
from kling_expand.testing import emulated, run, virtual_time
from kling_expand.webhooks import Webhooks

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)
NAMES = {"SSLContext": ssl.SSLContext}  # imported by the package only for type checkers

NO_TEXT: list[Any] = [5, b"x", ["x"], {"x": 1}, object()]
NO_WHOLE: list[Any] = ["1", 1.5, True, [1], b"1"]
NO_FLAG: list[Any] = ["yes", 1, 0, [], "False"]
NO_SECONDS: list[Any] = [dt.timedelta(seconds=5), "5", 0, -1, float("nan"), float("inf"), True]
NO_COUNT: list[Any] = [0, -1, *NO_WHOLE]
NO_NUMBER: list[Any] = [0, -1, float("nan"), float("inf"), "10", True, []]

# At least five wrong values for each argument of the public methods, by name.
WRONG: dict[str, list[Any]] = {
    "known": [None, 5, "dog", object(), {"key": "dog"}],
    "passes": [0, 5, -1, None, *NO_WHOLE],
    "image": [None, 5, 1.5, True, object(), ["dog.png"], {"image": "dog.png"}, Path],
    "geometry": [None, 5, 1.78, (16, 9), "", "wide", "16:0", Ratios, object(), {"left": 0.5}],
    "prompt": [*NO_TEXT, "x" * 2501],
    "n": [0, 10, None, *NO_WHOLE],
    "watermark": [None, *NO_FLAG],
    "callback_url": [*NO_TEXT, "", "example.com", "ftp://example.com"],
    "external_task_id": [*NO_TEXT, " a", "a\n", ".", ".."],
    "key": [*NO_TEXT, " a", "a\n", ".", ".."],
    "extra": [
        5,
        "x",
        ["x"],
        {1: 2},
        {"n": 2},
        {"image": "x"},
        {"direction": "up"},
        {"a": object()},
        {"a": 1e999},
    ],
    "note": [5, "x", ["x"], {1: 2}, {"a": object()}, {"a": 1e999}, [("a", 1)]],
    "request": [None, 5, "dog.png", b"dog", {"image": "dog.png"}, ExpandRequest],
    "deadline": NO_SECONDS,
    "priority": [None, *NO_WHOLE],
    "fresh": [None, *NO_FLAG],
    "ordered": [None, *NO_FLAG],
    "wait": [None, *NO_FLAG],
    "prefetch": NO_COUNT,
    "max_failures": NO_COUNT,
    "save_to": [5, True, b"out/", ["out/"], object(), "s3://bucket/out/", "out/{size}.png", "{name", "a\0b"],
    "save_options": [5, True, "jpeg", ["jpeg"], {"full_size": True}],
    "requests": [None, 5, "dog.png", b"dog", {"a": 1}, [None], ["dog.png"], [ExpandRequest]],
    "any_id": [None, 5, "", ".", "a\nb", b"1", ["1"], True],
    "page": [None, 1001, *NO_COUNT],
    "page_size": [None, 501, *NO_COUNT],
    "headers": [None, 5, "a: b", [1], [("a", "b", "c")], {1: 2}, {"webhook-id": object()}],
    "body": [None, 5, b"", b"text", "text", object(), {}, []],
}

# At least five wrong values for each option of a client, by name.
WRONG_OPTIONS: dict[str, list[Any]] = {
    "access_key": NO_TEXT,
    "secret_key": NO_TEXT,
    "api_key": [*NO_TEXT, "two words"],
    "auth": ["key", 5, object(), KeyPair, ("a", "s")],
    "deadline": NO_SECONDS,
    "budget": ["80", -1, 80.5, True, [80]],
    "run": [None, *NO_TEXT],
    "journal": [True, 5, object(), ["run.db"], b"run.db", ""],
    "webhook_secret": [5, b"whsec_AAAA", [5], {"a": 1}, object()],
    "http": [5, "http://proxy", object(), ["session"], True],
    "trace_configs": [5, "trace", [5], object(), {"a": 1}],
    "slots": [4, "4", object(), True, Slots],
    "schedule": [5, "fast", object(), AdaptiveSchedule, lambda: 1],
    "listener": [5, "log", [5], object(), {"a": 1}],
    "rng": [5, "random", object(), True, os.urandom],
    "clock": [None, 5, 1.5, "now", object()],
    "base_url": [5, b"https://a.example", ["https://a.example"], "a.example", "https://u:p@a.example"],
    "dialect": [5, "dutch", b"editing", ["editing"], True],
    "max_in_flight": [1.5, *NO_NUMBER],
    "upload_bytes": [1.5, *NO_NUMBER],
    "trust_env": NO_FLAG,
    "proxy": [5, "", "socks5://a.example:1", "http://a.example/path", "http://a b", "http://:80"],
    "headers": [5, ["a"], {1: "a"}, {"a": 1}, {"a b": "c"}, {"a": "b\r\nc: d"}, {"Authorization": "x"}],
    "ssl": [5, "cert.pem", object(), [True], 0],
    "cache_dir": [True, 1, "", b"", 1.5],
}
WRONG_OPTIONS |= {each.name: NO_NUMBER for each in fields(Settings) if each.type is float}

METHODS: list[Callable[..., Any]] = [
    KlingClient.expand,
    KlingClient.expand_passes,
    KlingClient.resume_passes,
    KlingClient.submit,
    KlingClient.create,
    KlingClient.map,
    KlingClient.resume,
    KlingClient.resume_job,
    KlingClient.attach,
    KlingClient.receive,
    KlingClient.get,
    KlingClient.job,
    KlingClient.list,
    KlingClient.tasks,
    KlingClient.aclose,
]
GOOD: dict[str, Any] = {
    "image": PHOTO,
    "geometry": WIDER,
    "requests": [ExpandRequest(PHOTO, WIDER)],
    "request": ExpandRequest(PHOTO, WIDER),
    "passes": 2,
    "any_id": "1",
    "known": JobRecord("kx-1"),
    "headers": {},
    "body": b'{"task_id": "1", "task_status": "failed"}',
}


def arguments(function: Callable[..., Any], more: Any = None) -> list[str]:
    """Return the names of a function's arguments, including those of the typed options *more*."""
    parameters = inspect.signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD and each.name != "self"]
    open_ended = more and any(each.kind is each.VAR_KEYWORD for each in parameters)
    return [*names, *(get_type_hints(more, None, NAMES) if open_ended else ())]


def required(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Return valid values for the other arguments that *function* requires."""
    names = [each for each in arguments(function) if each in GOOD]
    return {each: GOOD[each] for each in names if each != name}


async def consumed(called: Any) -> None:
    """Await the return value of a method, or iterate over it."""
    if hasattr(called, "__aiter__") and not hasattr(called, "__await__"):
        async for _ in called:
            pass
    elif hasattr(called, "__await__"):
        await called


CASES = [(method, name) for method in METHODS for name in arguments(method, RequestFields)]


@pytest.mark.parametrize(("method", "name"), CASES, ids=lambda each: getattr(each, "__name__", each))
@virtual_time
async def test_a_wrong_argument_is_refused_by_name(method: Callable[..., Any], name: str) -> None:
    """Each method refuses every wrong value, and neither sends nor counts anything."""
    assert len(WRONG[name]) >= 5
    async with emulated() as (emulator, kling):
        for value in WRONG[name]:
            with pytest.raises((InvalidRequest, WebhookError)) as caught:
                await consumed(method(kling, **{name: value}, **required(method, name)))
            aspect = name == "geometry" and isinstance(value, str)
            assert ("aspect" if aspect else name) in str(caught.value)
            assert len(str(caught.value)) < 300
        assert emulator.account.requests == {}
        assert kling.stats.submitted == 0


def test_every_public_method_is_in_the_table() -> None:
    """A new method, argument or request field needs a row in the table."""
    methods = {
        name
        for name, value in vars(KlingClient).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert methods == {method.__name__ for method in METHODS}
    assert {name for _, name in CASES} == set(WRONG)


@pytest.mark.parametrize("name", arguments(KlingClient.__init__, SettingsOptions))
def test_a_wrong_option_is_refused_by_name(name: str) -> None:
    """Both clients refuse a wrong option before they are open, and the error shows no secret."""
    assert len(WRONG_OPTIONS[name]) >= 5
    for value in WRONG_OPTIONS[name]:
        for client in (KlingClient, blocking.KlingClient):
            options: dict[str, Any] = {"api_key": "k", name: value}
            with pytest.raises(ConfigurationError) as caught:
                client(**options)
            assert name.removeprefix("access_").removeprefix("secret_") in str(caught.value)
            assert "u:p@" not in str(caught.value)


CONSTRUCTORS: list[tuple[Callable[..., Any], str, list[Any]]] = [
    *((Ratios, side, [-1, 2.1, "0.5", None, float("nan")]) for side in ("up", "down", "left", "right")),
    *((Padding, side, [-1, 2.5, "20", None, True]) for side in ("up", "down", "left", "right")),
    (ToAspect, "aspect", ["wide", 0, None, True, (1, 2, 3)]),
    (ToAspect, "area", [0.5, 4, "2", True, float("nan")]),
    (ToAspect, "anchor", ["middle", 5, None, ["left"], ""]),
    (ToSize, "width", [0, -5, "900", 900.5, None]),
    (ToSize, "height", [0, -5, "900", 900.5, None]),
    (ToSize, "anchor", ["middle", 5, None, ["left"], ""]),
    (Towards, "direction", ["east", "", None, 5, ["left"]]),
    (Towards, "ratio", [1, 4, "1.5", None, True]),
    *((calculate_expansion_ratios, each, [0, -1, "100", None, True]) for each in ("width", "height")),
    (calculate_expansion_ratios, "area_multiplier", [0, 9, "2", None, True]),
    (calculate_expansion_ratios, "aspect_ratio", [0, "wide", None, True, 1e9]),
    (Slots, "limit", [0, -1, "9", 9.5, None]),
    (AdaptiveSchedule, "target_latency", [0, -1, "1", None, True]),
    (AdaptiveSchedule, "window", [0, 2.5, "9", None, True]),
    (AdaptiveSchedule, "longest", [0, -1, "1", None, True]),
    (KeyPair, "access_key", [None, 5, " ", b"a", ["a"]]),
    (KeyPair, "secret_key", [None, 5, " ", b"a", ["a"]]),
    (KeyPair, "clock", [None, 5, 1.5, "now", object()]),
    (StaticKey, "api_key", [None, 5, " ", b"a", "two words"]),
    (Webhooks, "tolerance", [0, -1, "300", None, float("nan")]),
    (Webhooks, "remember", [-1, 2.5, "9", None, True]),
    (Webhooks, "clock", [None, 5, 1.5, "now", object()]),
]
PLAIN: dict[Callable[..., Any], dict[str, Any]] = {
    Padding: {"up": 1, "down": 1, "left": 1, "right": 1},
    ToAspect: {"aspect": 1.5},
    ToSize: {"width": 900, "height": 900},
    Towards: {"direction": "left"},
    calculate_expansion_ratios: {"width": 300, "height": 300, "area_multiplier": 2, "aspect_ratio": 1},
    KeyPair: {"access_key": "a", "secret_key": "s"},
}
ANOTHER_WORD = {"aspect_ratio": "aspect", "area_multiplier": "area"}


@pytest.mark.parametrize(
    ("constructor", "name", "values"), CONSTRUCTORS, ids=lambda each: getattr(each, "__name__", None)
)
def test_wrong_constructor_arguments_are_refused_by_name(
    constructor: Callable[..., Any], name: str, values: list[Any]
) -> None:
    """Geometries, slots, schedules and credentials check their arguments in the constructor."""
    for value in values:
        with pytest.raises((ConfigurationError, InvalidRequest)) as caught:
            constructor(**PLAIN.get(constructor, {}) | {name: value})
        assert ANOTHER_WORD.get(name, name) in str(caught.value)


def test_every_constructor_argument_is_in_the_table() -> None:
    """A new argument of such a class needs a row in the table."""
    for constructor in {constructor for constructor, _, _ in CONSTRUCTORS}:
        names = {name for name in arguments(constructor) if name != "secrets"}
        assert names == {name for each, name, _ in CONSTRUCTORS if each is constructor}


# ------------------------------------------------------------------ what is accepted, and names


@pytest.mark.parametrize("method", ["expand", "submit", "create"])
@virtual_time
async def test_an_aspect_may_be_given_as_text(method: str) -> None:
    """`"16:9"` is the same job as `ToAspect("16:9")`."""
    async with emulated(slots=20) as (emulator, kling):
        for geometry in ("16:9", ToAspect("16:9")):
            await getattr(kling, method)(PHOTO, geometry)
        one, two = (task.ratios for task in emulator.account.tasks.values())
        assert one == two
    assert ExpandRequest(PHOTO, "16:9").geometry == ToAspect("16:9")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("max_inflight", "max_in_flight"),
        ("jurnal", "journal"),
        ("read_time_out", "read_timeout"),
        ("proxies", "proxy"),
        ("listeners", "listener"),
    ],
)
def test_the_nearest_option_is_suggested(name: str, nearest: str) -> None:
    """The message for a misspelled option suggests an option, whether it is a setting or an argument."""
    options: dict[str, Any] = {name: 1}
    with pytest.raises(ConfigurationError, match=f"there is no option '{name}': did you mean {nearest}?"):
        KlingClient(api_key="k", **options)
    options = {"zzzz": 1}
    with pytest.raises(ConfigurationError, match="the options are access_key, api_key, auth"):
        KlingClient(api_key="k", **options)
    with pytest.raises(ConfigurationError, match="there is no option 'read_timout': did you mean"):
        Settings.from_env({}, read_timout=1)  # type: ignore[call-arg]  # that is the mistake


@pytest.mark.parametrize(("name", "nearest"), [("promt", "prompt"), ("deadlin", "deadline"), ("N", "n")])
@virtual_time
async def test_the_nearest_field_is_suggested(name: str, nearest: str) -> None:
    """The message suggests a field of a request or an argument of the method."""
    async with emulated() as (emulator, kling):
        wrong: dict[str, Any] = {name: "x"}
        for method in (kling.submit, kling.create, kling.expand):
            with pytest.raises(InvalidRequest, match=f"{name}: no such argument: 'x'") as caught:
                await consumed(method(PHOTO, WIDER, **wrong))
            assert nearest in str(caught.value)
        assert emulator.account.requests == {}


def test_a_wrong_id_does_not_affect_open_jobs() -> None:
    """`attach` refuses an id of a wrong type, and open jobs are not affected."""

    async def main() -> None:
        async with emulated(work_seconds=30) as (_, kling):
            futures = [kling.submit(PHOTO, Ratios(right=0.1 + n / 10)) for n in range(3)]
            wrong: Any
            for wrong in (5, None):
                with pytest.raises(InvalidRequest, match=f"any_id must be .*, got {wrong}"):
                    kling.attach(wrong)
            for future in futures:
                assert (await future).images

    run(main())


def test_wrong_values_are_shortened_in_errors() -> None:
    """An error message contains neither a photo nor a long text."""
    for image in (["x" * 10**6], {"photo": b"\x89PNG" * 10**5}):
        with pytest.raises(KlingError) as caught:
            ExpandRequest(image, WIDER)  # type: ignore[arg-type]  # that is the mistake
        assert len(str(caught.value)) < 300
