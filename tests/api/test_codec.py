"""Encoding of requests and decoding of responses, against the documented examples and arbitrary input."""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.api import codec
from kling_expand.api.codec import Response
from kling_expand.errors import (
    APIError,
    AuthenticationError,
    BadRequest,
    DuplicateTask,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    ServerError,
    TaskNotFound,
)
from kling_expand.geometry import Ratios, Towards
from kling_expand.models import BalanceDeduction, Dialect, ExpandRequest, Image, Status, Task, request_fields

SAMPLES = Path(__file__).parents[1] / "samples"
TASK_ID = "930810057590833241"
URL = "https://p1-kling.klingai.com/expand/930810057590833241-{}.png"

DOG = Task(
    task_id=TASK_ID,
    task_status="succeed",
    external_task_id="dog-0001",
    images=(Image(0, URL.format(0)),),
    final_unit_deduction="16",
    watermark=True,
    created_at=1722769557708,
    updated_at=1722769557708,
)
MARKED = Image(0, URL.format(0), URL.format(0).replace(".png", "-watermark.png"))


def sample(name: str) -> Response:
    """Return a recorded response with HTTP status 200."""
    return Response(200, {}, (SAMPLES / f"{name}.json").read_bytes())


def response(data: Any, status: int = 200, **envelope: Any) -> Response:
    """Return a response with *data* in its envelope."""
    whole = {"code": 0, "message": "SUCCEED", "request_id": "r", "data": data} | envelope
    return Response(status, {}, json.dumps(whole).encode())


def task(**fields: Any) -> Task:
    """Return the task decoded from a response with these fields."""
    return codec.decode_task(response({"task_id": "1", "task_status": "processing"} | fields))


# ------------------------------------------------------------------ recorded samples


def test_the_documented_create_is_read() -> None:
    """Every value of the documented example is decoded."""
    expected = Task(
        task_id=TASK_ID,
        task_status="submitted",
        external_task_id="dog-0001",
        created_at=1722769557708,
        updated_at=1722769557708,
    )
    assert codec.decode_task(sample("editing-create")) == expected


@pytest.mark.parametrize("name", ["editing-query", "editing-query-object"])
def test_the_documented_query_is_read_in_both_shapes(name: str) -> None:
    """`data` may be an object or an array with one element."""
    assert codec.decode_task(sample(name)) == DOG


def test_the_documented_list_is_read() -> None:
    """A list page contains the same task, here with a watermarked picture."""
    assert codec.decode_tasks(sample("editing-list")) == (evolve(DOG, images=(MARKED,)),)


def test_a_response_of_the_direction_dialect_is_read() -> None:
    """A response in the direction dialect is decoded to two pictures without watermarks."""
    images = tuple(Image(index, URL.format(index)) for index in (0, 1))
    assert codec.decode_task(sample("direction-query")) == evolve(DOG, images=images, watermark=None)


@pytest.mark.parametrize(
    ("name", "request_", "expansion"),
    [
        (
            "editing-create",
            ExpandRequest("", Ratios(1), prompt="", n=2),
            Ratios(up=0.1495, down=0.1495, left=0.6547, right=0.6547),
        ),
        (
            "direction-right",
            ExpandRequest("", Ratios(1), prompt="Continue the mountain landscape with more trees"),
            Towards("right"),
        ),
        (
            "direction-all",
            ExpandRequest("", Ratios(1), prompt="Office environment with desk and window"),
            Towards("all", ratio=1.3),
        ),
        ("direction-top-bottom", ExpandRequest("", Ratios(1), n=3), Towards("top,bottom", ratio=1.4)),
    ],
)
def test_requests_match_the_documented_bodies(
    name: str, request_: ExpandRequest, expansion: Ratios | Towards
) -> None:
    """Each documented curl body is encoded field for field, except for defaults that it states explicitly."""
    expected = json.loads((SAMPLES / f"{name}.request.json").read_bytes())
    head, tail = codec.encode(request_, expansion, "")
    sent = json.loads(head + expected["image"].encode() + tail)
    assert {"n": 1, "external_task_id": ""} | expected == sent


# ------------------------------------------------------------------ requests

geometries = st.one_of(
    st.builds(Ratios, up=st.floats(0, 0.7), left=st.floats(0.01, 0.7)),
    st.builds(Towards, st.sampled_from(["left", "right", "all", "top,bottom"]), ratio=st.floats(1.01, 1.7)),
)
requests = st.builds(
    ExpandRequest,
    st.just("dog.png"),
    st.just(Ratios(up=1)),
    prompt=st.none() | st.text(max_size=50),
    n=st.integers(1, 9),
    watermark=st.booleans(),
    callback_url=st.none() | st.just("https://example.com/?a=1&b=\u00fc"),
)
KNOWN = {
    "image", "prompt", "n", "watermark_info", "callback_url", "external_task_id", "direction",
    "expansion_ratio", "up_expansion_ratio", "down_expansion_ratio", "left_expansion_ratio",
    "right_expansion_ratio",
}  # fmt: skip


