"""Values outside the process: as JSON types, through FastAPI and pydantic, and pickled."""

import copy
import io
import json
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kling_expand import (
    ExpandRequest,
    ExpandResult,
    Image,
    InvalidRequest,
    KlingError,
    Outcome,
    Quantiles,
    RateLimited,
    Ratios,
    Stats,
    Task,
    TaskFailed,
    ToAspect,
    blocking,
)
from kling_expand._portal import LoopThread
from kling_expand.models import BalanceDeduction, Status
from kling_expand.serialization import Serializable, to_json

TASK = Task(
    "1",
    "succeed",
    external_task_id="mine",
    images=(Image(0, "https://h/0", "https://h/w"), Image(1, "https://h/1")),
    final_unit_deduction="16",
    final_balance_deduction=BalanceDeduction("16", "0.056"),
    created_at=1_750_000_000_000,
)
REQUEST = ExpandRequest("monday/dog.png", ToAspect("16:9"), "a park", n=2, key="dog")


async def never(*_: Any, **__: Any) -> Any:
    """Stand in for the methods of a client, which cannot be pickled."""
    raise AssertionError


RESULT = ExpandResult(TASK, REQUEST, "dog", (Path("out/dog-0.png"),), save=lambda *_, **__: never())
STATS = Stats(
    submitted=2,
    waiting=0,
    running=1,
    succeeded=1,
    failed=0,
    refused=0,
    unknown=0,
    creates=2,
    reads=9,
    lists=1,
    errors={"RateLimited": 1},
    units_due=16,
    units_billed=Decimal("8.5"),
    units_found=Decimal(16),
    duration=Quantiles(12.0, 20.0, None),
)
FAILED = Outcome(1, REQUEST, error=TaskFailed("no", task_id="2", external_task_id="other"))
SAVED = Outcome(0, REQUEST, RESULT, files=(Path("out/dog-0.png"),))
BAD = Outcome(2, None, error=InvalidRequest("n", 0, "must be between 1 and 9"))
BLOCKING = blocking.ExpandResult(RESULT, LoopThread())
VALUES: dict[str, Serializable] = {
    "task": TASK,
    "image": TASK.images[0],
    "read image": RESULT.images[0],
    "result": RESULT,
    "stats": STATS,
    "failed": FAILED,
    "saved": SAVED,
    "bad": BAD,
    "blocking result": BLOCKING,
    "blocking outcome": blocking.Outcome(0, REQUEST, BLOCKING, files=(Path("a.png"),)),
}
each_value = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)


@each_value
def test_a_dictionary_has_only_json_types(value: Serializable) -> None:
    """`to_dict` survives a round trip through JSON unchanged, and `dict` gives the same."""
    found = value.to_dict()
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found == dict(value)
    assert not any(name.startswith("_") for name in found)


def test_a_result_has_its_ids_urls_files_and_request() -> None:
    """A result's dictionary has the ids, the URLs, the files and the request."""
    found = RESULT.to_dict()
    assert (found["task_id"], found["external_task_id"], found["files"]) == ("1", "mine", ["out/dog-0.png"])
    assert found["images"][0] == {"index": 0, "url": "https://h/0", "watermark_url": "https://h/w"}
    request = found["request"]
    assert (request["image"], request["n"]) == ("monday/dog.png", 2)
    assert request["geometry"]["type"] == "ToAspect"
    assert STATS.to_dict()["units_billed"] == 8.5
    assert STATS.to_dict()["duration"] == {"median": 12.0, "p95": 20.0, "highest": None}


def test_an_error_has_its_class_text_and_attributes() -> None:
    """The error of an outcome is written with its class, its text and its public attributes."""
    error = FAILED.to_dict()["error"]
    assert (error["type"], error["message"], error["task_id"]) == ("TaskFailed", "no", "2")
    limited = to_json(RateLimited("slow down", code=1302, status=429, retry_after=5.0))
    assert (limited["code"], limited["retry_after"]) == (1302, 5.0)
    assert BAD.to_dict()["request"] is None


def test_no_image_data_is_in_json() -> None:
    """A photo is represented by its name, whatever its source is."""
    for source in (b"secret" * 100, bytearray(b"secret"), memoryview(b"secret"), io.BytesIO(b"secret")):
        text = json.dumps(Outcome(0, ExpandRequest(source, Ratios(up=0.5))).to_dict())
        assert "secret" not in text
    assert to_json({"content": b"secret"}) == {"content": "<6 bytes>"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner) | st.sets(st.text()),
)


