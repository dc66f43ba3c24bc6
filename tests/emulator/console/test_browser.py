"""The console in Chromium: by pointer, by keyboard, in both color schemes and on a small screen."""

import asyncio
import base64
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from PIL import Image
from playwright.async_api import Browser, expect
from support.browser import PHOTOS, Visit, chromium, visiting
from support.raw_client import SIDES, png

from kling_expand import KlingClient, Ratios, ToAspect
from kling_expand.errors import GeometryError

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Yield a Chromium that all tests share."""
    async with chromium() as started:
        yield started


async def test_a_photo_is_expanded(browser: Browser) -> None:
    """A photo is chosen, dragged, expanded and compared, and the request has the dragged ratios."""
    async with visiting(browser) as visit:
        page = visit.page
        await visit.choose()
        await expect(page.locator("#photo-name")).to_have_text("coffee.jpg, 600 × 400")
        await expect(page.locator("#expand")).to_be_disabled()
        await visit.drag("right", 60, 0)
        await visit.drag("up", 0, -40)
        right, up = await visit.ratio("right"), await visit.ratio("up")
        assert right > 0.05
        assert up > 0.05
        await page.fill("#prompt", "a wooden table")
        await page.select_option("#n", "2")
        await expect(page.locator("#price")).to_contain_text("16 units ($0.056)")
        task = await visit.expand()
        assert task["ratios"] == (up, 0, 0, right)
        assert (task["prompt"], task["n"]) == ("a wooden table", 2)
        badge = page.locator("#result-badge")
        await expect(badge).to_have_text("Submitted")
        visit.emulator.advance(10)
        await expect(badge).to_have_text("Processing")
        visit.emulator.advance(20)
        await expect(badge).to_have_text("Succeeded")
        await expect(page.locator("#said")).to_contain_text("Succeeded")
        await expect(page.locator(".steps")).to_contain_text("20.00 s")
        await expect(page.locator("#count-units")).to_have_text("16")
        await page.get_by_role("button", name="Image 2").click()
        await expect(page.locator(".save")).to_have_attribute("download", f"{task['task_id']}-1.png")
        assert await natural_size(visit, ".original") == [600, 400]
        assert visit.emulator.account.requests == {"create": 1}, (
            "the console's own downloads must not be counted"
        )


async def natural_size(visit: Visit, selector: str) -> Any:
    """Return the width and height of a loaded picture."""
    return await visit.page.eval_on_selector(
        selector,
        "async (image) => { await image.decode(); return [image.naturalWidth, image.naturalHeight] }",
    )


async def finished(visit: Visit) -> None:
    """Advance the clock to the end of a task and wait for its picture."""
    visit.emulator.advance(1000)
    await expect(visit.page.locator(".frame.done")).to_be_visible()


async def test_the_slider_divides_before_from_after(browser: Browser) -> None:
    """The original keeps its position in the result, and the slider works by keyboard and pointer."""
    async with visiting(browser) as visit:
        await visit.choose()
        await visit.page.click("text=16:9")
        await visit.expand()
        await finished(visit)
        frame = await visit.page.locator(".frame").bounding_box()
        original = await visit.page.locator(".original").bounding_box()
        assert frame is not None
        assert original is not None
        assert frame["width"] / frame["height"] == pytest.approx(16 / 9, rel=0.01)
        assert original["width"] / frame["width"] == pytest.approx(1 / 1.185, rel=0.01)
        width, height = await natural_size(visit, ".after")
        assert width / height == pytest.approx(16 / 9, rel=0.01)
        slider = visit.page.get_by_role("slider", name="Before and after")
        await slider.focus()
        await slider.press("End")
        await expect(slider).to_have_attribute("aria-valuetext", "100 percent before, 0 percent after")
        assert "100%" in await clip(visit)
        await visit.page.mouse.click(frame["x"] + frame["width"] / 4, frame["y"] + frame["height"] / 2)
        assert 20 < float(await slider.input_value()) < 30


async def clip(visit: Visit) -> str:
    """Return the clipping of the upper picture."""
    return str(await visit.page.eval_on_selector(".after", "(image) => getComputedStyle(image).clipPath"))


async def test_edges_snap_to_aspect_ratios(browser: Browser) -> None:
    """Near 16:9 the edge snaps to it, unless Alt is held."""
    async with visiting(browser) as visit:
        await visit.choose()
        scale = await pixels_per_photo(visit)
        x, y = await visit.grab("right")
        near = x + (16 / 9 / 1.5 - 1) * scale
        await visit.page.mouse.move(near + 5, y, steps=4)
        assert await visit.ratio("right") == 0.1852
        await expect(visit.page.get_by_role("button", name="16:9")).to_have_attribute("aria-pressed", "true")
        await expect(visit.page.locator("#size")).to_have_text("711 × 400, 16:9")
        await visit.page.keyboard.down("Alt")
        await visit.page.mouse.move(near + 6, y)
        assert await visit.ratio("right") != 0.1852
        await visit.page.keyboard.up("Alt")
        await visit.page.mouse.move(x + 2, y)
        assert await visit.ratio("right") == 0, "near 0 it snaps to 0"
        await visit.page.mouse.up()


async def pixels_per_photo(visit: Visit) -> float:
    """Return the width of the photo on the screen."""
    box = await visit.page.locator("#photo").bounding_box()
    assert box is not None
    return box["width"]


async def test_the_area_is_limited_to_3(browser: Browser) -> None:
    """Neither dragging nor typing leads to an area above 3."""
    async with visiting(browser) as visit:
        page = visit.page
        await visit.choose()
        await visit.drag("down", 0, 90)
        x, y = await visit.grab("left")
        await expect(page.locator("#limit")).to_be_attached()
        await page.mouse.move(x - 900, y, steps=12)
        await expect(page.locator("#limit")).to_have_class("limit left")
        await page.mouse.up()
        await expect(page.locator("#area")).to_have_text("3.00× of 3×")
        await expect(page.get_by_role("meter")).to_have_class("meter full")
        await expect(visit.edge("left")).to_have_attribute("aria-valuetext", containing("at its limit"))
        await page.fill("#ratio-up", "1.7")
        assert await visit.ratio("up") == 1.7, "a focused field keeps what is typed"
        await page.press("#ratio-up", "Tab")
        assert await visit.ratio("up") == 0
        down, left = await visit.ratio("down"), await visit.ratio("left")
        assert Ratios(down=down, left=left).area == pytest.approx(3, abs=1e-3)
        assert (await visit.expand())["ratios"] == (0, down, left, 0)


def containing(text: str) -> re.Pattern[str]:
    """Return a pattern that matches every text that contains this one."""
    return re.compile(re.escape(text))


async def test_a_ratio_is_limited_to_2(browser: Browser) -> None:
    """A ratio stays within 0 and 2 for every key and number."""
    async with visiting(browser) as visit:
        await visit.choose()
        edge = visit.edge("right")
        await edge.focus()
        await edge.press("End")
        assert await visit.ratio("right") == 2
        await edge.press("ArrowRight")
        assert await visit.ratio("right") == 2
        await edge.press("Home")
        await edge.press("ArrowLeft")
        assert await visit.ratio("right") == 0
        for typed, kept in (("7", 2), ("-3", 0), ("", 0), ("0.25", 0.25)):
            await visit.page.fill("#ratio-right", typed)
            await visit.page.press("#ratio-right", "Tab")
            assert await visit.ratio("right") == kept


@pytest.mark.parametrize(
    ("side", "outwards", "inwards", "more"),
    [
        ("left", "ArrowLeft", "ArrowRight", "ArrowUp"),
        ("right", "ArrowRight", "ArrowLeft", "ArrowUp"),
        ("up", "ArrowUp", "ArrowDown", "ArrowRight"),
        ("down", "ArrowDown", "ArrowUp", "ArrowRight"),
    ],
)
async def test_arrows_move_an_edge_where_they_point(
    browser: Browser, side: str, outwards: str, inwards: str, more: str
) -> None:
    """Each edge follows the arrow keys in small and large steps, and describes its position."""
    async with visiting(browser) as visit:
        await visit.choose()
        edge = visit.edge(side)
        await edge.focus()
        for key, value in (
            (outwards, 0.01),
            (f"Shift+{outwards}", 0.11),
            (more, 0.12),
            ("PageUp", 0.22),
            (inwards, 0.21),
        ):
            await edge.press(key)
            assert await visit.ratio(side) == value
            await expect(edge).to_have_attribute("aria-valuenow", str(value))
        await expect(edge).to_be_focused()
        length = 600 if side in {"left", "right"} else 400
        await expect(edge).to_have_attribute("aria-valuetext", containing(f"{round(0.21 * length)} pixels"))


async def test_everything_works_by_keyboard(browser: Browser) -> None:
    """Everything works by keyboard alone, and every focused control shows its focus."""
    async with visiting(browser, queue_seconds=0, work_seconds=3) as visit:
        page = visit.page
        await tab_to(visit, "coffee")
        await page.keyboard.press("Enter")
        await expect(page.locator("#order")).to_be_visible()
        await tab_to(visit, "Right edge")
        await page.keyboard.press("Shift+ArrowRight")
        await tab_to(visit, "16:9")
        await page.keyboard.press("Space")
        await tab_to(visit, "Prompt optional")
        await page.keyboard.type("a wooden table")
        await tab_to(visit, "Expand")
        await page.keyboard.press("Enter")
        await expect(page.locator("#result-badge")).to_have_text("Processing")
        await tab_to(visit, "+10 s")
        await page.keyboard.press("Enter")
        await expect(page.locator("#result-badge")).to_have_text("Succeeded")
        await expect(page.get_by_label("Before and after")).to_be_visible()
        await tab_to(visit, "Before and after")
        await page.keyboard.press("ArrowRight")
        await expect(page.locator(".frame input")).to_have_value("51")
        await tab_to(visit, "Add fault")
        await page.keyboard.press("Enter")
        await expect(page.locator("#planned")).to_contain_text("next call")


FOCUSED = """() => {
  const at = document.activeElement;
  const style = getComputedStyle(at), inner = getComputedStyle(at.querySelector("i") ?? at);
  const frame = getComputedStyle(at.closest(".frame") ?? at);
  const label = at.labels?.[0];
  const name = at.getAttribute("aria-label") ?? label?.firstChild.textContent.trim() ?? at.textContent;
  const outlined = (each) => each.outlineStyle !== "none" && each.outlineWidth !== "0px";
  const seen = [style, inner, frame].some(outlined);
  const optional = label?.querySelector(".quiet")?.textContent ?? "";
  return [`${name} ${optional}`.trim(), seen || at === document.body];
}"""


async def tab_to(visit: Visit, name: str) -> None:
    """Press Tab until the control with this name is focused. Each control in between must show its focus."""
    for _ in range(90):
        await visit.page.keyboard.press("Tab")
        found, seen = await visit.page.evaluate(FOCUSED)
        assert seen, f"{found} does not show its focus"
        if found == name:
            return
    pytest.fail(f"Tab never came to {name}")


async def test_a_photo_is_dropped(browser: Browser) -> None:
    """A photo can be dropped anywhere. An invalid one causes an error, and the current photo stays."""
    async with visiting(browser) as visit:
        error = visit.page.locator("#photo-error")
        await drop(visit, "notes.txt", "text/plain", b"hello")
        await expect(error).to_have_text("The photo must be a JPEG or PNG file, got notes.txt.")
        await drop(visit, "small.png", "image/png", png(299, 400))
        await expect(error).to_have_text("Each side must have at least 300 pixels, got 299 × 400.")
        await drop(visit, "long.png", "image/png", png(900, 300))
        await expect(error).to_have_text("The aspect ratio must be between 1:2.5 and 2.5:1, got 900 × 300.")
        await drop(visit, "torn.png", "image/png", png()[:40])
        await expect(error).to_have_text("torn.png cannot be read as a picture.")
        await drop(visit, "good.png", "image/png", png(640, 480))
        await expect(error).to_have_text("")
        await expect(visit.page.locator("#photo-name")).to_have_text("good.png, 640 × 480")
        await drop(visit, "huge.png", "image/png", png(), padding=10 * 1024 * 1024)
        await expect(error).to_have_text("The photo must be at most 10 MB, got 10.0 MB.")
        await expect(visit.page.locator("#photo-name")).to_have_text("good.png, 640 × 480")


async def drop(visit: Visit, name: str, kind: str, content: bytes, *, padding: int = 0) -> None:
    """Drop a file on the page, with *padding* zero bytes at its end."""
    await visit.page.evaluate(
        """([name, type, text, padding]) => {
            const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes, new Uint8Array(padding)], name, { type }));
            const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [name, kind, base64.b64encode(content).decode(), padding],
    )