def refuse_constant(word: str) -> None:
    """Fail on NaN and Infinity, which JSON does not have."""
    raise AssertionError(word)


@given(requests, geometries)
def test_a_body_has_only_documented_fields(request: ExpandRequest, expansion: Ratios | Towards) -> None:
    """A body contains exactly the fields that are set, and each of them is documented."""
    head, tail = codec.encode(request, expansion, "kx-1")
    body = head + b"aGk=" + tail
    sent = json.loads(body, parse_constant=refuse_constant)
    assert body.isascii()
    assert set(sent) <= KNOWN
    assert None not in sent.values()
    assert (sent["image"], sent["n"], sent["external_task_id"]) == ("aGk=", request.n, "kx-1")
    assert sent.get("prompt") == request.prompt
    assert sent.get("callback_url") == request.callback_url
    assert sent.get("watermark_info") == ({"enabled": True} if request.watermark else None)
    if isinstance(expansion, Towards):
        assert (sent["direction"], sent["expansion_ratio"]) == (expansion.direction, expansion.ratio)
    else:
        sides = ("up", "down", "left", "right")
        assert [sent[f"{side}_expansion_ratio"] for side in sides] == [getattr(expansion, s) for s in sides]


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40))
def test_an_id_stays_one_path_segment(any_id: str) -> None:
    """An id with slashes, question marks or percent signs stays one segment of the path."""
    if any_id in {".", ".."}:
        return
    path = codec.task_path(Dialect.EDITING, any_id)
    stem, _, last = path.rpartition("/")
    assert stem == "/v1/images/editing/expand"
    assert unquote(last) == any_id
    assert last.isascii()
    assert not set("?#&") & set(last)


@pytest.mark.parametrize("any_id", ["", ".", "..", "a\nb", "\x00", "\ud800"])
def test_an_id_that_would_change_the_path_is_refused(any_id: str) -> None:
    """An id that would lead to another resource, or that cannot be encoded, is refused."""
    with pytest.raises(InvalidRequest, match="id"):
        codec.task_path(Dialect.EDITING, any_id)


def test_paths_match_the_documentation() -> None:
    """Each dialect has its own resource."""
    assert codec.create_path(Dialect.EDITING) == "/v1/images/editing/expand"
    assert codec.create_path(Dialect.DIRECTION) == "/v1/images/expand"
    assert codec.task_path(Dialect.DIRECTION, "7") == "/v1/images/expand/7"


# ------------------------------------------------------------------ fingerprints and ids


@given(requests, requests, geometries, geometries, st.sampled_from("ab"), st.sampled_from("ab"))
def test_fingerprints_differ_if_the_result_or_price_may_differ(  # noqa: PLR0917 - three things, twice
    one: ExpandRequest,
    two: ExpandRequest,
    wide: Ratios | Towards,
    high: Ratios | Towards,
    first: str,
    second: str,
) -> None:
    """Two jobs share a fingerprint if and only if everything that affects the result or price is equal."""

    def matters(request: ExpandRequest) -> tuple[Any, ...]:
        return request.prompt, request.n, request.watermark

    same = (matters(one), wide, first) == (matters(two), high, second)
    assert (codec.fingerprint(one, wide, first) == codec.fingerprint(two, high, second)) is same


@given(requests, geometries)
def test_a_fingerprint_ignores_names(request: ExpandRequest, expansion: Ratios | Towards) -> None:
    """An id, a key or a callback URL does not change the fingerprint."""
    renamed = evolve(request, key="k", external_task_id="x", callback_url="http://elsewhere.example")
    assert codec.fingerprint(request, expansion, "d") == codec.fingerprint(renamed, expansion, "d")


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.integers(1, 99)), unique=True, max_size=8))
def test_external_ids_are_stable_and_distinct(jobs: list[tuple[str, str, str, int]]) -> None:
    """Each attempt of each job has its own stable id, which is safe in a path and in a log line."""
    ids = [codec.external_id(*job) for job in jobs]
    assert len(set(ids)) == len(jobs)
    assert ids == [codec.external_id(*job) for job in jobs]
    assert all(each.isascii() and each.replace("-", "").isalnum() and len(each) <= 64 for each in ids)


def test_external_ids_are_the_same_in_every_version() -> None:
    """A job keeps the id that an earlier version wrote to a journal."""
    assert codec.external_id("run", "dog", "f" * 64) == "kx-fb62ed41a808984390e7e4cdad513cf6"


