"""How does one spend no more than one means to? A budget in units, 8 for a picture, kept before sending."""

import asyncio
from pathlib import Path

from kling_expand import BudgetExceeded, ExpandRequest, KlingClient, Ratios
from kling_expand.emulator import Emulator
from kling_expand.models import DOLLARS_PER_UNIT

PHOTO = Path(__file__).parent / "photos" / "chelsea.jpg"


async def main() -> None:
    requests = [ExpandRequest(PHOTO, Ratios(left=0.1 * i), n=2, key=f"wider by {i}0 %") for i in range(1, 5)]
    units = sum(request.units for request in requests)
    print(f"all of them would cost {units} units, ${units * DOLLARS_PER_UNIT:.2f}")
    async with (
        Emulator(engine="flat", queue_seconds=0.1, work_seconds=0.2) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url, budget=40) as kling,
    ):
        async for outcome in kling.map(requests, prefetch=1):  # one after another: the first come first
            if outcome.result:
                print(outcome.request.key, "cost", outcome.result.task.units)
            elif isinstance(outcome.error, BudgetExceeded):
                print(outcome.request.key, "was not sent")
        print("billed", emulator.account.units_billed)


asyncio.run(main())

# Output:
# all of them would cost 64 units, $0.22
# wider by 10 % cost 16
# wider by 20 % cost 16
# wider by 30 % was not sent
# wider by 40 % was not sent
# billed 32