async def test_a_photo_is_shown_as_stored(browser: Browser, tmp_path: Path) -> None:
    """A JPEG with an EXIF orientation is measured and shown as stored."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(PHOTOS / "coffee.jpg").save(tmp_path / "turned.jpg", exif=turned)
    async with visiting(browser) as visit:
        await visit.page.set_input_files("#file", tmp_path / "turned.jpg")
        await expect(visit.page.locator("#photo-name")).to_have_text("turned.jpg, 600 × 400")
        await visit.page.click("text=16:9")
        await visit.expand()
        await finished(visit)
        for selector in ("#photo", ".original"):
            await expect(visit.page.locator(selector)).to_have_css("image-orientation", "none")
        frame = await visit.page.locator(".frame").bounding_box()
        assert frame is not None
        assert frame["width"] / frame["height"] == pytest.approx(16 / 9, rel=0.01)


async def test_shapes_agree_with_the_sdk(browser: Browser) -> None:
    """The geometry of the page agrees with that of the SDK for every aspect ratio."""
    sizes = [(600, 400), (400, 600), (451, 300), (1000, 1000), (300, 750), (750, 300), (1600, 901)]
    async with visiting(browser) as visit:
        found = await visit.page.evaluate(
            """async (sizes) => {
                const { SHAPES, toShape, size } = await import("/console/geometry.js");
                return sizes.map(([width, height]) => SHAPES.map((shape) => {
                    const ratios = toShape({ width, height }, shape);
                    return [shape.name, ratios, ratios && size({ width, height }, ratios)];
                }));
            }""",
            sizes,
        )
    for (width, height), shapes in zip(sizes, found, strict=True):
        for name, ratios, size in shapes:
            ours = sdk_ratios(name, width, height)
            if ours is None:
                assert ratios is None or set(ratios.values()) == {0}
                continue
            assert ratios == {side: pytest.approx(getattr(ours, side), abs=1.01e-4) for side in SIDES}
            canvas = Ratios(**ratios).canvas(width, height)
            assert size == [canvas.width, canvas.height]


def sdk_ratios(name: str, width: int, height: int) -> Ratios | None:
    """Return the ratios of the SDK for an aspect ratio, or None."""
    try:
        return ToAspect(name).ratios(width, height)
    except GeometryError:
        return None


async def snippet(visit: Visit, language: str) -> str:
    """Return the code that the page shows."""
    await visit.page.click(f"text={language}")
    return await visit.page.locator("#snippet").inner_text()


async def run_program(words: list[str], folder: Path) -> str:
    """Run a program that must succeed, and return its output."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