def test_fingerprints_are_the_same_in_every_version() -> None:
    """A job keeps its fingerprint in later versions, even if requests get new fields."""
    plain = codec.fingerprint(ExpandRequest("a", Ratios(1)), Ratios(up=0.5), "d" * 64)
    assert plain == "f47425ff2efbe45ed47e3a59ca29f0bf42478bd8d1d211a826290d2e297c9f7d"
    full = ExpandRequest(
        "a", Ratios(1), "sky", n=3, watermark=True, callback_url="https://x.example", key="k"
    )
    digest = "76607bc8b1b209299ed9bdfb93f4645d3cb8da5f3687e28016c12b1b029fa90e"
    assert codec.fingerprint(full, Ratios(left=0.25, right=0.25), "d" * 64) == digest
    empty = ExpandRequest("a", Ratios(1), "", n=2)
    digest = "94c17c719bdf0858b550b75da1ed01b2215218715ff3cb9ffd82e112a74c58d4"
    assert codec.fingerprint(empty, Towards("left,right"), "d" * 64) == digest


# ------------------------------------------------------------------ responses

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "task_id", "task_status", "task_status_msg", "task_info", "task_result", "watermark_info",
    "final_unit_deduction", "final_balance_deduction", "created_at", "updated_at",
)  # fmt: skip
tasks_of_any_kind = st.fixed_dictionaries(
    {"task_id": json_values | st.just("1"), "task_status": json_values | st.just("processing")},
    optional=dict.fromkeys(FIELDS[2:], json_values)
    | {"task_result": st.fixed_dictionaries({"images": json_values | st.lists(json_values, max_size=2)})},
)
statuses = st.sampled_from([200, 201, 204, 301, 302, 400, 401, 403, 404, 413, 429, 500, 502, 503, 504])


def outcome(decode: Callable[[Response], Any], given_: Response) -> Any:
    """Return what *decode* returns, or the `APIError` that it raises."""
    try:
        return decode(given_)
    except APIError as error:
        return error


def accept(given_: Response) -> None:
    """Check that a response leads to a task, or to an `APIError` that can be printed."""
    found = outcome(codec.decode_task, given_)
    if isinstance(found, APIError):
        assert found.status == given_.status
        assert str(found)
    else:
        assert given_.status < 400
        assert found.task_id
        assert found.status in Status
        assert found.units is None or found.units.is_finite()
        assert codec.unpack(codec.pack(found)) == found
        assert codec.task_path(Dialect.EDITING, found.task_id)
    page = outcome(codec.decode_tasks, given_)
    assert isinstance(page, tuple) or page.status == given_.status


@given(st.binary(max_size=200), statuses)
def test_any_bytes_give_a_task_or_an_api_error(body: bytes, status: int) -> None:
    """Any bytes decode to a task or raise an `APIError`."""
    accept(Response(status, {}, body))


@given(json_values, json_values, json_values, statuses)
def test_any_envelope_gives_a_task_or_an_api_error(code: Any, message: Any, data: Any, status: int) -> None:
    """An envelope of arbitrary JSON decodes to a task or raises an `APIError`."""
    accept(response(data, status, code=code, message=message, request_id=message))


@given(tasks_of_any_kind, st.booleans(), statuses)
def test_any_task_fields_give_a_task_or_an_api_error(data: Any, listed: bool, status: int) -> None:  # noqa: FBT001
    """A task with fields of any type decodes to a task or raises an `APIError`."""
    accept(response([data] if listed else data, status))


ENVELOPES = ["{}", '{{"code":1200,"message":{}}}', '{{"code":0,"data":{}}}']
ENVELOPES += ['{{"code":0,"data":{{"task_id":"1","task_status":"x","task_info":{}}}}}']


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [50, 500, 900, 990, 5_000, 200_000])
@pytest.mark.parametrize("place", ENVELOPES)
def test_deep_nesting_is_handled(opening: str, depth: int, place: str) -> None:
    """Nesting that would exhaust the stack leads to a task or an `APIError`."""
    closing = "]" if opening == "[" else "}"
    accept(Response(200, {}, place.format(opening * depth + "1" + closing * depth).encode()))


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 5000])
@pytest.mark.parametrize("name", ["code", "created_at", "task_id", "final_unit_deduction", "index"])
def test_huge_numbers_are_handled(name: str, number: str) -> None:
    """Numbers beyond every limit lead to a task or an `APIError`."""
    image = {"index": 0, "url": "u"}
    data = {"task_id": "1", "task_status": "succeed", "task_result": {"images": [image]}}
    whole = {"code": 0, "data": data}
    (whole if name == "code" else image if name == "index" else data)[name] = "HERE"
    accept(Response(200, {}, json.dumps(whole).replace('"HERE"', number).encode()))


