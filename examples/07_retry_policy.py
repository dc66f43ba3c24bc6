"""What is tried again, and what is not? Whatever may pass is, under the same id, so nothing is paid twice.

The emulator is told what goes wrong with the next calls. `deadline` bounds one job with all its tries,
`retry_timeout` one call, `poll_timeout` how long no good news of a task is borne; all in seconds.
"""

import asyncio
from pathlib import Path

from kling_expand import KlingClient, KlingError, Ratios
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "chelsea.jpg"
TROUBLES = {
    "refused": "the connection broke before the task was made",
    "reset_after": "the task was made, the answer was lost",
    "html_after": "the task was made, the answer was a page of a proxy",
    "error_after": "the task was made, the answer was an error of the server",
}


async def main() -> None:
    async with (
        Emulator(engine="flat", queue_seconds=0.1, work_seconds=0.2) as emulator,
        KlingClient(
            api_key=emulator.api_key, base_url=emulator.url, deadline=60, retry_timeout=30, poll_timeout=30
        ) as kling,
    ):
        for kind, story in TROUBLES.items():
            emulator.faults.script("create", kind)
            emulator.faults.script("query", "html", "reset")
            await kling.expand(PHOTO, Ratios(right=0.2), external_task_id=kind)
            print("paid", emulator.account.accepted[kind], "time:", story)

        emulator.account_code = 1102  # the resource pack is used up: no try will help
        try:
            await kling.expand(PHOTO, Ratios(right=0.2))
        except KlingError as error:
            print(type(error).__name__, "may be tried again:", error.retryable)


asyncio.run(main())

# Output:
# paid 1 time: the connection broke before the task was made
# paid 1 time: the task was made, the answer was lost
# paid 1 time: the task was made, the answer was a page of a proxy
# paid 1 time: the task was made, the answer was an error of the server
# AccountError may be tried again: False
