"""Are the limits of an account those of the document, and is the money counted right?"""

import math
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import pytest
from support.raw_client import DIRECTION, EDITING, Caller, calling, order
from yarl import URL

NOW = 1_800_000_000.25
FROZEN: dict[str, Any] = {"clock": lambda: NOW}


async def code(call: Caller, **changes: Any) -> tuple[int, int]:
    """(status, code) of a create."""
    status, body = await call("POST", EDITING, json=order(**changes))
    return status, body["code"]


async def test_slots_are_held_from_create_to_end() -> None:
    """The sum of n may not pass 9; a task frees its slots when it ends, in success or failure."""
    async with calling(queue_seconds=5, work_seconds=5, **FROZEN) as call:
        assert await code(call, n=5) == (200, 0)
        call.emulator.advance(1)
        assert await code(call, n=4, prompt="emulate-risk-control") == (200, 0)
        status, body = await call("POST", EDITING, json=order())
        assert (status, body["message"]) == (429, "parallel task over resource pack limit")
        call.emulator.advance(8.9)
        assert await code(call) == (429, 1303)
        call.emulator.advance(0.1)
        assert (await code(call, n=5), await code(call)) == ((200, 0), (429, 1303))
        call.emulator.advance(1)
        assert await code(call, n=4) == (200, 0)
        account = call.emulator.account
        assert (account.peak_slots, account.images_billed, account.refusals[1303]) == (9, 5, 3)


async def test_open_tasks_are_limited_too() -> None:
    """However many slots there are."""
    async with calling(slots=100, max_open_tasks=2) as call:
        assert [await code(call) for _ in range(3)] == [(200, 0), (200, 0), (429, 1303)]


async def test_the_rate_limit_slides() -> None:
    """So many calls in a window; the refusal says when to come back, and does not count itself."""
    async with calling(rate_limit=2, rate_limit_window=10, **FROZEN) as call:
        for _ in range(2):
            assert (await call("GET", EDITING))[0] == 200
        for _ in range(3):
            assert (await call("GET", EDITING))[1]["code"] == 1302
        call.emulator.advance(10)
        assert (await call("GET", EDITING))[0] == 200


@pytest.mark.parametrize("form", ["seconds", "date", "none"])
async def test_retry_after_has_two_forms_or_none(form: str) -> None:
    """Seconds or a date; either, obeyed exactly, leads to a call that is let in."""
    async with calling(rate_limit=1, rate_limit_window=3.5, retry_after_format=form, **FROZEN) as call:
        await call("GET", EDITING)
        headers = {"Authorization": f"Bearer {call.emulator.api_key}"}
        async with call.session.get(call.emulator.url + EDITING, headers=headers) as answer:
            told = answer.headers.get("Retry-After")
        if form == "none":
            assert told is None
            return
        wait = float(told or 0) if form == "seconds" else parsedate_to_datetime(told or "").timestamp() - NOW
        assert 3.5 <= wait <= math.ceil(3.5) + 1
        call.emulator.advance(wait)
        assert (await call("GET", EDITING))[0] == 200


async def test_external_ids_are_taken_once() -> None:
    """A second create is 1201, free of charge and later too; an empty id is none; queries find either id."""
    async with calling(slots=100, queue_seconds=0, work_seconds=0) as call:
        task_id = await call.create(external_task_id="mine")
        call.emulator.advance(3600)
        status, body = await call("POST", EDITING, json=order(external_task_id="mine"))
        assert (status, body["code"], body["message"]) == (400, 1201, "external_task_id mine already exists")
        assert (await call.task("mine"))["task_id"] == task_id
        assert len({await call.create(external_task_id="") for _ in range(3)}) == 3
        account = call.emulator.account
        assert (account.accepted, account.images_billed) == ({"mine": 1}, 4)


async def test_external_ids_may_be_any_text() -> None:
    """A slash, a space, a question mark and letters of the world come back unchanged."""
    async with calling(slots=100) as call:
        for name in ("a/b c?d#e%41", "日本", "{x}", "a+b", "\x00\n"):
            task_id = await call.create(external_task_id=name)
            headers = {"Authorization": f"Bearer {call.emulator.api_key}"}
            url = URL(f"{call.emulator.url}{EDITING}/{quote(name, safe='')}", encoded=True)
            async with call.session.get(url, headers=headers) as answer:
                data = (await answer.json())["data"]
            assert (data["task_id"], data["task_info"]["external_task_id"]) == (task_id, name)


