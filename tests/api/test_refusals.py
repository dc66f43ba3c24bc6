"""Each row of the error-code table is sent by the emulator and raises the right error.

The table is `ROWS`. Each row is produced over HTTP, by its real cause (credentials, clock, settings or the
prompt) or by a fault. It is tested for a create and for a read, with its own status and with status 200.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import frozen
from support.raw_client import DIRECTION, EDITING

from kling_expand import ExpandRequest, KlingClient, Ratios
from kling_expand.config import KeyPair
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.emulator.http.codes import CODES
from kling_expand.errors import (
    AccountError,
    APIError,
    AuthenticationError,
    BadRequest,
    ContentRejected,
    DuplicateTask,
    IPNotAllowed,
    KlingError,
    NotFound,
    ParallelLimit,
    PermissionDenied,
    PolicyRefusal,
    RateLimited,
    ServerError,
    SubmissionUnknown,
    TaskFailed,
    TaskModerated,
    TaskNotFound,
    TokenExpired,
)
from kling_expand.testing import emulated, loop_clock, virtual_time

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)
BUDGET = 30.0  # seconds for which a call is retried in these tests


def now() -> float:
    """Return the loop time."""
    return asyncio.get_running_loop().time()


@frozen
class Row:
    """A row of the documented table, the exception it raises, and whether the request may be repeated."""

    code: int
    status: int
    kind: type[APIError]
    again: bool = False


ROWS = [
    Row(1000, 401, AuthenticationError),
    Row(1001, 401, AuthenticationError),
    Row(1002, 401, AuthenticationError),
    Row(1003, 401, TokenExpired),
    Row(1004, 401, TokenExpired),
    Row(1100, 429, AccountError),
    Row(1101, 429, AccountError),
    Row(1102, 429, AccountError),
    Row(1103, 403, PermissionDenied),
    Row(1200, 400, BadRequest),
    Row(1201, 400, BadRequest),
    Row(1202, 404, NotFound),
    Row(1203, 404, NotFound),
    Row(1300, 400, PolicyRefusal),
    Row(1301, 400, PolicyRefusal),
    Row(1302, 429, RateLimited, again=True),
    Row(1303, 429, ParallelLimit, again=True),
    Row(1304, 429, IPNotAllowed),
    Row(5000, 500, ServerError, again=True),
    Row(5001, 503, ServerError, again=True),
    Row(5002, 504, ServerError, again=True),
]
FINAL = [row for row in ROWS if not row.again]
TRANSIENT = [row for row in ROWS if row.again]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.code))


def fault(row: Row, kind: str, times: int = 1) -> Fault:
    """Return the row as a fault. `error` has the row's own status, and `envelope_200` has status 200."""
    return Fault(kind, code=row.code, message=f"as for {row.code}", times=times)


def is_refusal(error: BaseException, row: Row, status: int) -> None:
    """Check that *error* has the class of its row, and everything that the service sent."""
    assert type(error) is row.kind
    assert isinstance(error, APIError)
    assert (error.code, error.status, error.message) == (row.code, status, f"as for {row.code}")
    assert error.request_id
    assert all(str(word) in str(error) for word in (row.code, status, error.message, error.request_id))


def test_the_table_is_complete() -> None:
    """Every code that the emulator knows has one row, with its documented status."""
    assert {row.code: row.status for row in ROWS} == {code: status for code, (status, _) in CODES.items()}
    assert len(ROWS) == 21


# ------------------------------------------------------------------ handling of each row


