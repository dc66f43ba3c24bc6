"""Callbacks: which are trusted, which are refused, and which forms of the body can be read."""

import base64
import gc
import hmac
import json
import traceback
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from kling_expand.api import codec
from kling_expand.errors import ConfigurationError, WebhookError
from kling_expand.models import BalanceDeduction, Image, Status, Task
from kling_expand.webhooks import MAX_BODY, MAX_ID, WebhookEvent, Webhooks

# The published vector (kling-api: Callbacks).
SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
NOW = 1781080794
VECTOR_BODY = (
    b'{"id":"1234567890","status":"succeeded","message":"",'
    b'"create_time":1781080778802,"update_time":1781080794151}'
)
VECTOR = {
    "webhook-id": "9876543210",
    "webhook-timestamp": str(NOW),
    "webhook-signature": "v1,UsKlJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4=",
}
OTHER = "whsec_" + base64.b64encode(b"another secret of thirty-two byte").decode()

LEGACY: dict[str, Any] = {
    "task_id": "930810057590833241",
    "task_status": "succeed",
    "task_status_msg": "",
    "task_info": {"external_task_id": "job-7"},
    "task_result": {"images": [{"index": 0, "url": "https://cdn.example/0.png"}]},
    "final_unit_deduction": "8",
    "created_at": 1781080778802,
    "updated_at": 1781080794151,
}
BODY = json.dumps(LEGACY).encode()


def signed(
    body: bytes = BODY, *, secret: str = SECRET, webhook_id: str = "msg_1", at: int = NOW
) -> dict[str, str]:
    """Return the headers of *body*, signed by the independent implementation."""
    when = datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at),
        "webhook-signature": Webhook(secret).sign(webhook_id, when, body.decode()),
    }


def reader(*secrets: str, **options: Any) -> Webhooks:
    return Webhooks(*(secrets or (SECRET,)), clock=lambda: float(NOW), **options)


def test_the_published_vector_verifies() -> None:
    """The vendor's own example is verified and gives the task that it describes."""
    task = Task(
        task_id="1234567890",
        task_status="succeeded",
        created_at=1781080778802,
        updated_at=1781080794151,
    )
    call = reader().parse(VECTOR, VECTOR_BODY)
    assert WebhookEvent(task, verified=True, webhook_id="9876543210", repeated=False) == call
    assert Status.SUCCEED is call.task.status


@given(
    key=st.binary(min_size=1, max_size=64),
    note=st.text(st.characters(codec="utf-8")),
    at=st.integers(-300, 300),
)
def test_signatures_of_an_independent_implementation_are_accepted(key: bytes, note: str, at: int) -> None:
    """Callbacks with any key, any text and any time within the window are verified."""
    secret = "whsec_" + base64.b64encode(key).decode()
    body = json.dumps(LEGACY | {"task_status_msg": note}, ensure_ascii=False).encode()
    call = reader(secret).parse(signed(body, secret=secret, at=NOW + at), body)
    assert call.verified
    assert (note or None) == call.task.task_status_msg


@pytest.mark.parametrize(
    "secret",
    [SECRET.removeprefix("whsec_"), SECRET.rstrip("="), f"  {SECRET}\n"],
    ids=["bare", "unpadded", "blanks"],
)
def test_prefix_padding_and_blanks_of_a_secret_do_not_matter(secret: str) -> None:
    """A secret without its prefix or padding, or with surrounding blanks, is the same key."""
    assert reader(secret).parse(VECTOR, VECTOR_BODY).verified


@pytest.mark.parametrize("change_case", [str.upper, str.title, str.lower])
def test_header_names_may_have_any_case_and_order(change_case: Any) -> None:
    """Neither the case nor the order of header names matters."""
    headers = {change_case(name): value for name, value in reversed(signed().items())}
    assert reader().parse({"Host": "example", **headers}, BODY).verified