def test_unknown_fields_are_ignored() -> None:
    """Unknown fields are accepted, because the service may add some."""
    assert task(task_result={"images": [{"index": 1, "url": "u", "new": {}}], "new": 1}, new=[2]).images == (
        Image(1, "u"),
    )


def test_null_and_empty_mean_absent() -> None:
    """Optional fields may be missing, null or empty, all with the same meaning."""
    nothing = task()
    assert nothing == Task("1", "processing")
    assert task(**dict.fromkeys(FIELDS[2:])) == nothing
    empty = {"task_status_msg": "", "final_unit_deduction": "", "task_info": {"external_task_id": ""}}
    assert task(**empty, task_result={"images": []}) == nothing
    assert task(task_info={}, task_result={}, watermark_info={}) == nothing


def test_ids_and_amounts_may_be_numbers() -> None:
    """Ids and amounts may come as JSON numbers instead of strings."""
    found = task(
        task_id=930810057590833241,
        task_info={"external_task_id": 7},
        final_unit_deduction=16,
        created_at="1722769557708",
    )
    assert (found.task_id, found.external_task_id) == (TASK_ID, "7")
    assert (found.units, found.created_at) == (Decimal(16), 1722769557708)


@pytest.mark.parametrize(
    ("word", "meaning"),
    [(True, True), (False, False), ("false", False), ("true", True), (1, True), (0, False)],
)
def test_a_flag_may_be_text_or_a_number(word: object, meaning: bool) -> None:  # noqa: FBT001
    """A flag that comes as text or as a number keeps its meaning."""
    assert task(watermark_info={"enabled": word}).watermark is meaning


def test_final_balance_deduction_is_decoded() -> None:
    """`final_balance_deduction` is decoded with the decimals that the service sent."""
    price = {"quota": "0.056", "list_price": 0.056, "currency": "USD"}
    expected = BalanceDeduction("0.056", "0.056")
    assert task(final_balance_deduction=price).final_balance_deduction == expected


NO_TASKS: list[Any] = [None, [], {}, "x", 1, [[]], [{"task_id": "1"}], [{"task_status": "x"}]]
NO_TASKS += [[{"task_id": "1", "task_status": "x"}] * 2]
BAD_IDS: list[Any] = ["", " ", "\ud800", "a\nb", None, [], {}, True]
NO_TASKS += [{"task_id": each, "task_status": "x"} for each in BAD_IDS]


@pytest.mark.parametrize("data", NO_TASKS)
def test_a_response_without_a_usable_task_is_a_protocol_error(data: Any) -> None:
    """A response with no task, with two tasks or with an unusable id raises `ProtocolError`."""
    with pytest.raises(ProtocolError) as caught:
        codec.decode_task(response(data))
    assert caught.value.request_id == "r"


@pytest.mark.parametrize("field", ["task_id", "task_status"])
def test_a_protocol_error_names_the_field(field: str) -> None:
    """The error names the required field that is missing."""
    with pytest.raises(ProtocolError, match=f"{field} must be"):
        task(**{field: None})


ODD: list[tuple[str, Any]] = [
    ("created_at", "yesterday"),
    ("updated_at", {}),
    ("created_at", True),
    ("updated_at", 1e400),
    ("watermark_info", False),
    ("watermark_info", {"enabled": "perhaps"}),
    ("task_info", "dog-1"),
    ("task_info", {"external_task_id": ["dog-1"]}),
    ("task_status_msg", {"en": "why"}),
    ("final_unit_deduction", [16]),
    ("final_balance_deduction", "0.05"),
    ("final_balance_deduction", {"quota": {}, "list_price": []}),
    ("task_result", []),
    ("task_result", {"images": "none"}),
]