@pytest.mark.parametrize("kind", ["error", "envelope_200"])
@every_row
@virtual_time
async def test_a_read_retries_only_transient_refusals(row: Row, kind: str) -> None:
    """A permanent refusal costs one request, and a transient one is retried until `retry_timeout`."""
    async with emulated({"retry_timeout": BUDGET}) as (emulator, kling):
        task_id = (await kling.expand(PHOTO, WIDER)).task_id
        before, began = emulator.account.requests["query"], now()
        emulator.faults.script("query", fault(row, kind, times=2))
        if row.again:
            assert (await kling.get(task_id)).task_id == task_id
            assert emulator.account.requests["query"] - before == 3
        else:
            with pytest.raises(APIError) as caught:
                await kling.get(task_id)
            is_refusal(caught.value, row, 200 if kind == "envelope_200" else row.status)
            assert emulator.account.requests["query"] - before == 1
            assert now() == pytest.approx(began)
        emulator.faults.clear()
        emulator.faults.script("query", fault(row, kind, times=99))
        with pytest.raises(APIError) as caught:
            await kling.get(task_id)
        is_refusal(caught.value, row, 200 if kind == "envelope_200" else row.status)
        assert now() - began <= 2 * BUDGET


@pytest.mark.parametrize("kind", ["error", "envelope_200"])
@pytest.mark.parametrize("row", FINAL, ids=lambda row: str(row.code))
@virtual_time
async def test_a_create_that_is_refused_is_not_repeated(row: Row, kind: str) -> None:
    """A refused create is sent once and not looked up. The error has the job's id, and nothing is due."""
    async with emulated({"retry_timeout": BUDGET, "budget": 8}) as (emulator, kling):
        emulator.faults.script("create", fault(row, kind))
        future = kling.submit(PHOTO, WIDER)
        with pytest.raises(APIError) as caught:
            await future
        is_refusal(caught.value, row, 200 if kind == "envelope_200" else row.status)
        assert (caught.value.task_id, caught.value.external_task_id) == (None, future.external_task_id)
        assert emulator.account.requests == {"create": 1}
        assert emulator.account.tasks == {}
        assert kling.stats.units_due == 0
        assert kling._slots.held == 0


@pytest.mark.parametrize("kind", ["error", "envelope_200"])
@pytest.mark.parametrize("row", TRANSIENT, ids=lambda row: str(row.code))
@virtual_time
async def test_a_transient_refusal_of_a_create_leads_to_one_task(row: Row, kind: str) -> None:
    """After a 429 the create is sent again. After a 5xx the task is looked up first."""
    async with emulated({"retry_timeout": BUDGET}) as (emulator, kling):
        emulator.faults.script("create", fault(row, kind))
        await kling.create(PHOTO, WIDER)
        assert emulator.account.requests["create"] == 2
        assert (emulator.account.requests["query"] > 0) is (row.kind is ServerError)
        assert list(emulator.account.accepted.values()) == [1]


@pytest.mark.parametrize("row", TRANSIENT, ids=lambda row: str(row.code))
@virtual_time
async def test_a_task_created_despite_an_error_response_is_found(row: Row) -> None:
    """A task that was created despite an error response is found, and not created again."""
    async with emulated({"retry_timeout": BUDGET}) as (emulator, kling):
        emulator.faults.script("create", Fault("error_after", code=row.code))
        task = await kling.create(PHOTO, WIDER, key="cat")
        assert [task.task_id] == list(emulator.account.tasks)
        assert list(emulator.account.accepted.values()) == [1]
        assert emulator.account.requests["create"] == (1 if row.kind is ServerError else 2)


@pytest.mark.parametrize("code", [5000, 5001, 5002])
@virtual_time
async def test_a_job_whose_every_call_fails_ends_as_unknown(code: int) -> None:
    """If every call fails, the job ends as unknown in bounded time, with the id for a later lookup."""
    async with emulated({"retry_timeout": BUDGET}) as (emulator, kling):
        emulator.faults.chance("create", Fault("error", code=code), 1)
        emulator.faults.chance("query", Fault("error", code=code), 1)
        future = kling.submit(PHOTO, WIDER)
        with pytest.raises(SubmissionUnknown, match="look it up") as caught:
            await future
        assert caught.value.external_task_id == future.external_task_id
        assert emulator.account.requests["create"] == 1
        assert now() < 3 * BUDGET


# ------------------------------------------------------------------ each row by its real cause


def pair(**changes: Any) -> dict[str, Any]:
    """Return the options of a client with a key pair instead of an API key."""
    keys = {"access_key": "emulator-access-key", "secret_key": "emulator-secret-key-0123456789abcdef"}
    return {"api_key": None} | keys | changes