async def test_the_code_creates_the_same_task_as_the_button(browser: Browser, tmp_path: Path) -> None:
    """The curl command and the Python program create the same task as the button."""
    name, prompt = 'it\'s $HOME "here".jpg', 'tea & "$5" `ls` \\n it\'s ünï'
    (tmp_path / name).write_bytes((PHOTOS / "coffee.jpg").read_bytes())
    async with visiting(browser, queue_seconds=0.0, work_seconds=0.1, clock=time.time) as visit:
        await visit.page.set_input_files("#file", tmp_path / name)
        await visit.page.fill("#ratio-left", "0.3")
        await visit.page.fill("#ratio-down", "0.125")
        await visit.page.fill("#prompt", prompt)
        await visit.page.select_option("#n", "2")
        curl, python = await snippet(visit, "curl"), await snippet(visit, "Python")
        await visit.expand()
        response = json.loads(await run_program(["bash", "-euc", curl], tmp_path))
        assert response["code"] == 0
        (tmp_path / "program.py").write_text(python, encoding="utf-8")
        await run_program([sys.executable, "program.py"], tmp_path)
        assert len(list((tmp_path / "out").iterdir())) == 2
        tasks = visit.emulator.account.tasks.values()
        assert [(task.ratios, task.n, task.prompt) for task in tasks] == [((0, 0.125, 0.3, 0), 2, prompt)] * 3
        assert len({task.digest for task in tasks}) == 1


