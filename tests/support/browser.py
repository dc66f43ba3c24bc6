"""Headless Chromium with the console of an emulator, where a request to any other host fails the test."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import Factory, define
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT = 30_000  # milliseconds; long, as the machine may be busy with other tests
MISSING = "the console is tested in Chromium, which is not installed here: apt-get install chromium"


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Yield the system's browser, or fail and say what to install."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(MISSING, pytrace=False)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=QUIET)
        try:
            yield browser
        finally:
            await browser.close()


@define
class Visit:
    """A page with its emulator, its requests and its errors."""

    page: Page
    emulator: Emulator
    requests: list[str] = Factory(list)
    errors: list[str] = Factory(list)

    def edge(self, side: str) -> Locator:
        """Return one of the four sliders."""
        return self.page.locator(f'[data-side="{side}"]')

    async def ratio(self, side: str) -> float:
        """Return the ratio in the field of a side."""
        return float(await self.page.input_value(f"#ratio-{side}"))

    async def choose(self, name: str = "coffee.jpg") -> None:
        """Put a photo on the canvas."""
        await self.page.set_input_files("#file", PHOTOS / name)
        await expect(self.page.locator("#order")).to_be_visible()

    async def grab(self, side: str) -> tuple[float, float]:
        """Press the pointer on an edge and return its position."""
        box = await self.edge(side).bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        await self.page.mouse.move(x, y)
        await self.page.mouse.down()
        return x, y

    async def drag(self, side: str, right: float, down: float) -> None:
        """Drag an edge by *right* and *down* pixels."""
        x, y = await self.grab(side)
        await self.page.mouse.move(x + right, y + down, steps=4)
        await self.page.mouse.up()

    async def expand(self) -> dict[str, Any]:
        """Press Expand and return the new task."""
        known = set(self.emulator.account.tasks)
        await self.page.click("#expand")
        await expect(self.page.locator("#task-list li")).to_have_count(len(known) + 1)
        await expect(self.page.locator("#expand")).to_be_enabled()
        (fresh,) = set(self.emulator.account.tasks) - known
        await expect(self.page.locator("#result-id")).to_have_text(fresh)
        task = self.emulator.account.tasks[fresh]
        return {"task_id": fresh, "ratios": task.ratios, "n": task.n, "prompt": task.prompt}


@asynccontextmanager
async def visiting(
    browser: Browser,
    *,
    scheme: Literal["light", "dark"] = "light",
    width: int = 1280,
    height: int = 900,
    **settings: Any,
) -> AsyncIterator[Visit]:
    """Run an emulator with a stopped clock and yield its console. An error on the page fails the test."""
    options: dict[str, Any] = {
        "engine": "flat",
        "queue_seconds": 10.0,
        "work_seconds": 20.0,
        "clock": lambda: 1.79e9,
    }
    async with Emulator(**options | settings) as emulator:
        context = await browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}, locale="en-GB"
        )
        context.set_default_timeout(TIMEOUT)
        expect.set_options(timeout=TIMEOUT)
        page = await context.new_page()
        visit = Visit(page, emulator)
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("console", lambda said: visit.errors.append(said.text) if "Policy" in said.text else None)
        await page.goto(emulator.url + "/")
        await expect(page.locator("html")).to_have_attribute("data-ready", "yes")
        await expect(page.locator("#link")).to_have_text("Live")
        yield visit
        assert visit.errors == []
        assert all(url.startswith((emulator.url + "/", "blob:")) for url in visit.requests)
        await context.close()