class NoToken:
    """Credentials that send no token."""

    def token(self) -> str:
        return ""

    def renew(self, _refused: str, _server_time: float | None = None) -> bool:
        return False


CALLERS: dict[str, tuple[dict[str, Any], int, int]] = {  # options of a client, code, requests
    "bad signature": (pair(secret_key="another-secret-key-0123456789abcdef"), 1000, 2),
    "no token": ({"auth": NoToken()}, 1001, 1),
    "unknown key": ({"api_key": "api-key-kling-stranger"}, 1002, 1),
    "unknown pair": (pair(access_key="stranger"), 1002, 2),
    "no token of three parts": ({"api_key": "nonsense"}, 1002, 1),
}


@pytest.mark.parametrize("name", CALLERS)
@virtual_time
async def test_wrong_credentials_are_refused(name: str) -> None:
    """Wrong credentials fail creates and reads alike. Only a key pair is tried again, with a new token."""
    options, code, requests = CALLERS[name]
    async with emulated(options) as (emulator, kling):
        with pytest.raises(AuthenticationError) as caught:
            await kling.list()
        assert (caught.value.code, caught.value.status) == (code, 401)
        assert caught.value.request_id
        assert emulator.account.refusals == {code: requests}
        with pytest.raises(AuthenticationError) as caught:
            await kling.create(PHOTO, WIDER)
        assert caught.value.code == code
        assert emulator.account.refusals == {code: 2 * requests}
        assert emulator.account.tasks == {}


@pytest.mark.parametrize(("off", "code"), [(-3600, 1004), (3600, 1003)])
async def test_a_wrong_clock_costs_one_request(off: float, code: int) -> None:
    """A token that is not yet or no longer valid is renewed once, by the service's clock."""
    async with Emulator(engine="flat") as emulator:
        options = pair(base_url=emulator.url, clock=lambda: time.time() + off)
        async with KlingClient(**options) as kling:
            assert await kling.list() == ()
            assert (await kling.create(PHOTO, WIDER)).task_id in emulator.account.tasks
            assert emulator.account.refusals == {code: 1}


class LocalClockPair(KeyPair):
    """A key pair that makes new tokens only by its own clock."""

    def renew(self, refused: str, server_time: float | None = None) -> bool:
        del server_time
        return super().renew(refused)


@pytest.mark.parametrize(("off", "code"), [(-3600, 1004), (3600, 1003)])
@virtual_time
async def test_a_clock_that_stays_wrong_is_an_error(off: float, code: int) -> None:
    """If the new token is refused too, the second refusal is raised."""
    keys = pair(clock=lambda: loop_clock() + off)
    auth = LocalClockPair(keys["access_key"], keys["secret_key"], clock=keys["clock"])
    async with emulated({"auth": auth}) as (emulator, kling):
        with pytest.raises(TokenExpired) as caught:
            await kling.list()
        assert (caught.value.code, caught.value.status) == (code, 401)
        assert emulator.account.refusals == {code: 2}


@pytest.mark.parametrize("code", [1100, 1101, 1102, 1103, 1304])
@virtual_time
async def test_an_account_problem_is_raised_at_once(code: int) -> None:
    """An account problem is raised after one request, even if its status is 429."""
    (row,) = (row for row in ROWS if row.code == code)
    async with emulated(account_code=code) as (emulator, kling):
        for call in (kling.list, lambda: kling.get("1"), lambda: kling.create(PHOTO, WIDER)):
            with pytest.raises(row.kind) as caught:
                await call()
            assert (caught.value.code, caught.value.status) == (code, row.status)
        assert emulator.account.refusals == {code: 3}
        assert now() < 1


@pytest.mark.parametrize("code", [1100, 1101, 1102, 1103, 1300, 1301, 1304])
@virtual_time
async def test_a_trigger_word_in_a_prompt_refuses_the_create(code: int) -> None:
    """A trigger word in a prompt causes the refusal that the emulator's help text describes."""
    (row,) = (row for row in ROWS if row.code == code)
    async with emulated() as (emulator, kling):
        with pytest.raises(row.kind) as caught:
            await kling.create(PHOTO, WIDER, prompt=f"emulate-{code}")
        assert (caught.value.code, caught.value.status) == (code, row.status)
        assert caught.value.external_task_id
        assert emulator.account.refusals == {code: 1}