async def test_code_is_copied(browser: Browser) -> None:
    """The code is copied to the clipboard, or selected if the browser denies access to it."""
    async with visiting(browser) as visit:
        await visit.choose()
        await visit.page.click("text=1:1")
        code = await visit.page.locator("#snippet").text_content()
        for place, done in (("undefined", "Selected"), (CLIPBOARD, "Copied")):
            await visit.page.evaluate(
                f"Object.defineProperty(navigator, 'clipboard', {{ value: {place}, configurable: true }})"
            )
            await visit.page.click("#copy")
            await expect(visit.page.locator("#copy")).to_have_text(done)
        assert (await visit.page.evaluate("getSelection().toString()")).strip() == (code or "").strip()
        assert await visit.page.evaluate("window.kept") == code


CLIPBOARD = "{ writeText: async (text) => { window.kept = text } }"


async def test_tasks_of_other_programs_appear_live(browser: Browser) -> None:
    """A task of the SDK appears with its calls and bodies, without a reload."""
    async with visiting(browser) as visit:
        page, emulator = visit.page, visit.emulator
        async with KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling:
            future = kling.submit(PHOTOS / "rocket.jpg", Ratios(up=0.5), prompt="night sky")
            await expect(page.locator("#task-list")).to_contain_text("night sky")
            await expect(page.locator("#count-slots")).to_have_text("1 of 9")
            emulator.advance(30)
            await future
        await expect(page.locator("#task-list .badge")).to_have_text("Succeeded")
        await page.click("#task-list button")
        await expect(page.locator(".frame.done")).to_be_visible()
        create = page.locator("#call-list > li", has_text="POST")
        await create.locator("summary").first.click()
        await expect(create.locator("pre").first).to_contain_text("more characters")
        await expect(create).to_contain_text('"up_expansion_ratio": 0.5')
        await expect(create).to_contain_text('"message": "SUCCEED"')
        assert emulator.api_key not in await create.inner_text()
        await emulator_call(visit, "GET", "/v1/images/editing/expand/unknown")
        await expect(page.locator("#call-list > li", has_text="unknown")).to_contain_text("400")
        await page.check("#calls-mine")
        await expect(page.locator("#call-list > li", has_text="unknown")).to_have_count(0)
        await expect(create).to_be_visible()
        emulator.advance(31 * 86400)
        await expect(page.locator("#task-list li")).to_have_count(0)
        await expect(page.locator("#result-body")).to_contain_text("has expired")


