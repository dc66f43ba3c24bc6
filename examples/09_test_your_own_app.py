"""Test an application against the emulator in virtual time: an hour of work takes no time.

``pytest_plugins = ["kling_expand.testing"]`` in the `conftest.py` of a project also provides the fixtures
`kling_emulator` and `kling_client`.
"""

from pathlib import Path

from kling_expand import ContentRejected, KlingClient, Ratios
from kling_expand.testing import emulated, virtual_time

PHOTO = Path(__file__).parent / "photos" / "rocket.jpg"


async def poster(kling: KlingClient, photo: Path, prompt: str) -> str:
    """Return the URL of the expanded picture, or a placeholder if moderation rejects it."""
    try:
        result = await kling.expand(photo, Ratios(up=0.5), prompt=prompt)
    except ContentRejected:
        return "placeholder.png"
    return result.images[0].url


@virtual_time
async def test_a_poster_takes_an_hour() -> None:
    async with emulated(work_seconds=3600) as (emulator, kling):
        assert (await poster(kling, PHOTO, "a night sky")).startswith(emulator.url)


@virtual_time
async def test_a_poster_survives_connection_resets() -> None:
    async with emulated() as (emulator, kling):
        emulator.faults.script("create", "reset_after", "reset_after")
        await poster(kling, PHOTO, "a night sky")
        assert list(emulator.account.accepted.values()) == [1]


@virtual_time
async def test_rejected_content_gets_a_placeholder() -> None:
    async with emulated() as (_, kling):
        assert await poster(kling, PHOTO, "emulate-risk-control") == "placeholder.png"


if __name__ == "__main__":  # pytest finds the tests by name; here they run without it
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("passed", name)

# Output:
# passed test_a_poster_takes_an_hour
# passed test_a_poster_survives_connection_resets
# passed test_rejected_content_gets_a_placeholder
