"""The checks of `kling_expand.pictures.inspect`: the share of broken pictures found and of false alarms.

    python -m benchmarks.inspect_pictures --json

Good pictures are painted by the emulator's engine around random parts of five scenes. Half are shifted and
scaled a little, as the real service may do. A copy of each is then broken in one of the ways of `BREAKS`, in
turn. The way "flat" uses the emulator's flat engine. With `--pictures 300` there are 150 good and 150 broken
pictures.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.large_photos import enlarged, texture
from benchmarks.reporting import finish, options, table
from kling_expand import Ratios
from kling_expand.emulator.painting.pictures import outpaint

Levels = NDArray[np.float32]


@frozen
class Case:
    """A photo, the ratios, and the emulator's picture of them."""

    photo: Image.Image
    ratios: Ratios
    picture: Image.Image
    seed: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The position of the original in the picture."""
        return self.ratios.canvas(*self.photo.size).scaled(*self.picture.size).box


def cases(number: int, engine: str) -> Iterator[Case]:
    """Yield good pictures of random parts of the scenes, with random ratios."""
    scenes = [
        enlarged(f"{name}.jpg", 1800, seed=index)
        for index, name in enumerate(("coffee", "rocket", "chelsea"))
    ]
    scenes += [texture(1800, 1200, seed=seed) for seed in (4, 5)]
    for seed in range(number):
        rng = np.random.default_rng(seed)
        scene = scenes[seed % len(scenes)]
        width, height = (int(rng.integers(side // 3, 4 * side // 5)) for side in scene.size)
        left, top = int(rng.integers(scene.width - width)), int(rng.integers(scene.height - height))
        photo = scene.crop((left, top, left + width, top + height))
        ratios = random_ratios(rng)
        shift = ",".join(f"{value:.2f}" for value in (*rng.uniform(-1, 1, 2), rng.uniform(0.999, 1.001)))
        yield Case(photo, ratios, painted(photo, ratios, seed, engine, shift if seed % 2 else ""), seed)


def random_ratios(rng: np.random.Generator) -> Ratios:
    """Return ratios of one to four sides."""
    sides = rng.uniform(0.1, 0.6, 4) * (rng.random(4) < 0.6)
    sides[int(rng.integers(4))] = rng.uniform(0.15, 0.6)
    while (1 + sides[0] + sides[1]) * (1 + sides[2] + sides[3]) > 3:
        sides *= 0.9
    return Ratios(*(float(side) for side in sides))


def painted(photo: Image.Image, ratios: Ratios, seed: int, engine: str, misregister: str = "") -> Image.Image:
    """Return the emulator's picture of a photo."""
    target = io.BytesIO()
    photo.save(target, "JPEG", quality=92)
    sides = (ratios.up, ratios.down, ratios.left, ratios.right)
    made = outpaint(target.getvalue(), sides, seed=seed, engine=engine, misregister=misregister)
    return Image.open(io.BytesIO(made.data)).convert("RGB")


# ---------------------------------------------------------------------------- broken pictures


def _levels(image: Image.Image) -> Levels:
    return np.asarray(image, np.float32)


