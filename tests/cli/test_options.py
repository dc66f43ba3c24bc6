"""Option groups: the typed values of a command, geometry, request fields and the connection."""

import re
from collections.abc import Mapping
from typing import Any

import click
import pytest
from attrs import fields, frozen
from click.testing import CliRunner
from support.shell import shell

from kling_expand import ExpandRequest, Padding, Ratios, ToAspect, ToSize, Towards
from kling_expand.cli import root
from kling_expand.cli.options import (
    Connection,
    EmulatedConnection,
    GeometryOptions,
    OptionGroup,
    OutputOptions,
    RequestOptions,
    ShapeOptions,
    option,
    options,
    schedule,
)
from kling_expand.models import request_fields

# Fields of a request that identify a job: they are different for each photo, and a command has many.
NO_OPTION = {"external_task_id", "key"}
SAMPLES: dict[type, tuple[list[str], Any]] = {
    str: (["text"], "text"),
    int: (["3"], 3),
    bool: ([], True),
    Mapping: (['{"new_field": [1, null]}'], {"new_field": [1, None]}),
}


def parse_options(*arguments: str, **groups: type[OptionGroup]) -> dict[str, Any]:
    """Return the groups that a command receives for these arguments."""
    seen: dict[str, Any] = {}

    @click.command()
    @options(**groups)
    def command(**given: Any) -> None:
        seen.update(given)

    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return seen


def test_a_group_is_one_typed_value() -> None:
    """A command may have several groups, and a group has its own and its inherited fields."""
    seen = parse_options(
        "--base-url", "http://x", "--local", "--up", "1", link=EmulatedConnection, geometry=GeometryOptions
    )
    assert seen == {
        "link": EmulatedConnection("http://x", None, emulator=True),
        "geometry": GeometryOptions(up=1.0),
    }
    assert parse_options("--emulator", link=EmulatedConnection)["link"].emulator
    assert parse_options(link=Connection)["link"] == Connection(None, None)


def test_every_field_of_a_request_has_an_option() -> None:
    """Otherwise a field could not be set from a shell, and no error would say so."""
    arguments, expected = [], {}
    for each in request_fields():
        if each.name not in NO_OPTION:
            words, expected[each.name] = SAMPLES[each.kind]
            if each.name == "callback_url":
                words, expected[each.name] = ["https://x.org/"], "https://x.org/"
            assert each.option, each.name
            arguments += [each.option, *words]
    assert (
        expected.keys() == {each.name for each in fields(ExpandRequest)} - {"image", "geometry"} - NO_OPTION
    )
    group = parse_options(*arguments, request=RequestOptions)["request"]
    assert group.request("a.jpg", Ratios(up=1)) == ExpandRequest("a.jpg", Ratios(up=1), **expected)