def test_a_secret_can_be_replaced_without_losing_a_callback() -> None:
    """With two secrets either signature is accepted, and with two signatures either secret."""
    both = reader(SECRET, OTHER)
    assert both.parse(signed(secret=SECRET, webhook_id="a"), BODY).verified
    assert both.parse(signed(secret=OTHER, webhook_id="b"), BODY).verified
    mine, theirs = (signed(secret=secret)["webhook-signature"] for secret in (SECRET, OTHER))
    headers = signed() | {"webhook-signature": f"v1a,AAAA v2,{mine[3:]} junk {theirs} {mine}"}
    assert reader(SECRET).parse(headers, BODY).verified
    assert reader(OTHER).parse(headers, BODY).verified


@pytest.mark.parametrize("drift", [-300, 300])
def test_the_time_window_includes_its_edges(drift: int) -> None:
    """A callback that is exactly five minutes early or late is accepted."""
    assert reader().parse(signed(at=NOW + drift), BODY).verified


def changed(**headers: str | None) -> dict[str, str]:
    """Return correctly signed headers with some of them replaced, or removed (None)."""
    merged: dict[str, str | None] = {**signed()}
    merged |= {name.replace("_", "-"): value for name, value in headers.items()}
    return {name: value for name, value in merged.items() if value is not None}