async def emulator_call(visit: Visit, method: str, path: str) -> None:
    """Send a request like another program."""
    headers = {"Authorization": f"Bearer {visit.emulator.api_key}"}
    await visit.page.request.fetch(visit.emulator.url + path, method=method, headers=headers)


async def test_faults_are_added_applied_and_cleared(browser: Browser) -> None:
    """The panel offers the faults of each call. Added faults take effect and are shown."""
    async with visiting(browser) as visit:
        page = visit.page
        await visit.choose()
        await page.click("text=16:9")
        await page.select_option("#fault-kind", "error_after")
        await expect(page.locator("#fault-code")).to_be_visible()
        await page.select_option("#fault-code", "5002")
        await page.click("text=Add fault")
        await page.select_option("#fault-kind", "reset")
        await expect(page.locator("#fault-code")).to_be_hidden()
        await page.fill("#fault-times", "9")  # Chromium repeats a call whose connection was cut
        await page.click("text=Add fault")
        await expect(page.locator("#planned li")).to_have_count(2)
        await expect(page.locator("#planned")).to_contain_text("error after 5002")
        await page.click("#expand")
        await expect(page.locator("#order-error")).to_contain_text("504 / 5002")
        await expect(page.locator("#task-list li")).to_have_count(1)
        await expect(page.locator("#call-list li").first).to_contain_text("error_after")
        await page.click("#expand")
        await expect(page.locator("#order-error")).to_contain_text("The connection was cut")
        await expect(page.locator("#call-list li").first).to_contain_text("cut")
        await page.click("text=Clear all")
        await page.fill("#fault-times", "1")
        await page.select_option("#fault-kind", "html")
        await page.click("text=Add fault")
        await expect(page.locator("#planned li")).to_have_count(1)
        await page.click("#expand")
        await expect(page.locator("#order-error")).to_contain_text("has no documented form")
        await page.select_option("#fault-route", "file")
        await page.select_option("#fault-kind", "truncated_picture")
        await page.select_option("#fault-mode", "chance")
        await page.fill("#fault-percent", "12.5")
        await page.click("text=Add fault")
        await expect(page.locator("#planned")).to_contain_text("12.5 % of calls")
        assert visit.emulator.faults.planned()["file"]["chances"][0]["probability"] == 0.125
        await page.select_option("#fault-mode", "duration")
        await page.fill("#fault-duration", "40")
        await page.click("text=Add fault")
        await expect(page.locator("#planned")).to_contain_text("all calls for 40 s")
        visit.emulator.advance(40)
        await expect(page.locator("#planned")).not_to_contain_text("all calls for")
        await page.click("text=Clear all")
        await expect(page.locator("#faults-count")).to_have_text("No faults planned")
        await page.select_option("#fault-route", "create")
        assert "truncated picture" not in await page.locator("#fault-kind").inner_text()
        assert not any(each["chances"] for each in visit.emulator.faults.planned().values())