def test_without_options_a_request_has_its_defaults() -> None:
    """Without options a request has the defaults of its fields."""
    group = parse_options(request=RequestOptions)["request"]
    assert group.request("a.jpg", Ratios(up=1)) == ExpandRequest("a.jpg", Ratios(up=1))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"up": 0.5, "left": 1.0}, Ratios(up=0.5, left=1.0)),
        ({"aspect": "16:9", "area": 2.0, "anchor": "top"}, ToAspect("16:9", area=2.0, anchor="top")),
        ({"size": "1920x1080"}, ToSize(1920, 1080)),
        ({"pad": "200"}, Padding(200, 200, 200, 200)),
        ({"pad": "up=1, right=2"}, Padding(up=1, right=2)),
        ({"direction": "all"}, Towards("all")),
        ({"direction": "left", "ratio": 1.2}, Towards("left", 1.2)),
    ],
)
def test_each_option_produces_its_geometry(given: dict[str, Any], expected: object) -> None:
    """Each option produces the library's geometry of the same kind."""
    assert GeometryOptions(**given).geometry() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one way"),
        ({"up": 1.0, "pad": "3"}, "exactly one way"),
        ({"size": "3"}, "WIDTHxHEIGHT"),
        ({"pad": "north=3"}, "got 'north=3'"),
        ({"up": 1.0, "area": 2.0}, "--area requires --aspect"),
        ({"pad": "3", "anchor": "left"}, "--anchor requires --aspect or --size"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    """The message says what is required."""
    with pytest.raises(click.UsageError) as caught:
        GeometryOptions(**given).geometry()
    assert message in caught.value.format_message()


def test_a_geometry_option_replaces_the_default_geometry() -> None:
    """Defaults that can refine the new way still apply, and those that only refine the old way do not."""
    defaults = GeometryOptions(aspect="16:9", area=2.0, anchor="top")
    assert GeometryOptions().with_defaults(defaults) == defaults
    assert GeometryOptions(area=3.0).with_defaults(defaults) == GeometryOptions(
        aspect="16:9", area=3.0, anchor="top"
    )
    assert GeometryOptions(size="9x9").with_defaults(defaults) == GeometryOptions(size="9x9", anchor="top")
    assert GeometryOptions(up=1.0).with_defaults(defaults) == GeometryOptions(up=1.0)


def test_the_resume_command_can_be_pasted() -> None:
    """Words are quoted for a shell. There is no command for tasks of a local emulator."""
    connection = Connection("http://x", "direction")
    assert connection.resume_command("wait", "my out") == (
        "kling-expand wait -o 'my out' --base-url http://x --dialect direction "
    )
    assert EmulatedConnection(None, None, emulator=True).resume_command("wait", "out") == ""


def test_only_a_service_on_this_machine_is_polled_often() -> None:
    """A remote service, which many clients share, is polled on the library's own schedule."""
    assert schedule("https://api.example.com") is None
    assert schedule("http://127.0.0.1:8080") is not None


def test_a_group_has_the_defaults_of_its_options() -> None:
    """Without a command line, a group has the defaults of its options."""

    @frozen
    class Group(OptionGroup):
        size: int = option("--size", default=3, help="Size.")

    assert Group() == Group(size=3) == parse_options(group=Group)["group"]


def test_every_connection_has_a_proxy_option() -> None:
    """The client of the command uses it. With an unusable proxy, the exit code is 2."""
    seen = parse_options("--proxy", "http://proxy.example:3128", link=Connection)
    assert seen["link"].proxy == "http://proxy.example:3128"
    assert "--proxy http://proxy.example:3128 " in seen["link"].resume_command("wait", "out")
    assert "--proxy" not in Connection(proxy="http://me:secret@proxy.example:1").resume_command("wait", "out")
    with shell() as kling:
        for command in (["list"], ["doctor"]):
            refused = kling(*command, "--proxy", "socks5://proxy.example:1080")
            assert (refused.exit_code, "proxy must be http://host:port" in refused.output) == (2, True)


async def test_a_local_emulator_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment cannot reach this machine's loopback address, so it is not used."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    async with EmulatedConnection(emulator=True).client() as kling:
        assert await kling.list() == ()
    with pytest.raises(click.UsageError, match="cannot be combined"):
        async with EmulatedConnection(emulator=True, proxy="http://127.0.0.1:9").client():
            pass


def test_several_shapes_are_several_geometries() -> None:
    """Aspect ratios, sizes and named sets can be mixed. Repeated shapes count once."""
    words = ("--aspect", "1200x630", "--for", "youtube", "--aspect", "16:9", "--anchor", "top", "--for", "og")
    found = parse_options(*words, shapes=ShapeOptions)["shapes"]
    assert [each.shape for each in found.geometries] == ["1200x630", "16x9", "9x16"]
    assert {each.anchor for each in found.geometries} == {"top"}
    assert found.geometries[1].geometry() == ToAspect("16:9", anchor="top")
    assert parse_options("--up", "0.5", shapes=ShapeOptions)["shapes"].geometries == (
        GeometryOptions(up=0.5),
    )
    (alone,) = parse_options(shapes=ShapeOptions)["shapes"].geometries
    assert alone == GeometryOptions()


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"aspect": "1.91:1"}, "1.91x1"),
        ({"size": "1200X630"}, "1200x630"),
        ({"up": 0.5, "right": 1.0}, "up0.5-right1"),
        ({"pad": "left=20"}, "left20"),
        ({"direction": "left,top", "ratio": 1.2}, "left-top1.2"),
    ],
)
def test_every_geometry_has_a_name_for_files(given: dict[str, Any], shape: str) -> None:
    """The name of a shape contains only characters that are allowed in file names."""
    assert GeometryOptions(**given).shape == shape


@pytest.mark.parametrize("command", ["expand", "bulk"])
def test_the_help_of_a_long_command_has_headings(command: str) -> None:
    """Each option is listed once, below the heading of its group."""
    text = CliRunner().invoke(root, [command, "--help"]).output
    headings = re.findall(r"^(\S.*):$", text, flags=re.MULTILINE)
    shape, *rest = [each for each in headings if not each.startswith("Columns")]
    assert shape.startswith("Shape")
    assert rest == ["Picture", "Run", "Limits", "Results", "Service", "Other options"]
    listed = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, flags=re.MULTILINE)
    assert len(listed) == len(set(listed)) > 20


def test_a_quoted_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures, the journal and the check of the directory use one path."""
    monkeypatch.setenv("HOME", "/home/anna")
    values = {name: settings["default"] for name, (_, settings) in OutputOptions.declarations().items()}
    assert OutputOptions.read(values | {"target": "~/{name}{ext}"}).target == "/home/anna/{name}{ext}"