async def test_a_service_without_uniqueness_bills_twice() -> None:
    """What the SDK must not let happen can be seen in the books."""
    async with calling(allow_duplicates=True, queue_seconds=0, work_seconds=0) as call:
        first = await call.create(external_task_id="x")
        assert await call.create(external_task_id="x") != first
        assert (await call.task("x"))["task_id"] == first
        assert (call.emulator.account.accepted, call.emulator.account.images_billed) == ({"x": 2}, 2)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *((f"emulate-{number}", (429, number)) for number in (1100, 1101, 1102, 1302, 1303, 1304)),
        ("emulate-1103", (403, 1103)),
        *((f"emulate-{number}", (400, number)) for number in (1300, 1301)),
        ("emulate-5000", (500, 5000)),
        ("emulate-5001", (503, 5001)),
        ("emulate-5002", (504, 5002)),
        ("emulate-1201", (200, 0)),
        ("emulated pastures", (200, 0)),
    ],
)
async def test_words_of_a_prompt_refuse(word: str, expected: tuple[int, int]) -> None:
    """Each listed word gives its code and makes no task; other words are only words."""
    async with calling() as call:
        assert await code(call, prompt=f"a park, {word}, sunlit") == expected
        assert len(call.emulator.account.tasks) == (expected == (200, 0))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("risk-control", "Failure to pass the risk control system"),
        ("invalid-pixel", "Image pixel is invalid"),
    ],
)
async def test_words_of_a_prompt_fail_later(word: str, message: str) -> None:
    """The task is accepted, processed, and fails without a picture or a price."""
    async with calling(queue_seconds=1, work_seconds=1) as call:
        task_id = await call.create(prompt=f"emulate-{word}")
        call.emulator.advance(1)
        assert (await call.task(task_id))["task_status"] == "processing"
        call.emulator.advance(1)
        task = await call.task(task_id)
        assert (task["task_status"], task["task_status_msg"]) == ("failed", message)
        assert (task["final_unit_deduction"], "task_result" in task) == ("0", False)


@pytest.mark.parametrize(
    ("account", "status"), [(1100, 429), (1101, 429), (1102, 429), (1103, 403), (1304, 429)]
)
async def test_an_account_in_trouble_gets_nothing(account: int, status: int) -> None:
    """Creates and reads are refused alike."""
    async with calling(account_code=account) as call:
        assert await code(call) == (status, account)
        assert (await call("GET", EDITING))[0] == status


async def test_older_and_newer_shapes() -> None:
    """`array` wraps the data of a query and omits newer fields; `success_status` sets the word."""
    async with calling(
        task_format="array", success_status="succeeded", queue_seconds=0, work_seconds=0
    ) as call:
        task_id = await call.create(watermark_info={"enabled": True})
        _, body = await call("GET", f"{EDITING}/{task_id}")
        (task,) = body["data"]
        assert (task["task_status"], task["watermark_info"]) == ("succeeded", {"enabled": True})
        assert "final_balance_deduction" not in task
        assert set(task["task_result"]["images"][0]) == {"index", "url", "watermark_url"}


async def test_a_watermark_is_drawn_beside_the_picture() -> None:
    """Two different pictures where one was asked for with a mark, none where not."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create(watermark_info={"enabled": True}))
        (image,) = task["task_result"]["images"]
        pictures = []
        for name in ("url", "watermark_url"):
            async with call.session.get(image[name]) as answer:
                pictures.append(await answer.read())
        assert pictures[0] != pictures[1]
        plain = await call.task(await call.create())
        url = plain["task_result"]["images"][0]["url"]
        for wrong in (url.replace("0.png", "0-watermark.png"), url.replace("0.png", "1.png"), url + "x"):
            async with call.session.get(wrong) as answer:
                assert answer.status == 404


async def test_other_clients_are_served() -> None:
    """Ints for floats, nulls and left-out fields, on both dialects."""
    async with calling(slots=100) as call:
        image = order()["image"]
        bodies: list[tuple[str, dict[str, Any]]] = [
            (EDITING, order(up_expansion_ratio=1, down_expansion_ratio=0, prompt=None, n=None)),
            (DIRECTION, {"image": image, "direction": "right", "expansion_ratio": 2, "prompt": None}),
            (DIRECTION, {"image": image, "direction": "top,bottom"}),
        ]
        for path, body in bodies:
            status, answer = await call("POST", path, json=body)
            assert (status, answer["code"]) == (200, 0)
            assert isinstance(answer["data"]["created_at"], int)
            status, answer = await call("GET", f"{path}/{answer['data']['task_id']}")
            assert isinstance(answer["data"], dict)


async def test_answers_point_to_where_they_were_asked() -> None:
    """Behind another name the pictures bear that name; a header that is none is not repeated."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task_id = await call.create()
        for host, origin in (("kling.test:81", "http://kling.test:81"), ("a b<", call.emulator.url)):
            _, body = await call("GET", f"{EDITING}/{task_id}", headers={"Host": host})
            assert body["data"]["task_result"]["images"][0]["url"].startswith(origin + "/files/")