async def test_a_lost_response_creates_no_second_task(browser: Browser) -> None:
    """If the connection is cut after the create, there is only one task, and the page finds it."""
    async with visiting(browser) as visit:
        await visit.choose()
        await visit.page.click("text=16:9")
        visit.emulator.faults.script("create", "reset_after")
        await visit.page.click("#expand")
        await expect(visit.page.locator("#result-badge")).to_have_text("Submitted")
        await expect(visit.page.locator("#order-error")).to_contain_text("connection was cut")
        assert len(visit.emulator.account.tasks) == 1


async def test_every_documented_fault_can_be_added(browser: Browser) -> None:
    """The panel offers every kind of fault, with fields that make a valid fault."""
    async with visiting(browser) as visit:
        page = visit.page
        count = 0
        for route in ("create", "file"):
            await page.select_option("#fault-route", route)
            kinds = await page.eval_on_selector_all(
                "#fault-kind option", "(all) => all.map((one) => one.value)"
            )
            for kind in kinds:
                await page.select_option("#fault-kind", kind)
                await page.click("text=Add fault")
                count += 1
                await expect(page.locator("#planned li")).to_have_count(count)
        await expect(page.locator("#fault-error")).to_have_text("")
        scripts = visit.emulator.faults.planned()
        assert len(scripts["create"]["script"]) + 2 == len(scripts["file"]["script"]) == 17