@virtual_time
async def test_a_rate_limit_is_waited_for() -> None:
    """With a real rate limit (1302), every call waits and then succeeds."""
    async with emulated(rate_limit=2, rate_limit_window=10) as (emulator, kling):
        pages = await asyncio.gather(*(kling.list() for _ in range(6)))
        assert pages == [()] * 6
        assert emulator.account.refusals[1302] >= 1
        assert now() >= 20


@virtual_time
async def test_a_create_waits_at_the_parallel_limit() -> None:
    """At a real parallel limit (1303), the second task is created after the first ends, with few refusals."""
    async with emulated(slots=2, work_seconds=50) as (emulator, kling):
        begun = kling.submit(PHOTO, WIDER, n=2)
        await begun.accepted()
        second = await kling.expand(PHOTO, WIDER, n=1)
        first = await begun
        created = sorted(task.created_at for task in emulator.account.tasks.values())
        assert {first.task_id, second.task_id} == set(emulator.account.tasks)
        assert emulator.account.refusals[1303] <= 5  # after 2, 4, 8, 16 and 32 s
        assert 50 <= created[1] - created[0] <= 60


# ------------------------------------------------------------------ 1200 to 1203, and the messages of 1201

BODIES: list[tuple[str, Any, int, str]] = [  # path, body, code, words
    (EDITING, b"{", 1200, ""),
    (EDITING, b"[]", 1200, ""),
    (EDITING, {"image": ""}, 1201, "image can not be null"),
    (EDITING, {"image": "%%%"}, 1201, "base64"),
    (EDITING, {"image": "data:image/png;base64,AAAA"}, 1201, "base64"),
    (DIRECTION, {"image": "AAAA"}, 1201, "direction can not be null"),
    ("/v1/images/nothing", {}, 1203, ""),
]


@pytest.mark.parametrize(("path", "body", "code", "words"), BODIES)
@virtual_time
async def test_invalid_bodies_and_paths_get_their_documented_codes(
    path: str, body: Any, code: int, words: str
) -> None:
    """Invalid bodies and paths, sent without the SDK, get their documented codes."""
    async with emulated() as (emulator, _), aiohttp.ClientSession() as http:
        sides = {f"{side}_expansion_ratio": 0.1 for side in ("up", "down", "left", "right")}
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": sides | body}
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        async with http.post(emulator.url + path, headers=headers, **sent) as response:
            envelope = await response.json()
        (row,) = (row for row in ROWS if row.code == code)
        assert (response.status, envelope["code"]) == (row.status, code)
        assert words in envelope["message"].lower()
        assert envelope["request_id"]


