"""Limit the cost with a budget in units: a picture costs 8, and a job over the budget is not sent."""

import asyncio
from pathlib import Path

from kling_expand import BudgetExceeded, ExpandRequest, KlingClient, Ratios
from kling_expand.emulator import Emulator
from kling_expand.models import DOLLARS_PER_UNIT

PHOTO = Path(__file__).parent / "photos" / "chelsea.jpg"


async def main() -> None:
    requests = [ExpandRequest(PHOTO, Ratios(left=0.1 * i), n=2, key=f"wider by {i}0 %") for i in range(1, 5)]
    units = sum(request.units for request in requests)
    print(f"all requests would cost {units} units, ${units * DOLLARS_PER_UNIT:.2f}")
    async with (
        Emulator(engine="flat", queue_seconds=0.1, work_seconds=0.2) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url, budget=40) as kling,
    ):
        async for outcome in kling.map(requests, prefetch=1):  # one job at a time, in order
            if outcome.result:
                print(outcome.request.key, "cost", outcome.result.task.units)
            elif isinstance(outcome.error, BudgetExceeded):
                print(outcome.request.key, "was not sent")
        print("billed", emulator.account.units_billed)


asyncio.run(main())

# Output:
# all requests would cost 64 units, $0.22
# wider by 10 % cost 16
# wider by 20 % cost 16
# wider by 30 % was not sent
# wider by 40 % was not sent
# billed 32