@pytest.mark.parametrize(("name", "value"), ODD)
def test_a_field_of_a_wrong_type_is_treated_as_absent(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A field of the wrong type is treated as absent and logged. The task and its page are kept."""
    caplog.set_level("DEBUG", logger="kling_expand.api.codec")
    whole = {"task_id": "1", "task_status": "succeed", "created_at": 5} | {name: value}
    found = codec.decode_task(response(whole))
    expected = Task("1", "succeed", created_at=None if name == "created_at" else 5)
    assert evolve(found, final_balance_deduction=None) == expected
    assert found.final_balance_deduction in {None, BalanceDeduction()}
    assert any("is ignored" in record.message for record in caplog.records)
    other = {"task_id": "2", "task_status": "submitted"}
    assert [each.task_id for each in codec.decode_tasks(response([other, whole, other]))] == ["2", "1", "2"]
    page, length = codec.decode_page(response([other, whole, other]), lambda _: "processing")
    assert (set(page), length) == ({"1", "2"}, 3)


@pytest.mark.parametrize("index", [None, "first", [], {}])
def test_a_missing_index_is_replaced_by_the_position(index: Any) -> None:
    """A picture needs only its URL. A missing index is replaced by the position."""
    pictures = [{"index": 0, "url": "u0"}, {"index": index, "url": "u1", "watermark_url": 5.0}]
    assert task(task_result={"images": pictures}).images == (Image(0, "u0"), Image(1, "u1", "5.0"))


@pytest.mark.parametrize(
    "picture", [None, "u", [], {}, {"url": None}, {"url": ""}, {"url": ["u"]}, {"index": 1}]
)
def test_a_picture_without_a_url_is_omitted(picture: Any) -> None:
    """A picture without a URL is omitted, and the others are kept."""
    assert task(task_result={"images": [picture, {"index": 7, "url": "u"}]}).images == (Image(7, "u"),)


@pytest.mark.parametrize("item", [None, "x", [], {}, {"task_id": "1"}, {"task_status": "x"}, {"task_id": []}])
def test_an_unreadable_item_of_a_page_is_skipped(item: Any) -> None:
    """An unreadable item of a list page is skipped, and the other tasks are kept."""
    good = {"task_id": "2", "task_status": "submitted"}
    assert codec.decode_tasks(response([item, good])) == (Task("2", "submitted"),)
    page, length = codec.decode_page(response([item, good]), {"1": "processing", "2": "processing"}.get)
    assert (page, length) == ({"2": Task("2", "submitted")}, 2)


@pytest.mark.parametrize("data", [[], None])
def test_an_empty_page_has_no_tasks(data: Any) -> None:
    """The page after the last one has no tasks."""
    assert codec.decode_tasks(response(data)) == ()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (200, 1302, RateLimited),
        (400, 1302, RateLimited),
        (200, 5000, ServerError),
        (200, 1201, BadRequest),
        (418, 4711, APIError),
        (401, 4711, AuthenticationError),
        (404, 4711, APIError),
        (429, 4711, APIError),
        (429, 1305, APIError),
        (502, 4711, ServerError),
    ],
)
def test_the_code_takes_precedence_over_the_status(status: int, code: int, kind: type[APIError]) -> None:
    """The code decides even with HTTP 200. For an unknown code, the HTTP status decides."""
    with pytest.raises(kind) as caught:
        codec.decode_task(response({"task_id": "1", "task_status": "x"}, status, code=code, message="why"))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status, caught.value.message) == (code, status, "why")
    assert caught.value.request_id == "r"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("external_task_id dog already exists", DuplicateTask),
        ("Already Exist", DuplicateTask),
        ("Task not found by id/external id: 12", TaskNotFound),
        ("image can not be null", BadRequest),
        ("", BadRequest),
    ],
)
def test_the_message_distinguishes_the_two_meanings_of_1201(message: str, kind: type[APIError]) -> None:
    """The message distinguishes the two meanings of 1201, which both come with HTTP 400."""
    with pytest.raises(BadRequest) as caught:
        codec.decode_task(response(None, 400, code=1201, message=message))
    assert type(caught.value) is kind


@pytest.mark.parametrize("code", ["0", "00"])
def test_a_code_may_be_text(code: str) -> None:
    """A code may come as text, as relays send it (observed), for success and for refusals."""
    found = codec.decode_task(response({"task_id": "1", "task_status": "x"}, code=code))
    assert found == Task("1", "x")
    with pytest.raises(DuplicateTask) as caught:
        codec.decode_task(response(None, 400, code="1201", message="dog already exists"))
    assert caught.value.code == 1201


@pytest.mark.parametrize("code", [True, False, "", "zero", " 0", "-0", "0.0", None, [], {}, 0.5])
def test_only_the_number_zero_is_success(code: Any) -> None:
    """A value that only resembles zero means neither success nor a refusal with code 0."""
    with pytest.raises(ProtocolError) as caught:
        codec.decode_task(response({"task_id": "1", "task_status": "x"}, code=code))
    assert caught.value.code is None


NO_ENVELOPE = [b"", b"null", b"[]", b'"x"', b"<html>Bad Gateway</html>", b'{"code":0', b"\xff\xfe", b"{}"]
NO_ENVELOPE += [b'{"code":0}', b'{"data":{"task_id":"1","task_status":"x"}}']


@pytest.mark.parametrize("body", NO_ENVELOPE)
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, ProtocolError),
        (302, ProtocolError),
        (400, APIError),
        (404, NotFound),
        (413, APIError),
        (401, AuthenticationError),
        (403, PermissionDenied),
        (429, RateLimited),
        (500, ServerError),
        (502, ServerError),
    ],
)
def test_a_response_without_an_envelope_is_judged_by_its_status(
    body: bytes, status: int, kind: type[APIError]
) -> None:
    """The HTTP status decides about a proxy's page, a truncated body or an empty body."""
    with pytest.raises(kind) as caught:
        codec.decode_task(Response(status, {"retry-after": "3"}, body))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == (None, status, 3.0)


def test_code_0_with_an_error_status_is_an_error() -> None:
    """Code 0 with HTTP 500 is ambiguous, so it is treated as an error."""
    with pytest.raises(ServerError):
        codec.decode_task(response({"task_id": "1", "task_status": "x"}, 500))


def test_a_refusal_quotes_only_the_beginning_of_a_page() -> None:
    """An error message quotes only the beginning of a large HTML page."""
    with pytest.raises(ProtocolError) as caught:
        codec.decode_task(Response(200, {}, b"<p>" * 400_000))
    assert len(str(caught.value)) < 300


# ------------------------------------------------------------------ headers

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2026 07:29:30 GMT", 90.0),
        ("Wed, 21 Oct 2026 09:29:30 +0200", 90.0),
        ("Wed, 21 Oct 2026 07:29:30 -0000", 90.0),
        ("Wed, 21 Oct 2026 07:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", 1.5),
        ("2.", 2.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("Wed Oct 21 07:29:30 2026", 90.0),
        (".5", None),
        ("1e3", None),
        ("1,5", None),
        ("\u0663", None),
        ("nan", None),
        ("9" * 400, None),
        ("Wed, 99 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    """`Retry-After` may be in seconds, or a date that is compared with the service's clock."""
    assert Response(429, {"retry-after": header, "date": DATE}, b"").retry_after == seconds


def test_a_date_without_a_date_header_uses_the_local_clock() -> None:
    """Without a `Date` header, the date is compared with the local time of arrival, if that is known."""
    assert Response(429, {"retry-after": DATE}, b"", 1792567680.0 - 40).retry_after == 40
    assert Response(429, {"retry-after": DATE, "date": DATE}, b"", 0.0).retry_after == 0
    assert Response(429, {"retry-after": DATE}, b"").retry_after is None
    assert Response(429, {}, b"", 5.0).retry_after is None


def test_the_date_header_is_the_services_time() -> None:
    """The `Date` header is read as Unix seconds, whatever the local time zone."""
    assert Response(200, {"date": DATE}, b"").server_time == 1792567680.0
    assert Response(200, {"date": DATE.replace("GMT", "-0000")}, b"").server_time == 1792567680.0
    assert Response(200, {"date": "yesterday"}, b"").server_time is None
    assert Response(200, {}, b"").server_time is None


# ------------------------------------------------------------------ lines of a journal

texts = st.none() | st.text(max_size=10)
numbers = st.integers(1 - codec.MAX_NUMBER, codec.MAX_NUMBER - 1)  # the numbers that a task can have
tasks = st.builds(
    Task,
    task_id=st.text(min_size=1, max_size=20),
    task_status=st.text(max_size=10),
    task_status_msg=texts,
    external_task_id=texts,
    images=st.lists(st.builds(Image, numbers, st.text(max_size=20), texts), max_size=9).map(tuple),
    final_unit_deduction=texts,
    final_balance_deduction=st.none() | st.builds(BalanceDeduction, texts, texts),
    watermark=st.none() | st.booleans(),
    created_at=st.none() | numbers,
    updated_at=st.none() | numbers,
)


@given(tasks)
def test_packing_a_task_is_reversible(packed: Task) -> None:
    """A packed task is unpacked to an equal task."""
    line = codec.pack(packed)
    assert "\n" not in line
    assert codec.unpack(line) == packed


@given(requests, geometries, st.none() | st.just("mine-1"))
def test_a_stored_request_is_restored(
    request: ExpandRequest, expansion: Ratios | Towards, given_id: str | None
) -> None:
    """A stored request is restored with its photo and key."""
    whole = evolve(request, external_task_id=given_id, geometry=expansion, key="k")
    line = codec.pack_request(whole, expansion)
    assert "\n" not in line
    assert codec.unpack_request(line, "dog.png", "k") == whole


EXTRA = {"new_field": {"a": [1, None, "x"], "b": 1.5}}
OTHERS: dict[type, object] = {str: "https://example.com/x", int: 3, bool: True, Mapping: EXTRA}


@pytest.mark.parametrize("name", [each.name for each in fields(ExpandRequest)[2:]])
def test_every_field_is_stored_and_restored(name: str) -> None:
    """Every field of a request is stored and restored, including fields added later."""
    (field,) = (each for each in request_fields() if each.name == name)
    given_ = ExpandRequest("dog.png", Ratios(up=1), **{"key": "k", name: OTHERS[field.kind]})  # type: ignore[arg-type]  # of any field
    line = codec.pack_request(given_, Ratios(up=1))
    assert codec.unpack_request(line, "dog.png", given_.key or "") == given_


# ------------------------------------------------------------------ unknown fields


def test_extra_fields_are_sent_and_change_the_fingerprint() -> None:
    """Extra fields are sent, and they change the fingerprint, whatever their order."""
    plain, one = ExpandRequest("a", Ratios(up=1)), ExpandRequest("a", Ratios(up=1), extra={"b": 1, "a": {}})
    two = ExpandRequest("a", Ratios(up=1), extra={"a": {}, "b": 1})
    head, tail = codec.encode(one, Ratios(up=1), "id")
    body = json.loads(head + tail)
    assert (body["a"], body["b"], body["n"], body["external_task_id"]) == ({}, 1, 1, "id")
    digests = [codec.fingerprint(each, Ratios(up=1), "photo") for each in (plain, one, two)]
    assert digests[0] != digests[1] == digests[2]


def response_with(data: object) -> codec.Response:
    """Return a response with this `data`."""
    return codec.Response(200, {}, json.dumps({"code": 0, "message": "", "data": data}).encode())


WHOLE: dict[str, Any] = {
    "task_id": "1",
    "task_status": "succeed",
    "task_status_msg": "",
    "task_info": {"external_task_id": "mine"},
    "task_result": {"images": [{"index": 0, "url": "https://a/0.png", "watermark_url": "https://a/w.png"}]},
    "watermark_info": {"enabled": True},
    "final_unit_deduction": "8",
    "final_balance_deduction": {"quota": "1", "list_price": "1"},
    "created_at": 1,
    "updated_at": 2,
}


@pytest.mark.parametrize(
    "more",
    [
        {"queue_position": 3},
        {"task_info": {"external_task_id": "mine", "parent": "0"}},
        {"task_result": {"images": [{"index": 0, "url": "https://a/0.png", "seed": 5}]}},
        {"task_result": {"images": [], "videos": []}},
        {"watermark_info": {"enabled": True, "place": "left"}},
        {"final_balance_deduction": {"quota": "1", "currency": "USD"}},
    ],
)
def test_raw_has_the_unknown_fields(more: dict[str, Any]) -> None:
    """`raw` is the whole task object, also from a list and after storage. It does not affect equality."""
    data = WHOLE | more
    task = codec.decode_task(response_with(data))
    assert task.raw == data
    assert codec.decode_tasks(response_with([data]))[0].raw == data
    assert codec.unpack(codec.pack(task)).raw == data
    assert evolve(task, raw=None) == task
    assert hash(task)
    assert "raw" not in repr(task)


@pytest.mark.parametrize("name", [*WHOLE, None])
def test_a_task_with_only_known_fields_has_no_raw_copy(name: str | None) -> None:
    """A task with only known fields has no raw copy, even if some are missing or invalid."""
    for odd in (None, 5, "text"):
        data = WHOLE if name in {None, "task_id", "task_status"} else WHOLE | {name or "": odd}
        assert codec.decode_task(response_with(data)).raw is None


NEWER: dict[str, Any] = {
    "id": "1",
    "external_id": "mine",
    "status": "succeeded",
    "message": "",
    "create_time": 1,
    "update_time": 2,
    "outputs": [{"type": "image", "url": "https://a/0.png"}],
    "billing": [{"charge_type": "unit", "amount": "8", "package_type": "image"}],
}


def test_the_newer_form_is_read_in_every_response() -> None:
    """Every kind of response may contain the newer form of a task, with its units in `billing`."""
    wanted = Task(
        "1", "succeeded", None, "mine", (Image(0, "https://a/0.png"),), "8", created_at=1, updated_at=2
    )
    assert codec.decode_task(response_with(NEWER)) == codec.decode_task(response_with([NEWER])) == wanted
    assert codec.decode_tasks(response_with([NEWER, WHOLE])) == (
        wanted,
        codec.decode_task(response_with(WHOLE)),
    )
    assert codec.decode_task(response_with(NEWER)).raw == NEWER  # a task has no field for `package_type`
    found, length = codec.decode_page(response_with([NEWER, WHOLE | {"task_id": "2"}]), {"1": "x"}.get)
    assert (found, length) == ({"1": wanted}, 2)
    assert codec.decode_page(response_with([NEWER]), {"1": "succeeded"}.get) == ({"1": None}, 1)
    running = {"id": "1", "status": "processing", "outputs": [], "billing": []}
    assert codec.decode_task(response_with(running)).raw is None


# ------------------------------------------------------------------ limits on a response


def test_at_most_nine_pictures_are_read() -> None:
    """At most nine pictures of a task are read, in both forms."""
    urls = [{"index": index, "url": f"https://a/{index}.png"} for index in range(5000)]
    for data in (WHOLE | {"task_result": {"images": urls}}, NEWER | {"outputs": urls}):
        assert [image.index for image in codec.decode_task(response_with(data)).images] == list(range(9))


def test_a_response_of_too_many_values_is_not_parsed() -> None:
    """A response with too many values is refused before it is parsed."""
    for values in ([{"url": "x"}] * 300_000, [0] * 300_000):
        response = response_with(WHOLE | {"task_result": {"images": values}})
        with pytest.raises(ProtocolError):
            codec.decode_task(response)
    with pytest.raises(ValueError, match="more than 50000 values"):
        codec.parse_json(b"[" + b"0," * 60_000 + b"0]")


@pytest.mark.parametrize("text", ["1." + "9" * 300_000, "1" + "9" * 300_000, '"' + r"\n" * 1_100_000 + '"'])
def test_values_that_are_slow_to_parse_are_refused(text: str) -> None:
    """A very long number or very many escapes are refused, because parsing them would block all threads."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is Python's or ours
        codec.parse_json(text.encode())


def test_a_response_must_be_utf_8() -> None:
    """A byte-order mark is ignored, and text that is not UTF-8 is refused."""
    assert codec.parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "é"}
    for body in ('{"a": 1}'.encode("utf-16"), b'"' + b"\xed\xa0\x80" * 300_000 + b'"'):
        with pytest.raises(UnicodeDecodeError):
            codec.parse_json(body)


def test_at_most_500_tasks_of_a_page_are_read() -> None:
    """At most 500 tasks of a page are read."""
    response = response_with([WHOLE | {"task_id": str(number)} for number in range(600)])
    assert [task.task_id for task in codec.decode_tasks(response)] == [str(number) for number in range(500)]


def test_a_long_message_of_a_refusal_is_truncated() -> None:
    """The message of a refusal is cut to 1,000 characters, because it is logged."""
    body = json.dumps({"code": 1302, "message": "\x1b" * 100_000}).encode()
    with pytest.raises(APIError) as caught:
        codec.decode_task(codec.Response(429, {}, body))
    assert caught.value.message == r"\x1b" * 1000


def test_a_long_text_of_a_task_is_truncated_or_refused() -> None:
    """The failure message and the ids have limited lengths, as errors, logs and file names contain them."""
    failed = WHOLE | {"task_status": "failed", "task_status_msg": "x" * 100_000}
    assert codec.decode_task(response_with(failed)).task_status_msg == "x" * 1000
    assert codec.decode_task(response_with(WHOLE | {"task_id": "7" * 500})).task_id == "7" * 500
    with pytest.raises(ProtocolError, match="at most 500 characters"):
        codec.decode_task(response_with(WHOLE | {"task_id": "7" * 501}))
    body = json.dumps({"code": 1302, "message": "wait", "request_id": "r" * 100_000}).encode()
    with pytest.raises(APIError) as caught:
        codec.decode_task(codec.Response(429, {}, body))
    assert caught.value.request_id == "r" * 500


@pytest.mark.parametrize("text", ["a\nFAKE", "a\x1b[31m", "\u202egnp", "\ud800"])
def test_an_impossible_external_id_is_treated_as_absent(text: str) -> None:
    """An `external_task_id` that could forge a log line is treated as absent."""
    task = codec.decode_task(response_with(WHOLE | {"task_info": {"external_task_id": text}}))
    assert task.external_task_id is None


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63), 10**4000, 1e300, "9" * 4000])
def test_a_number_beyond_64_bits_is_treated_as_absent(number: Any) -> None:
    """A time or an index beyond 64 bits is treated as absent, so it breaks no arithmetic or file name."""
    images = [{"index": number, "url": "https://a/0"}]
    data = WHOLE | {"created_at": number, "updated_at": number, "task_result": {"images": images}}
    task = codec.decode_task(response_with(data))
    assert (task.created_at, task.updated_at) == (None, None)
    assert [image.index for image in task.images] == [0]


def test_a_full_page_of_long_tasks_is_read() -> None:
    """A full page is far below the limits: 500 tasks with nine pictures each and long URLs."""
    images = [
        {"index": i, "url": "https://a/" + "x" * 400, "watermark_url": "https://a/" + "w" * 400}
        for i in range(9)
    ]
    page = [WHOLE | {"task_id": str(n), "task_result": {"images": images}} for n in range(500)]
    response = response_with(page)
    assert len(response.body) > codec.LONG_RESPONSE
    assert len(codec.decode_tasks(response)) == 500