@virtual_time
async def test_a_wrong_http_method_is_refused_with_1202() -> None:
    """A wrong HTTP method on an existing path is refused with 1202."""
    async with emulated() as (emulator, _), aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        async with http.delete(emulator.url + EDITING, headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (404, 1202)


@pytest.mark.parametrize("dialect", ["editing", "direction"])
@virtual_time
async def test_an_unknown_task_raises_its_own_error_at_once(dialect: str) -> None:
    """An unknown task (HTTP 400 with 1201) raises its own class after one request."""
    async with emulated({"dialect": dialect}) as (emulator, kling):
        for any_id in ("123456789012345678", "unknown-id", "a/b?c"):
            with pytest.raises(TaskNotFound) as caught:
                await kling.get(any_id)
            assert (caught.value.code, caught.value.status) == (1201, 400)
            assert any_id in caught.value.message
            assert caught.value.request_id
        assert emulator.account.requests == {"query": 3}


@virtual_time
async def test_a_duplicate_is_refused_with_its_id() -> None:
    """A duplicate id is refused without charge, even minutes later."""
    async with emulated() as (emulator, kling):
        await kling.expand(PHOTO, WIDER, external_task_id="mine")
        for _ in range(2):
            await asyncio.sleep(300)
            with pytest.raises(DuplicateTask) as caught:
                await kling.create(PHOTO, WIDER, external_task_id="mine")
            assert (caught.value.code, caught.value.status) == (1201, 400)
            assert caught.value.external_task_id == "mine"
        assert emulator.account.units_billed == 8


# ------------------------------------------------------------------ failures after the create

LATER: list[tuple[str, type[TaskFailed], str]] = [
    ("emulate-risk-control", TaskModerated, "Failure to pass the risk control system"),
    ("emulate-invalid-pixel", TaskFailed, "Image pixel is invalid"),
]


@pytest.mark.parametrize(("prompt", "kind", "words"), LATER)
@virtual_time
async def test_a_failed_task_raises_its_reason_and_ids(
    prompt: str, kind: type[TaskFailed], words: str
) -> None:
    """A failed task raises an error with its reason and both ids, and nothing is billed."""
    async with emulated() as (emulator, kling):
        future = kling.submit(PHOTO, WIDER, prompt=prompt)
        with pytest.raises(TaskFailed) as caught:
            await future
        assert type(caught.value) is kind
        assert caught.value.message == words
        assert (caught.value.task_id, caught.value.external_task_id) == (
            future.task_id,
            future.external_task_id,
        )
        assert [caught.value.task_id] == list(emulator.account.tasks)
        assert emulator.account.units_billed == 0


@virtual_time
async def test_rejected_content_raises_one_class_at_any_stage() -> None:
    """Rejected content raises one base class, at the create or later, with the ids that exist."""
    async with emulated() as (_, kling):
        for word in ("1300", "1301", "risk-control"):
            future = kling.submit(PHOTO, WIDER, prompt=f"emulate-{word}")
            with pytest.raises(ContentRejected) as caught:
                await future
            assert isinstance(caught.value, KlingError)
            assert caught.value.external_task_id == future.external_task_id
            assert bool(caught.value.task_id) is (word == "risk-control")


OPEN: list[Callable[[KlingClient], Any]] = [
    lambda kling: kling.expand(PHOTO, WIDER),
    lambda kling: kling.expand(ExpandRequest(PHOTO, WIDER, n=3)),
]


@pytest.mark.parametrize("row", [row for row in TRANSIENT if row.code != 1303], ids=lambda row: str(row.code))
@pytest.mark.parametrize("call", OPEN)
@virtual_time
async def test_a_wait_survives_a_minute_of_refusals(row: Row, call: Callable[[KlingClient], Any]) -> None:
    """A task is followed to its end, even if every read is refused for a minute."""
    async with emulated(work_seconds=30) as (emulator, kling):
        waiting = asyncio.create_task(call(kling))
        await asyncio.sleep(2)
        emulator.faults.chance("query", Fault("error", code=row.code), 1)
        emulator.faults.chance("list", Fault("error", code=row.code), 1)
        await asyncio.sleep(60)
        assert not waiting.done()
        emulator.faults.clear()
        assert (await waiting).task_id in emulator.account.tasks


@pytest.mark.parametrize("row", FINAL, ids=lambda row: str(row.code))
@virtual_time
async def test_a_lasting_refusal_ends_the_wait(row: Row) -> None:
    """A refusal that lasts for `refusal_timeout` ends the wait. The error has the ids of the running task."""
    async with emulated(work_seconds=3600) as (emulator, kling):
        future = kling.submit(PHOTO, WIDER)
        await future.accepted()
        emulator.faults.chance("query", fault(row, "error"), 1)
        with pytest.raises(APIError) as caught:
            await future
        is_refusal_with_ids(caught.value, row)
        assert [caught.value.task_id] == list(emulator.account.tasks)
        assert 60 <= now() < 100


def is_refusal_with_ids(error: APIError, row: Row) -> None:
    """Check *error* with `is_refusal`, and check that it has the ids of the task."""
    is_refusal(error, row, row.status)
    assert error.task_id
    assert error.external_task_id
    assert error.task_id in str(error)