@given(anything)
def test_any_built_in_value_becomes_json(value: Any) -> None:
    """No value of Python's built-in types makes `json.dumps` fail, and JSON types stay as they are."""
    found = to_json(value)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert to_json(found) == found


def test_enums_and_decimals_become_plain_values() -> None:
    """Enums become their values, and whole decimals become integers."""
    assert type(to_json(Status.SUCCEED)) is str
    assert to_json([Decimal(8), Decimal("8.5"), float("nan")]) == [8, 8.5, None]


# ------------------------------------------------------------------ FastAPI and pydantic


async def fetch(app: FastAPI, path: str) -> tuple[int, Any]:
    """Return the status and the JSON of a response of *app*."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app({"asgi": {"version": "3.0"}, "http_version": "1.1", **scope}, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


@each_value
@pytest.mark.parametrize("annotated", [False, True])
async def test_fastapi_returns_a_value(value: Serializable, *, annotated: bool) -> None:
    """An endpoint may return a value, annotated with its class or not, alone or in a list."""
    app = FastAPI()
    kind: Any = type(value)
    app.get("/one", response_model=kind if annotated else None)(lambda: value)
    app.get("/many", response_model=list[kind] if annotated else None)(lambda: [value])
    assert await fetch(app, "/one") == (200, value.to_dict())
    assert await fetch(app, "/many") == (200, [value.to_dict()])
    assert (await fetch(app, "/openapi.json"))[0] == 200
    assert jsonable_encoder({"value": value}) == {"value": value.to_dict()}


def test_pydantic_accepts_a_value_as_a_field() -> None:
    """A model may have a field of such a class, which is validated and serialized like `to_dict`."""

    class Order(BaseModel):
        number: int
        result: ExpandResult

    order = Order(number=1, result=RESULT)
    assert json.loads(order.model_dump_json())["result"] == RESULT.to_dict()
    assert Order.model_json_schema()["properties"]["result"] == {"type": "object", "title": "ExpandResult"}
    with pytest.raises(ValidationError):
        Order(number=1, result=TASK)  # type: ignore[arg-type] # on purpose


# ------------------------------------------------------------------ copies


def pickled(value: Any) -> Any:
    """Return the object that another process would receive."""
    return pickle.loads(pickle.dumps(value))


@each_value
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_has_the_same_class_and_content(value: Serializable, copied: Callable[[Any], Any]) -> None:
    """A copy, a deep copy and a pickled copy have the same class and the same content."""
    other = copied(value)
    assert type(other) is type(value)
    assert other.to_dict() == value.to_dict()


def test_equal_values_stay_equal() -> None:
    """Copies of equal values are equal, and an image of a result equals the image of its task."""
    for value in (TASK, RESULT, RESULT.images[0], STATS, BLOCKING):
        assert pickled(value) == value
    assert hash(pickled(BLOCKING)) == hash(BLOCKING)
    assert (BLOCKING != RESULT, BLOCKING.task != BLOCKING) == (True, True)
    assert RESULT.images == TASK.images
    assert TASK.images[0] == RESULT.images[0]
    assert hash(TASK.images[0]) == hash(RESULT.images[0])
    assert TASK.images[0] != RESULT.images[1]


async def test_a_pickled_result_says_that_it_has_no_client(tmp_path: Path) -> None:
    """A copy in another process cannot save or read, and the error says what to do."""
    other = pickled(RESULT)
    for call in (lambda: other.save(tmp_path), other.read, other.images[0].read):
        with pytest.raises(KlingError, match="no client"):
            await call()


def test_a_result_with_an_unpicklable_photo_can_be_pickled(tmp_path: Path) -> None:
    """An open file becomes its path, a view becomes bytes, and a file without a path is dropped."""
    path = tmp_path / "dog.png"
    path.write_bytes(b"png")
    with path.open("rb") as named, tempfile.TemporaryFile() as nameless:
        for source, expected in ((named, str(path)), (memoryview(b"png"), b"png"), (nameless, None)):
            request = ExpandRequest(source, Ratios(up=0.5), "a park")
            for value in (ExpandResult(TASK, request), Outcome(0, request)):
                other = pickled(value)
                copy.deepcopy(value)
                assert (other.request and other.request.image) == expected
                assert expected is None or other.request.prompt == "a park"


def outcome_of(number: int) -> Outcome:
    """Return an outcome, as a worker process would."""
    return Outcome(number, REQUEST, RESULT)


def test_a_worker_process_returns_an_outcome() -> None:
    """The parent process receives the worker's outcome unchanged."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(outcome_of, 7).result().to_dict() == outcome_of(7).to_dict()