def _image(levels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _outside(case: Case, levels: NDArray[Any]) -> Image.Image:
    """Return the picture with other levels around the original."""
    changed = _image(levels)
    changed.paste(case.picture.crop(case.box), case.box[:2])
    return changed


def shifted(case: Case) -> Image.Image:
    """Return the picture shifted by 8 pixels."""
    x, y = ((8, 0), (-8, 0), (0, 8), (0, -8))[case.seed // 2 % 4]
    return _image(np.roll(_levels(case.picture), (y, x), (0, 1)))


def wrong_side(case: Case) -> Image.Image:
    """Return a picture expanded on the opposite sides."""
    ratios = case.ratios
    if (ratios.up, ratios.left) == (ratios.down, ratios.right):
        return shifted(case)
    swapped = Ratios(ratios.down, ratios.up, ratios.right, ratios.left)
    canvas = swapped.canvas(*case.photo.size).scaled(*case.picture.size)
    picture = case.picture.transpose(Image.Transpose.ROTATE_180)
    box = canvas.box
    picture.paste(case.photo.resize((box[2] - box[0], box[3] - box[1])), box[:2])
    return picture


def mirrored(case: Case) -> Image.Image:
    """Return the original mirrored outwards, as padding would."""
    left, top, right, bottom = case.box
    inner = _levels(case.picture)[top:bottom, left:right]
    margins = (top, case.picture.height - bottom), (left, case.picture.width - right), (0, 0)
    return _image(np.pad(inner, margins, mode="symmetric"))


def flipped(case: Case) -> Image.Image:
    """Return the picture with left and right swapped."""
    return case.picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def tinted(case: Case) -> Image.Image:
    """Return the picture with a color cast everywhere."""
    return _image(_levels(case.picture) * np.array([1.1, 1.0, 0.88]))


def tinted_outside(case: Case) -> Image.Image:
    """Return the picture with a color cast in the new area."""
    return _outside(case, _levels(case.picture) * np.array([0.86, 1.0, 1.1]) + 4)


def blurred(case: Case) -> Image.Image:
    """Return the picture with a blurred original."""
    changed = case.picture.copy()
    changed.paste(case.picture.crop(case.box).filter(ImageFilter.GaussianBlur(3)), case.box[:2])
    return changed


def posterized(case: Case) -> Image.Image:
    """Return the picture with few levels in the new area."""
    return _outside(case, np.round(_levels(case.picture) / 24) * 24)


def striped(case: Case) -> Image.Image:
    """Return the picture with bands across the new area."""
    bands = 9 * np.sign(np.sin(np.arange(case.picture.height) / 3.5))
    return _outside(case, _levels(case.picture) + bands[:, None, None])


def black(case: Case) -> Image.Image:
    """Return the picture with a black new area."""
    return _outside(case, np.zeros_like(_levels(case.picture)))


def flat(case: Case) -> Image.Image:
    """Return the picture that the flat engine paints."""
    return painted(case.photo, case.ratios, case.seed, "flat")


def seamed(case: Case) -> Image.Image:
    """Return the picture with a new area that is a little lighter, so that the seam shows."""
    return _outside(case, _levels(case.picture) + 10)


BREAKS: Mapping[str, Callable[[Case], Image.Image]] = {
    "shifted": shifted,
    "wrong side": wrong_side,
    "mirrored": mirrored,
    "flipped": flipped,
    "tinted": tinted,
    "tinted outside": tinted_outside,
    "blurred": blurred,
    "posterized": posterized,
    "striped": striped,
    "black": black,
    "flat": flat,
    "seam": seamed,
}


def main() -> None:
    """Inspect every picture, and print how many broken pictures of each kind are found."""
    from kling_expand.pictures.inspect import inspect

    given = options(str(__doc__).splitlines()[0], pictures=300, engine="patchmatch")
    found: dict[str, list[bool]] = {"good": [], **{kind: [] for kind in BREAKS}}
    kinds = list(BREAKS)
    for number, case in enumerate(cases(given.pictures // 2, given.engine)):
        kind = kinds[number % len(kinds)]
        for name, picture in (("good", case.picture), (kind, BREAKS[kind](case))):
            report = inspect(case.photo, picture, case.ratios)
            found[name].append(not report.ok)
            if report.ok is (name != "good"):
                print(f"{name}, seed {case.seed}: {report}")
    good = found.pop("good")
    broken = [each for kind in found.values() for each in kind]
    rows = [{"kind": kind, "pictures": len(each), "found": sum(each)} for kind, each in found.items() if each]
    table([*rows, {"kind": "good", "pictures": len(good), "found": sum(good)}])
    shares = {"found": sum(broken) / len(broken), "false alarms": sum(good) / len(good)}
    print({name: f"{share:.1%}" for name, share in shares.items()})
    finish({"kinds": rows, **shares}, as_json=given.json)


if __name__ == "__main__":
    main()