async def test_an_invalid_fault_shows_its_message(browser: Browser) -> None:
    """The message of a refused fault is shown next to the form."""
    async with visiting(browser) as visit:
        await visit.page.evaluate("document.getElementById('fault').noValidate = true")
        await visit.page.fill("#fault-times", "0")
        await visit.page.click("text=Add fault")
        await expect(visit.page.locator("#fault-error")).to_contain_text("1201")


async def test_the_clock_is_advanced(browser: Browser) -> None:
    """The buttons and the form advance the clock, and the page shows the total advance."""
    async with visiting(browser) as visit:
        page = visit.page
        await page.click("text=+10 s")
        await expect(page.locator("#moved")).to_have_text("(advanced by 10 s)")
        await page.click("text=+30 days")
        await expect(page.locator("#moved")).to_have_text("(advanced by 30 d 10 s)")
        await page.fill("#move", "3590.5")
        await page.get_by_role("button", name="Advance", exact=True).click()
        await expect(page.locator("#moved")).to_have_text("(advanced by 30 d 1 h)")
        assert visit.emulator.service.clock.offset == 30 * 86400 + 3600.5
        await expect(page.locator("#time")).to_contain_text("2026")


async def test_the_page_reconnects(browser: Browser) -> None:
    """The page shows a lost connection, and after the reconnection it shows everything once."""
    async with visiting(browser) as visit:
        await visit.choose()
        await visit.page.click("text=16:9")
        await visit.expand()
        async with visit.emulator.unreachable():
            await expect(visit.page.locator("#link")).to_have_text("Connecting")
        await expect(visit.page.locator("#link")).to_have_text("Live")
        await expect(visit.page.locator("#task-list li")).to_have_count(1)
        await expect(visit.page.locator("#call-list > li")).to_have_count(1)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375)])
async def test_the_page_is_accessible(browser: Browser, scheme: Literal["light", "dark"], width: int) -> None:
    """axe-core finds no violation on a page in use, in both color schemes and widths."""
    async with visiting(browser, scheme=scheme, width=width) as visit:
        page = visit.page
        await visit.choose()
        await page.click("text=16:9")
        await page.fill("#prompt", "emulate-risk-control")
        await visit.expand()
        await page.fill("#prompt", "")
        await page.select_option("#n", "2")
        await visit.expand()
        await visit.edge("left").focus()
        await page.select_option("#fault-kind", "error")
        await page.click("text=Add fault")
        await check_access(visit)
        await page.click("text=Clear all")
        await finished(visit)
        await page.locator("#call-list summary").first.click()
        await expect(page.locator("#call-list pre").first).to_be_visible()
        await page.locator("#task-list button").nth(1).click()
        await expect(page.locator(".view .error")).to_contain_text("risk control")
        await page.locator("#task-list button").nth(0).click()
        await expect(page.locator(".frame.done")).to_be_visible()
        await check_access(visit)


async def test_the_empty_page_is_accessible(browser: Browser) -> None:
    """axe-core finds no violation on the empty page, or with a failed task."""
    async with visiting(browser) as visit:
        await check_access(visit)
        await visit.choose()
        await visit.page.click("text=16:9")
        await visit.page.fill("#prompt", "emulate-risk-control")
        await visit.expand()
        visit.emulator.advance(100)
        await expect(visit.page.locator(".view .error")).to_contain_text("risk control")
        await check_access(visit)


RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


async def check_access(visit: Visit) -> None:
    """Assert that no rule is violated and that the page needs no horizontal scrolling."""
    found = await Axe().run(visit.page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    wide = await visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]


async def test_the_page_follows_the_preferences(browser: Browser) -> None:
    """The page follows the preferred color scheme and the preference for reduced motion."""
    async with visiting(browser) as visit:
        shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        assert await visit.page.evaluate(shade) > 200
        await visit.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        assert await visit.page.evaluate(shade) < 50
        await visit.choose()
        await visit.page.click("text=16:9")
        await visit.expand()
        moving = "document.getAnimations().length"
        assert await visit.page.evaluate(moving) == 0
        await visit.page.emulate_media(reduced_motion="no-preference")
        assert await visit.page.evaluate(moving) > 0
