"""The event stream of the console."""

import asyncio
from typing import Any

import aiohttp
from support.console_stream import Stream, open_stream
from support.raw_client import EDITING, calling, get

from kling_expand.emulator import Emulator
from kling_expand.emulator.console.feed import MAX_FAULTS, MAX_TASKS
from kling_expand.emulator.http.call_log import MAX_CALLS


async def test_changes_are_sent_once() -> None:
    """A task is sent when it is new and when its status changes, and a call is sent when it ends."""
    async with calling(queue_seconds=10, work_seconds=10, clock=lambda: 1e9) as call:
        async with open_stream(call) as stream:
            name, state = await stream.next()
            assert (name, state["now"], state["slots"], state["account"]["tasks"]) == ("state", 1e9, 9, 0)
            task_id = await call.create(prompt="a park", external_task_id="mine")
            (task,) = await stream.until("tasks")
            assert (task["task_id"], task["status"], task["prompt"]) == (task_id, "submitted", "a park")
            assert (task["before"], task["ended_at"]) == (True, 1e9 + 20)
            (made,) = await stream.until("calls")
            assert (made["route"], made["status"], made["task_id"]) == ("create", 200, task_id)
            for seconds, status in ((10, "processing"), (10, "succeed")):
                call.emulator.advance(seconds)
                (task,) = await stream.until("tasks")
                assert task["status"] == status
            await call("GET", f"{EDITING}/mine")
            (read,) = await stream.until("calls")
            assert (read["route"], read["task_id"]) == ("query", task_id)
            call.emulator.advance(31 * 86400)
            assert await stream.until("removed") == [task_id]
        async with open_stream(call) as late:
            assert [call["number"] for call in await late.until("calls")] == [1, 2]


async def test_time_alone_causes_updates() -> None:
    """The end of a task is sent even if there is no request."""
    for queue, work in ((0.1, 0.1), (0.0, 0.02)):
        async with calling(queue_seconds=queue, work_seconds=work) as call, open_stream(call) as stream:
            await call.create()
            async with asyncio.timeout(30):
                while (await stream.until("tasks"))[0]["status"] != "succeed":
                    pass


async def test_the_stream_ends_with_the_emulator() -> None:
    """The emulator stops without waiting for open consoles."""
    async with aiohttp.ClientSession() as session:
        async with Emulator(engine="flat") as emulator:
            response = await session.get(emulator.url + "/_emulator/events")
            stream = Stream(response)
            await stream.until("state")
        async with asyncio.timeout(30):
            while (await stream.next())[0]:
                pass
        response.release()


async def test_a_console_shows_only_the_newest() -> None:
    """The numbers of tasks, calls and faults in the stream are bounded."""
    async with calling(slots=1000, clock=lambda: 1e9) as call:
        ids = [await call.create() for _ in range(MAX_TASKS + 3)]
        kinds = ["reset", "empty"]
        call.emulator.faults.script("file", *(kinds[number % 2] for number in range(MAX_FAULTS + 5)))
        call.emulator.faults.script("list", *["html"] * 40)
        async with open_stream(call) as stream:
            assert [task["task_id"] for task in await stream.until("tasks")] == ids[3:]
            calls = await stream.until("calls")
            assert len(calls) == MAX_CALLS
            faults = (await stream.until("state"))["faults"]
            assert (len(faults["file"]["script"]), faults["file"]["more"]) == (MAX_FAULTS, 5)
            assert [each["times"] for each in faults["list"]["script"]] == [40]
            fresh = await call.create()
            assert [task["task_id"] for task in await stream.until("tasks")] == [fresh]
            assert await stream.until("removed") == [ids[3]]
        assert (await get(call, f"/_emulator/calls/{calls[0]['number']}"))[0] == 404


async def test_the_end_of_a_timed_fault_is_sent() -> None:
    """The end of a timed fault is sent to the console even if there is no request."""
    async with calling() as call, open_stream(call) as stream:
        call.emulator.faults.for_seconds("query", "html", 0.2)
        await call.create()
        timed: list[list[Any]] = []
        async with asyncio.timeout(10):
            while not timed or timed[-1]:
                timed.append((await stream.until("state"))["faults"]["query"]["timed"])
                timed = timed if any(timed) else []
    assert len(timed) >= 2