SIGNATURE = signed()["webhook-signature"]
FORGED: dict[str, tuple[Mapping[str, str], bytes]] = {
    "no headers": ({}, BODY),
    "no id": (changed(webhook_id=None), BODY),
    "no timestamp": (changed(webhook_timestamp=None), BODY),
    "no signature": (changed(webhook_signature=None), BODY),
    "empty id": (signed(webhook_id=""), BODY),
    "empty signature": (changed(webhook_signature=""), BODY),
    "two ids": (changed() | {"Webhook-Id": "msg_1"}, BODY),
    "two signatures": (changed() | {"WEBHOOK-SIGNATURE": SIGNATURE}, BODY),
    "another id": (changed(webhook_id="msg_2"), BODY),
    "another time": (changed(webhook_timestamp=str(NOW + 1)), BODY),
    "stale": (signed(at=NOW - 301), BODY),
    "future": (signed(at=NOW + 301), BODY),
    "stale, its time freshened": (signed(at=NOW - 9000) | {"webhook-timestamp": str(NOW)}, BODY),
    "time in milliseconds": (changed(webhook_timestamp=f"{NOW}000"), BODY),
    "time not a number": (changed(webhook_timestamp="nan"), BODY),
    "time infinite": (changed(webhook_timestamp="inf"), BODY),
    "time with a fraction": (changed(webhook_timestamp=f"{NOW}.0"), BODY),
    "time with a sign": (changed(webhook_timestamp=f"+{NOW}"), BODY),
    "time in other digits": (changed(webhook_timestamp="".join(chr(0x660 + int(c)) for c in str(NOW))), BODY),
    "time of a thousand digits": (changed(webhook_timestamp="9" * 5000), BODY),
    "wrong secret": (signed(secret=OTHER), BODY),
    "body modified": (signed(), BODY.replace(b"succeed", b"failed ")),
    "body with one blank more": (signed(), BODY + b" "),
    "body re-ordered": (signed(), json.dumps(dict(reversed(LEGACY.items()))).encode()),
    "body truncated": (signed(), BODY[:-1]),
    "body empty": (signed(), b""),
    "wrong version": (changed(webhook_signature=SIGNATURE.replace("v1,", "v2,")), BODY),
    "version in capitals": (changed(webhook_signature=SIGNATURE.replace("v1,", "V1,")), BODY),
    "no version": (changed(webhook_signature=SIGNATURE.removeprefix("v1,")), BODY),
    "only the version": (changed(webhook_signature="v1,"), BODY),
    "signature truncated": (changed(webhook_signature=SIGNATURE[:-6]), BODY),
    "signature extended": (changed(webhook_signature=SIGNATURE + "AAAA"), BODY),
    "signatures joined by a comma": (changed(webhook_signature=f"v1,AAAA,{SIGNATURE}"), BODY),
    "signature of other letters": (changed(webhook_signature="v1,ünïcode\udcff"), BODY),
    "signed as text of nothing": (changed(webhook_signature=signed(b"")["webhook-signature"]), BODY),
    "parts shifted across the dots": (
        signed(webhook_id=f"msg_1.{NOW}", at=5) | {"webhook-id": "msg_1", "webhook-timestamp": str(NOW)},
        b"5." + BODY,
    ),
    "headers swapped": (changed(webhook_id=str(NOW), webhook_timestamp="msg_1"), BODY),
    "id outside ASCII": (signed(webhook_id="mé"), BODY),
    "id not even text": (changed(webhook_id="\udcff"), BODY),
    "id too long": (signed(webhook_id="m" * (MAX_ID + 1)), BODY),
    "oversized": (signed(BODY + b" " * MAX_BODY), BODY + b" " * MAX_BODY),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_callback_is_refused(case: str) -> None:
    """A callback is refused unless its id, time and body were signed recently with the secret."""
    headers, body = FORGED[case]
    webhooks = reader()
    with pytest.raises(WebhookError):
        webhooks.parse(headers, body)
    assert not webhooks.parse(signed(), BODY).repeated, "a refused call must not be remembered"


@given(data=st.data())
def test_any_changed_byte_breaks_the_signature(data: st.DataObject) -> None:
    """The signature covers every byte of the body."""
    where = data.draw(st.integers(0, len(BODY) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != BODY[where]))
    with pytest.raises(WebhookError, match="no signature"):
        reader().parse(signed(), BODY[:where] + bytes([byte]) + BODY[where + 1 :])


@pytest.mark.parametrize(
    "body", [b'{"task_id":"\xff"}', b"\xff\xfe\x00", b"<html>", b"[]", b"null", b'"text"', b"7"]
)
@pytest.mark.parametrize("secrets", [(), (SECRET,)], ids=["unsigned", "signed"])
def test_a_body_without_a_task_is_refused(body: bytes, secrets: tuple[str, ...]) -> None:
    """A body that is not UTF-8, not JSON or not a task is refused, even with a valid signature."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))  # the independent implementation signs only text
    mac = base64.b64encode(hmac.digest(key, f"m.{NOW}.".encode() + body, "sha256")).decode()
    headers = {"webhook-id": "m", "webhook-timestamp": str(NOW), "webhook-signature": f"v1,{mac}"}
    with pytest.raises(WebhookError, match="does not describe a task"):
        Webhooks(*secrets, clock=lambda: float(NOW)).parse(headers, body)


@pytest.mark.parametrize(
    "sent",
    [
        {},
        LEGACY | {"task_id": None},
        LEGACY | {"task_id": 7},
        LEGACY | {"task_id": ""},
        LEGACY | {"task_status": ["succeed"]},
        {"id": "1"},
        {"id": None, "status": "succeeded"},
        {"code": 1201, "message": "no", "data": LEGACY},
        {"code": 0, "data": None},
        {"code": 0, "data": [[]]},
    ],
)
def test_a_task_without_its_fields_is_refused(sent: Any) -> None:
    """An id or a status of another type is refused, not converted."""
    with pytest.raises(WebhookError, match="does not describe a task"):
        Webhooks().parse({}, json.dumps(sent).encode())


@pytest.mark.parametrize(
    "fields", [LEGACY | {"created_at": "soon"}, {"id": "1", "status": "failed", "create_time": float("inf")}]
)
def test_optional_fields_of_a_wrong_type_count_as_absent(fields: Any) -> None:
    """Only the id and the status are required, and other fields of a wrong type count as absent."""
    call = Webhooks().parse({}, json.dumps(fields).encode())
    assert call.task.created_at is None


@pytest.mark.parametrize("depth", [500, 900, 5000, 100_000])
@pytest.mark.parametrize("field", ["task_status_msg", "type", "created_at", "extra"])
def test_a_deeply_nested_body_is_handled(depth: int, field: str) -> None:
    """Whatever the depth, the result is an event or a `WebhookError`, and the next callback is read."""
    nested = b"[" * depth + b"]" * depth
    bodies = [
        b'{"task_id":"1","task_status":"failed","' + field.encode() + b'":' + nested + b"}",
        b'{"id":"1","status":"succeeded","outputs":[{"' + field.encode() + b'":' + nested + b"}]}",
    ]
    webhooks = Webhooks()
    for body in bodies:
        try:
            assert webhooks.parse({}, body).needs_poll
        except WebhookError:
            assert webhooks.parse({}, BODY)


HEADER_NAMES = st.sampled_from(["webhook-id", "Webhook-Timestamp", "WEBHOOK-SIGNATURE", "host"]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*LEGACY, "id", "outputs", "url"]), inner)
    ),
    max_leaves=8,
)
FIELDS = [*LEGACY, "id", "status", "message", "create_time", "outputs", "code", "data"]
TASKLIKE = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON))


@given(
    headers=st.dictionaries(HEADER_NAMES, st.text() | st.just(str(NOW)) | st.just(SIGNATURE)),
    body=st.binary() | st.builds(lambda sent: json.dumps(sent).encode(), TASKLIKE) | st.just(BODY),
    secrets=st.sampled_from([(), (SECRET,)]),
)
def test_any_input_gives_an_event_or_a_webhook_error(
    headers: dict[str, str], body: bytes, secrets: tuple[str, ...]
) -> None:
    """Any input gives an event or a `WebhookError`, and nothing is verified without a signature."""
    try:
        call = Webhooks(*secrets, clock=lambda: float(NOW)).parse(headers, body)
    except WebhookError:
        return
    assert not call.verified
    assert call.needs_poll


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text())


class Unmappable:
    """Headers whose names and values cannot be unpacked."""

    def items(self) -> list[int]:
        return [7]


@given(
    headers=ODD
    | st.dictionaries(st.text() | st.binary() | st.integers() | st.none(), ODD)
    | st.builds(Unmappable)
    | st.fixed_dictionaries(dict.fromkeys(VECTOR, ODD)),
    body=ODD | st.just(VECTOR_BODY) | st.binary().map(bytearray),
    secrets=st.sampled_from([(), (SECRET,)]),
)
def test_headers_and_bodies_of_wrong_types_raise_a_webhook_error(
    headers: Any, body: Any, secrets: tuple[str, ...]
) -> None:
    """Headers that are not a mapping and bodies that are not bytes raise only `WebhookError`."""
    with suppress(WebhookError):
        Webhooks(*secrets, clock=lambda: float(NOW)).parse(headers, body)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_may_be_any_bytes_like_object(kind: Any) -> None:
    """A body may be bytes, a bytearray or a memoryview."""
    assert reader().parse(signed(), kind(BODY)).verified


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_body_must_be_utf_8(encoding: str) -> None:
    """Only a body in UTF-8 is read, so it can be passed on as text."""
    with pytest.raises(WebhookError):
        Webhooks().parse({}, BODY.decode().encode(encoding))


def test_unsigned_callbacks_do_not_increase_the_memory() -> None:
    """Unsigned and forged callbacks with ever new texts do not increase the memory of the process."""
    webhooks, other = Webhooks(), reader()

    def flood(start: int) -> None:
        for number in range(start, start + 2_000):
            text = f"made up {number} " + "x" * 200
            body = json.dumps(LEGACY | {"task_id": text, "task_status": text, "task_status_msg": text})
            webhooks.parse({}, body.encode())
            with pytest.raises(WebhookError):
                other.parse(changed(webhook_id=f"made up {number}"), body.encode())

    flood(0)  # caches are filled
    gc.collect()
    tracemalloc.start()
    try:
        flood(10_000)
        gc.collect()
        grown, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 50_000


# ---------------------------------------------------------------------------- repeated callbacks


def test_a_repeated_callback_is_marked() -> None:
    """A callback with a known id is marked as repeated, whatever its body, and another id is not."""
    webhooks = reader()
    assert [webhooks.parse(signed(webhook_id=name), BODY).repeated for name in ("a", "a", "a", "b")] == [
        False,
        True,
        True,
        False,
    ]


def test_only_a_verified_and_readable_callback_is_remembered() -> None:
    """A forged or unreadable callback does not mark the genuine callback with its id as repeated."""
    webhooks = reader()
    for headers, body in [(signed(secret=OTHER), BODY), (signed(b"{}"), b"{}")]:
        with pytest.raises(WebhookError):
            webhooks.parse(headers, body)
    assert not webhooks.parse(signed(), BODY).repeated


def test_only_the_newest_ids_are_remembered() -> None:
    """The id that was seen longest ago is forgotten first, and a repeated id counts as seen again."""
    webhooks = reader(remember=2)
    assert [
        webhooks.parse(signed(webhook_id=name), BODY).repeated for name in ("a", "b", "a", "c", "a", "b")
    ] == [False, False, True, False, True, False]
    assert len(webhooks._seen) == 2


def test_remembering_can_be_turned_off() -> None:
    """With ``remember=0`` no callback is marked as repeated."""
    webhooks = reader(remember=0)
    assert [webhooks.parse(signed(), BODY).repeated for _ in range(2)] == [False, False]


def test_without_secrets_every_callback_is_unverified() -> None:
    """Without secrets every callback, even a signed one, is unverified, has no id and is never repeated."""
    webhooks = Webhooks()
    for headers in ({}, signed(), signed()):
        assert WebhookEvent(codec.parse_task(LEGACY), verified=False) == webhooks.parse(headers, BODY)


# ---------------------------------------------------------------------------- bodies


def newer(status: str = "succeeded", **fields: Any) -> bytes:
    return json.dumps({"id": "1", "status": status, "message": ""} | fields).encode()


def enveloped(data: Any) -> bytes:
    return json.dumps({"code": 0, "message": "SUCCEED", "request_id": "r", "data": data}).encode()


def test_the_older_body_is_the_bare_task() -> None:
    """The older body gives the same task as the response to a query."""
    task = Webhooks().parse({}, BODY).task
    assert codec.parse_task(LEGACY) == task
    assert (task.external_task_id, task.final_unit_deduction) == ("job-7", "8")


def test_a_body_may_be_in_an_envelope() -> None:
    """Either body may be in the envelope that responses have."""
    assert codec.parse_task(LEGACY) == Webhooks().parse({}, enveloped(LEGACY)).task
    bare = Webhooks().parse({}, newer())
    assert bare == Webhooks().parse({}, enveloped(json.loads(newer())))


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("succeeded", Status.SUCCEED),
        ("succeed", Status.SUCCEED),
        ("failed", Status.FAILED),
        ("processing", Status.PROCESSING),
        ("paused", Status.UNKNOWN),
    ],
)
def test_the_newer_body_means_the_same(word: str, status: Status) -> None:
    """The statuses of the newer body map to the older ones, and its message is kept."""
    task = Webhooks().parse({}, newer(word, message="why", create_time=1, update_time=2)).task
    assert (status, "why", 1, 2) == (task.status, task.task_status_msg, task.created_at, task.updated_at)


A, B = "https://cdn.example/a.png", "http://cdn.example/b.png"


@pytest.mark.parametrize(
    ("outputs", "images"),
    [
        ([{"url": A}, {"url": B}], [(0, A), (1, B)]),
        ([{"index": 1, "url": A}, {"index": 0, "url": B}], [(1, A), (0, B)]),
        ([{"index": 0, "url": A}, {"index": 0, "url": B}], [(0, A), (1, B)]),
        ([{"index": 5, "url": A}, {"url": B}], [(0, A), (1, B)]),
        ([{"index": "x", "url": A}], [(0, A)]),
        ([{"index": True, "url": A}], [(0, A)]),
        ([{"index": -1, "url": A}], [(0, A)]),
        ([{"type": "image", "url": A}, {"type": "IMAGE", "url": B}], [(0, A), (1, B)]),
        ([{"type": "video", "url": B}, {"type": "image/png", "url": A}], [(0, A)]),
        ([{"type": "text", "text": "hello"}, {"type": None, "url": A}], [(0, A)]),
        ([7, None, "text", [A], {"url": A}], [(0, A)]),
    ],
)
def test_pictures_are_found_among_the_outputs(outputs: Any, images: list[tuple[int, str]]) -> None:
    """Every known form of an output gives a picture, numbered so that no two share a file."""
    assert tuple(Image(*pair) for pair in images) == Webhooks().parse({}, newer(outputs=outputs)).task.images


EXTERNAL = {"external_id": "order-7"}
UNITS: dict[str, Any] = {"charge_type": "unit", "amount": "8", "package_type": "image"}
CASH = {"charge_type": "cash", "amount": 0.028, "currency": "USD", "list_price": "0.028"}


def test_the_newer_body_names_the_job_and_its_price() -> None:
    """The external task id and the billed units are read as in the older body."""
    task = Webhooks().parse({}, newer(**EXTERNAL, billing=[UNITS, UNITS | {"amount": 16}, CASH])).task
    assert (task.external_task_id, task.final_unit_deduction) == ("order-7", "24")
    assert task.final_balance_deduction == BalanceDeduction("0.028", "0.028")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"external_id": "", "billing": []},
        {"external_id": 7, "billing": None},
        {"external_id": ["order-7"], "billing": {"amount": "8"}},
        {"billing": [7, None, "unit", {}, {"charge_type": ["unit"], "amount": "8"}]},
        *(
            {"billing": [UNITS | {"amount": odd}]}
            for odd in (None, True, "nan", "8e999999", "-8", [8], "\ud800")
        ),
        {"billing": [UNITS, UNITS | {"amount": "many"}]},
        {"billing": [CASH, CASH]},
    ],
)
def test_informational_fields_of_a_wrong_type_are_none(fields: dict[str, Any]) -> None:
    """An informational field of another type is None, and the snapshot is still read."""
    task = Webhooks().parse({}, newer(outputs=[{"url": A}], **fields)).task
    assert (task.status, len(task.images)) == (Status.SUCCEED, 1)
    assert (task.external_task_id, task.final_unit_deduction, task.final_balance_deduction) == (None,) * 3


def test_a_watermarked_picture_has_both_urls() -> None:
    """`watermark_url` is read if it is a URL."""
    outputs = [{"url": A, "watermark_url": B}, {"url": B, "watermark_url": ""}]
    images = Webhooks().parse({}, newer(outputs=outputs)).task.images
    assert (Image(0, A, B), Image(1, B, None)) == images


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        {},
        "x",
        [],
        [{"url": A}, {}],
        [{"url": A}, {"type": "image", "image_url": B}],
        [{"url": "javascript:x"}],
    ],
)
def test_a_success_without_all_its_pictures_needs_a_poll(outputs: Any) -> None:
    """A signed success whose pictures cannot all be read only triggers a poll."""
    body = newer(outputs=outputs)
    call = reader().parse(signed(body), body)
    assert call.verified
    assert call.task.images == ()
    assert call.needs_poll


CALLS = [
    (BODY, False),
    (newer(outputs=[{"url": A}]), False),
    (newer("failed", message="Failure to pass the risk control system"), False),
    (newer("processing"), False),
    (VECTOR_BODY, True),
    (json.dumps(LEGACY | {"task_result": None}).encode(), True),
]


@pytest.mark.parametrize(("body", "needs_poll"), CALLS)
def test_only_a_complete_verified_callback_needs_no_poll(body: bytes, *, needs_poll: bool) -> None:
    """A verified callback is delivered, unless a success has no pictures. An unverified one never is."""
    assert needs_poll == reader().parse(signed(body), body).needs_poll
    assert Webhooks().parse(signed(body), body).needs_poll


# ---------------------------------------------------------------------------- configuration

BAD_SECRETS = [
    "",
    " ",
    "whsec_",
    "whsec_tell-no-one",
    "tell no one!",
    "whsec_geheimnisß",
    "whsec_A",
    "whsec_====",
    "whsec_abcd-efgh",
]


@pytest.mark.parametrize("secret", BAD_SECRETS)
def test_a_bad_secret_is_refused_and_not_shown(secret: str) -> None:
    """An empty or broken secret never means "no secret", and its text is in no error or traceback."""
    with pytest.raises(ConfigurationError) as refused:
        Webhooks(SECRET, secret)
    shown: list[str] = []
    error: BaseException | None = refused.value
    while error is not None:
        shown += [repr(error), repr(vars(error)), *traceback.format_exception_only(error)]
        error = error.__context__
    text = secret.removeprefix("whsec_").strip(" =")
    assert len(text) < 2 or text not in "".join(shown)


def test_a_secret_that_is_not_text_is_refused() -> None:
    """None, as from an unset variable, is refused and does not mean that unsigned callbacks are accepted."""
    nothing: Any = None
    with pytest.raises(ConfigurationError):
        Webhooks(nothing)


@pytest.mark.parametrize(
    "options", [{"tolerance": 0}, {"tolerance": -1}, {"tolerance": float("nan")}, {"remember": -1}]
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    """The constructor refuses an empty window and one that is not a number."""
    with pytest.raises(ConfigurationError):
        Webhooks(SECRET, **options)


def test_no_secret_is_in_the_repr() -> None:
    """The repr shows neither the secret nor the key in it."""
    shown = repr(reader())
    assert "whsec" not in shown
    assert "testsecret" not in shown
    assert "dGVzd" not in shown


# ------------------------------------------------------------------ headers and bodies of frameworks

LAMBDA: dict[str, Any] = {name: [value] for name, value in signed().items()} | {"Host": ["a", "b"], "X": None}


@pytest.mark.parametrize(
    "headers",
    [
        signed(),
        LAMBDA,
        [*signed().items(), ("host", "example")],
        [(name.encode(), value.encode()) for name, value in signed().items()],
        {name.encode(): value.encode() for name, value in signed().items()},
    ],
    ids=["mapping", "lists", "pairs", "asgi", "bytes"],
)
@pytest.mark.parametrize("body", [BODY, BODY.decode(), bytearray(BODY), memoryview(BODY)], ids=type)
def test_headers_and_bodies_of_any_framework_are_read(headers: Any, body: Any) -> None:
    """A signature is verified for text as for bytes, whatever the type of the headers."""
    call = reader().parse(headers, body)
    assert call.verified
    assert call.task.task_id == LEGACY["task_id"]


@pytest.mark.parametrize(
    "headers",
    [
        LAMBDA | {"webhook-id": ["a", "b"]},
        LAMBDA | {"webhook-id": []},
        LAMBDA | {"webhook-id": None},
        LAMBDA | {"webhook-id": [None]},
        [*signed().items(), *signed().items()],
        [("webhook-id",)],
        "webhook-id: msg_1",
        None,
        5,
    ],
)
def test_unclear_headers_are_refused(headers: Any) -> None:
    """A header that is missing, duplicated or of another type is refused."""
    with pytest.raises(WebhookError):
        reader().parse(headers, BODY)


@pytest.mark.parametrize("body", [LEGACY, json.loads(VECTOR_BODY), {"code": 0, "data": LEGACY}, [LEGACY]])
def test_a_decoded_body_is_read_only_without_secrets(body: Any) -> None:
    """A signature covers the raw bytes, so a decoded body can only trigger a poll."""
    if isinstance(body, list):
        with pytest.raises(WebhookError):
            Webhooks().parse({}, body)
    else:
        assert Webhooks().parse({}, body).needs_poll
    with pytest.raises(WebhookError, match="raw bytes or text"):
        reader().parse(signed(), body)


VALUES = ODD | st.lists(ODD, max_size=2) | st.just(SIGNATURE) | st.just(str(NOW))
PAIRS = st.lists(st.tuples(HEADER_NAMES | st.binary() | ODD, VALUES) | ODD, max_size=4)


@given(
    headers=PAIRS | st.dictionaries(HEADER_NAMES | st.binary(), VALUES, max_size=4) | ODD,
    body=TASKLIKE | st.lists(TASKLIKE, max_size=2) | ODD | st.text() | JSON,
    secrets=st.sampled_from([(), (SECRET,)]),
)
def test_any_object_gives_an_event_or_a_webhook_error(
    headers: Any, body: Any, secrets: tuple[str, ...]
) -> None:
    """Any object gives an event or a `WebhookError`, and nothing is verified without a signature."""
    try:
        call = Webhooks(*secrets, clock=lambda: float(NOW)).parse(headers, body)
    except WebhookError:
        return
    assert not call.verified
    assert call.needs_poll
