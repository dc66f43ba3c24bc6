"""Retries and their time limits: a create is repeated under the same id, so no task is paid for twice.

The emulator's fault script decides how the next calls fail. `deadline` limits a job with all its retries,
`retry_timeout` limits one call, and `poll_timeout` limits the time without a valid response about a task. A
create whose response was lost is repeated only after `create_timeout`, because it may still take effect. All
values are in seconds.
"""

import asyncio
from pathlib import Path

from kling_expand import KlingClient, KlingError, Ratios
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "chelsea.jpg"
FAULTS = {
    "refused": "the connection failed before the create",
    "reset_after": "the create succeeded, the response was lost",
    "html_after": "the create succeeded, a proxy returned an HTML page",
    "error_after": "the create succeeded, the server returned an error",
}


async def main() -> None:
    async with (
        Emulator(engine="flat", queue_seconds=0.1, work_seconds=0.2) as emulator,
        KlingClient(
            api_key=emulator.api_key,
            base_url=emulator.url,
            deadline=60,
            retry_timeout=30,
            poll_timeout=30,
            create_timeout=1,
        ) as kling,
    ):
        for kind, description in FAULTS.items():
            emulator.faults.script("create", kind)
            emulator.faults.script("query", "html", "reset")
            await kling.expand(PHOTO, Ratios(right=0.2), external_task_id=kind)
            print("tasks:", emulator.account.accepted[kind], "-", description)

        emulator.account_code = 1102  # the resource pack is used up: a retry cannot help
        try:
            await kling.expand(PHOTO, Ratios(right=0.2))
        except KlingError as error:
            print(type(error).__name__, "retryable:", error.retryable)


asyncio.run(main())

# Output:
# tasks: 1 - the connection failed before the create
# tasks: 1 - the create succeeded, the response was lost
# tasks: 1 - the create succeeded, a proxy returned an HTML page
# tasks: 1 - the create succeeded, the server returned an error
# AccountError retryable: False
