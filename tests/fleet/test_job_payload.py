"""Payloads, which carry a request through JSON, and photos and pictures in object stores."""

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st
from support.fleet_workers import outcomes, working

from benchmarks.reporting import picture
from kling_expand import ExpandRequest, Padding, Ratios, Task, ToAspect, ToSize, Towards, errors
from kling_expand.emulator import Emulator
from kling_expand.fleet.job import load, pack, retry_delay, save, unpack
from kling_expand.fleet.queue import Fleet
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import source_stem

pytest_plugins = ["support.postgres", "support.fleet"]

GEOMETRIES = [
    Ratios(left=0.5),
    ToAspect("16:9"),
    ToAspect("1:1", area=2.0, anchor="top"),
    ToSize(900, 900),
    Padding(up=20),
    Towards("left,right", ratio=1.4),
]
# A value other than the default for each field of a request.
VALUES: dict[str, Any] = {
    "image": "https://host/dog.png",
    "geometry": ToAspect("1:1", area=2.0, anchor="top"),
    "prompt": "a meadow",
    "n": 3,
    "watermark": True,
    "callback_url": "https://host/callback",
    "external_task_id": "mine",
    "key": "k",
    "extra": {"new_field": {"a": [1, None], "b": 1.5}},
}


def through_json(payload: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(json.dumps(payload))
    return decoded


@given(
    st.sampled_from(GEOMETRIES),
    st.none() | st.text(max_size=20),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(["/a/dog.png", "https://host/dog.png", "s3://bucket/dog.png"]),
)
def test_a_payload_keeps_its_request(
    geometry: Any,
    prompt: str | None,
    n: int,
    watermark: bool,  # noqa: FBT001 - drawn by Hypothesis
    image: str,
) -> None:
    """The request survives JSON, and only equal requests have the same derived key."""
    request = ExpandRequest(image, geometry, prompt, n=n, watermark=watermark)
    payload = pack(request)
    again = unpack(through_json(payload))
    assert again == evolve(request, key=payload["key"])
    assert pack(again) == payload == pack(request)
    assert pack(evolve(request, n=n % 9 + 1))["key"] != payload["key"]
    assert through_json(pack(request, 2)) == payload | {"passes": 2}
    assert unpack(pack(request, 2)) == again
    assert source_stem(image) == "dog"


def test_every_field_of_a_request_is_queued() -> None:
    """Every field of `ExpandRequest`, even a new one, has a value here that survives the queue."""
    names = [field.name for field in fields(ExpandRequest)]
    assert set(VALUES) == set(names)
    request = ExpandRequest(**VALUES)
    again = unpack(through_json(pack(request)))
    for field in fields(ExpandRequest):
        value = getattr(request, field.name)
        assert value != field.default
        assert getattr(again, field.name) == value


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"key"}))
def test_the_derived_key_depends_on_every_field(name: str) -> None:
    """Two requests that differ in one field are two jobs."""
    plain = ExpandRequest("a.png", Ratios(up=1.0))
    assert pack(evolve(plain, **{name: VALUES[name]}))["key"] != pack(plain)["key"]


def test_a_payload_contains_no_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is made absolute. Bytes, data URIs and the caller's own geometries are refused."""
    monkeypatch.chdir(tmp_path)
    assert pack(ExpandRequest(Path("a.png"), Ratios(up=1.0)))["image"] == str(tmp_path / "a.png")
    for image in (b"bytes", "data:image/png;base64,AAAA"):
        with pytest.raises(errors.InvalidRequest, match="image must be a path, an http"):
            pack(ExpandRequest(image, Ratios(up=1.0)))

    class CustomRatios(Ratios):
        """A geometry class of the caller's own."""

    with pytest.raises(errors.InvalidRequest, match=r"geometry must be one of .*, got CustomRatios"):
        pack(ExpandRequest("a.png", CustomRatios(up=1.0)))


async def test_photos_and_images_in_object_stores(fleet: Fleet, dsn: str, emulator: Emulator) -> None:
    """Photos are read from a store, and pictures are written to one. A missing photo is refused."""
    with fsspec.open("memory://in/cat.png", "wb") as file:
        file.write(picture(300))
    for name in ("cat", "none"):
        await fleet.submit(ExpandRequest(f"memory://in/{name}.png", Ratios(right=1.0), key=name))
    async with working(dsn, emulator, output="memory://out"):
        found = {outcome.key: outcome for outcome in await outcomes(fleet)}
    assert (found["none"].status, found["cat"].status) == ("refused", "succeeded")
    (location,) = found["cat"].files
    assert location.startswith("memory://out/cat-kx-")
    with fsspec.open(location, "rb") as file:
        assert file.read(4) == b"\x89PNG"


class Unavailable(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """An object store that cannot be reached."""

    def _open(self, *_: Any, **__: Any) -> Any:
        raise OSError("away")


@pytest.fixture
def result() -> ExpandResult:
    """A result with one image, which saving writes to disk."""

    async def download(_: Task, target: str | os.PathLike[str], *__: Any, **___: Any) -> tuple[Path, ...]:
        path = Path(target).with_name("a.png")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"image")
        return (path,)

    return ExpandResult(Task("t", "succeed"), save=download)


async def test_an_unavailable_object_store_is_a_transient_error(result: ExpandResult) -> None:
    """Reading and writing both raise an error after which the job is retried."""
    fsspec.register_implementation("unavailable", Unavailable, clobber=True)
    request = ExpandRequest("unavailable://bucket/a.png", Ratios(up=1.0))
    with pytest.raises(errors.TransportError, match="cannot be read"):
        await load(request)
    with pytest.raises(errors.DownloadError, match="cannot be written") as caught:
        await save(result, "unavailable://bucket", "a")
    assert retry_delay(caught.value, 0) is not None


async def test_object_stores_need_their_extra(result: ExpandResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(errors.MissingExtra, match=r"kling-expand\[objects\]"):
        await load(ExpandRequest("s3://bucket/a.png", Ratios(up=1.0)))
    with pytest.raises(errors.MissingExtra, match=r"kling-expand\[objects\]"):
        await save(result, "s3://bucket", "a")
