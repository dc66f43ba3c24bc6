"""The rules for the package's layout, checked in its source."""

import ast
import enum
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import attrs
import pytest

import kling_expand
from kling_expand import ExpandRequest, KlingClient

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kling_expand"
FILES = sorted(PACKAGE.rglob("*.py"))
COMMON = {"Event", "Image", "Settings", "Status", "Task"}  # public, but left out of a star import
PUBLIC = [*kling_expand.__all__, *COMMON]

# Each layer imports only from the layers before it.
LAYERS = (
    {"_version", "errors"},
    {"geometry", "serialization"},
    {"models"},
    {"shapes"},
    {"events", "config"},
    {"api"},
    {"pictures"},
    {"store", "downloads", "webhooks"},
    {"jobs"},
    {"passes"},
    {"client"},
    {"_portal", "blocking", "contrib", "fleet", "testing"},
    {"cli", "__main__"},
)
SAME_LAYER = {"_portal", "__main__"}  # may be imported from their own layer

# The only places that import these packages. The emulator is a separate program and does not count.
IO_LIBRARIES = {
    "sqlite3": ("store.sqlite",),
    "json": ("api.codec", "models", "cli"),
    "cattrs": ("api.",),
    "jwt": ("config",),
    "backoff": ("api.session",),
    "click": ("cli", "__main__"),
    "rich": ("cli",),
    "jinja2": ("cli.report",),
    "requests": (),
    "httpx": (),
}


def dotted(path: Path) -> str:
    """Return the import name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def part(path: Path) -> str:
    """Return the module or folder directly inside the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Return every module that a file imports at run time."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    names = {dotted(each) for each in FILES}
    here = dotted(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    checked = {
        id(inner)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(path)):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in names else origin


def ours(path: Path) -> set[str]:
    """Return which parts of the package a file imports."""
    found = set()
    for name in imports(path):
        if name.startswith("kling_expand."):
            found.add(name.split(".")[1])
        elif name == "kling_expand":
            found.add("__init__")
    return found - {part(path)}


@cache
def graph() -> dict[str, set[str]]:
    """Return the other parts of the package that each part imports."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        edges.setdefault(part(path), set()).update(ours(path))
    return edges


@pytest.mark.parametrize("name", sorted(set().union(*LAYERS)))
def test_imports_point_down(name: str) -> None:
    """A module or folder imports only from the layers below its own."""
    level = next(number for number, layer in enumerate(LAYERS) if name in layer)
    allowed = set().union(*LAYERS[:level]) | (SAME_LAYER & LAYERS[level])
    allowed |= {"__init__", "cli"} if name in LAYERS[-1] else set()
    allowed |= {"emulator"} if name in {"cli", "testing"} else set()
    assert graph()[name] - allowed == set()


def test_every_module_has_a_layer() -> None:
    """The layers name every module and folder of the package, and nothing else."""
    assert set().union(*LAYERS) == set(graph()) - {"__init__", "emulator"}


def test_no_import_cycle() -> None:
    """The modules can be sorted so that each module follows all modules that it imports."""
    edges = {
        dotted(path): {name for name in imports(path) if name.startswith("kling_expand.")} for path in FILES
    }
    assert list(TopologicalSorter(edges).static_order())


def test_the_emulator_is_independent_of_the_sdk() -> None:
    """The emulator imports only the check for a missing extra, and only outer layers import the emulator."""
    assert graph()["emulator"] == {"errors"}
    emulator = [path for path in FILES if part(path) == "emulator"]
    importers = [path for path in emulator if "kling_expand.errors" in set(imports(path))]
    assert importers == [PACKAGE / "emulator" / "__init__.py"]
    users = {name for name, below in graph().items() if "emulator" in below}
    assert users <= {"cli", "testing", "__main__"}


@pytest.mark.parametrize("library", sorted(IO_LIBRARIES))
def test_each_io_library_is_imported_only_by_listed_files(library: str) -> None:
    """Each library for I/O or serialization is imported only by the files that the table names."""
    users = [
        dotted(path).removeprefix("kling_expand.")
        for path in FILES
        if library in {name.split(".")[0] for name in imports(path)} and part(path) != "emulator"
    ]
    assert [user for user in users if not user.startswith(IO_LIBRARIES[library] or "-")] == []


def test_only_two_files_use_the_http_client() -> None:
    """Only `session` and `downloads` use aiohttp's client; other files use its names only in annotations."""
    for path in FILES:
        if part(path) in {"downloads", "emulator", "contrib"} or dotted(path) == "kling_expand.api.session":
            continue
        notes = [
            note
            for node in ast.walk(tree(path))
            for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
            if note is not None
        ]
        harmless = {id(inner) for note in notes for inner in ast.walk(note)}
        used = [
            ast.unparse(node)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "aiohttp"
            and id(node) not in harmless
        ]
        assert (dotted(path), used) == (dotted(path), [])


def test_only_config_reads_the_environment() -> None:
    """No other module reads `os.environ`."""
    readers = {
        part(path)
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"}
    }
    assert readers <= {"config", "emulator"}


def test_no_default_argument_is_the_environment() -> None:
    """No default argument is the environment, because `help()` prints defaults and it holds secrets."""
    defaults = [
        inner
        for path in FILES
        for node in functions(path)
        for default in (*node.args.defaults, *node.args.kw_defaults)
        if default is not None
        for inner in ast.walk(default)
    ]
    assert [ast.unparse(each) for each in defaults if "environ" in ast.unparse(each)] == []


def test_only_the_command_line_prints() -> None:
    """Only the command line prints, while the library returns values and raises errors."""
    printing = {
        part(path)
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"print", "input"}
    }
    assert printing <= {"cli", "__main__", "emulator"}


def test_clocks_and_random_generators_are_arguments() -> None:
    """No module calls the wall clock or the global random generator, except as a default argument."""
    calls = {"time.time", "datetime.now", "random.random", "random.uniform", "random.choice"}
    offenders = [
        f"{dotted(path)}: {ast.unparse(node.func)}"
        for path in FILES
        if part(path) not in {"emulator", "cli"}
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in calls
    ]
    assert offenders == []


# One process per module, forked from an interpreter that has loaded everything but the package.
IMPORT_EACH = """
import importlib, json, os, sys, warnings
names = json.load(sys.stdin)
for name in names:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
for loaded in [each for each in sys.modules if each.split(".")[0] == "kling_expand"]:
    del sys.modules[loaded]
outcome = {}
for name in names:
    reader, writer = os.pipe()
    if os.fork() == 0:
        found = ""
        try:
            importlib.import_module(name)
        except ImportError as error:
            found = (error.name or "").split(".")[0] or str(error)
        except Exception as error:
            found = repr(error)
        os.write(writer, found.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        if found := pipe.read():
            outcome[name] = found
    os.wait()
print(json.dumps(outcome))
"""


def test_every_module_can_be_imported_first() -> None:
    """Every module can be imported first and without a warning, if its extras are installed."""
    names = [dotted(path) for path in FILES]
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EACH],
        input=json.dumps(names[::-1]),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (process.returncode, process.stderr) == (0, "")
    missing = json.loads(process.stdout)
    assert {
        name: what
        for name, what in missing.items()
        if name.split(".")[1] not in {"contrib", "fleet", "store"}
    } == {}
    assert not {"kling_expand", *kling_expand_dependencies()} & set(missing.values())


EXTRAS = {
    "cli": ("click", "rich", "jinja2"),
    "emulator": ("numpy", "PIL", "patchmatch"),
    "fleet": ("procrastinate", "psycopg"),
    "starlette": ("starlette",),
    "django": ("django",),
    "otel": ("opentelemetry",),
    "testing": ("pytest", "pytest_asyncio", "numpy", "PIL", "patchmatch"),
    "images": ("PIL", "numpy"),
}
# Imports each module where only the core's dependencies are installed, and prints the errors.
WITHOUT_EXTRAS = """
import importlib, json, sys
from kling_expand.errors import MissingExtra
absent, names = json.load(sys.stdin)
sys.modules |= dict.fromkeys(absent)
found = {}
for name in names:
    try:
        importlib.import_module(name)
    except MissingExtra as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def missing_extras(absent: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return the errors of importing these modules while *absent* packages are not installed."""
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        input=json.dumps([[*absent], [*names]]),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert process.stderr == ""
    found: dict[str, str] = json.loads(process.stdout)
    return found


def test_a_module_without_its_extra_names_it() -> None:
    """With only the core's dependencies, each module can be imported or its error names the extra."""
    absent = sorted({module for modules in EXTRAS.values() for module in modules})
    found = missing_extras(absent, [dotted(path) for path in FILES if path.name != "__main__.py"])
    for name, message in found.items():
        parts = re.fullmatch(r"(\w+) is not installed: .*kling-expand\[(\w+)\]'", message)
        assert parts, (name, message)
        assert parts[1] in EXTRAS[parts[2]], (name, message)
    folders = {name.split(".")[1] for name in found}
    assert folders >= {"cli", "contrib", "emulator", "fleet", "store", "testing"}


def test_the_pytest_fixtures_name_one_extra_for_all_they_need() -> None:
    """With pytest but without the emulator's packages, the error names the extra `testing`."""
    found = missing_extras(EXTRAS["emulator"], ["kling_expand.testing"])
    assert "kling-expand[testing]" in found["kling_expand.testing"]


def test_importing_the_package_loads_no_framework() -> None:
    """`import kling_expand` loads no server, no imaging library, no command line and no test tool."""
    frameworks = ["aiohttp.web", "numpy", "PIL", "click", "rich", "pytest", "sqlite3", "starlette", "fastapi"]
    frameworks += ["kling_expand.emulator", "kling_expand.testing", "kling_expand.cli"]
    code = f"import sys, kling_expand; print([name for name in {frameworks} if name in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert process.stdout == "[]\n"


def test_all_lists_every_public_name() -> None:
    """Each public name is listed once and exists, and type checkers see the same names."""
    listed = PUBLIC
    assert len(listed) == len(set(listed))
    assert [name for name in listed if getattr(kling_expand, name, None) is None] == []
    public = {
        name
        for name, value in vars(kling_expand).items()
        if getattr(value, "__module__", "").startswith("kling_expand.") and not name.startswith("_")
    }
    assert public == set(listed)
    path = PACKAGE / "__init__.py"
    declared = next(node for node in tree(path).body if isinstance(node, ast.If)).body
    names = {alias.name for node in declared if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | set(kling_expand.errors.__all__) == set(listed)
    assert set(listed) <= set(dir(kling_expand))


def test_a_star_import_hides_no_common_name() -> None:
    """A star import brings no name that other packages also use, such as Pillow's `Image`."""
    scope: dict[str, object] = {}
    exec("from kling_expand import *", scope)
    assert not COMMON & set(scope)
    assert "KlingClient" in scope


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_documented(name: str) -> None:
    """Every public class, function and method has a docstring."""
    item = getattr(kling_expand, name)
    assert (inspect.getdoc(item) or "").strip()
    if not inspect.isclass(item):
        return
    assert item.__dict__.get("__doc__")
    for attribute, value in vars(item).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert value.__doc__, f"{name}.{attribute}"


# The names that users import from each module. An empty list stands for the module's `__all__`.
PUBLIC_MODULES: dict[str, list[str]] = {
    "kling_expand": [],
    "kling_expand.blocking": [],
    "kling_expand.contrib.aiohttp": [],
    "kling_expand.contrib.django": [],
    "kling_expand.contrib.otel": [],
    "kling_expand.contrib.starlette": [],
    "kling_expand.emulator": [],
    "kling_expand.fleet.queue": [],
    "kling_expand.pictures.composite": ["composite"],
    "kling_expand.pictures.inspect": ["inspect"],
    "kling_expand.shapes": ["shapes"],
    "kling_expand.store.base": ["JobStore", "MemoryStore"],
    "kling_expand.store.postgres": ["PostgresStore"],
    "kling_expand.store.sqlite": ["SQLiteStore"],
    "kling_expand.webhooks": ["WebhookEvent", "Webhooks"],
}


def _documented(item: object) -> Iterator[tuple[str, Callable[..., object], str]]:
    """Yield a function, or the constructor and the methods of a class, each with its text in `help`."""
    if not inspect.isclass(item):
        if inspect.isfunction(item):
            yield item.__name__, item, inspect.getdoc(item) or ""
        return
    about = inspect.getdoc(item) or ""
    for name, value in vars(item).items():
        function = getattr(value, "__func__", value)
        if name == "__init__" and not issubclass(item, enum.Enum):
            yield item.__name__, function, about
        elif inspect.isfunction(function) and name[0] != "_":
            kinds = [each for each in item.__mro__ if name in vars(each)]  # overrides inherit documentation
            texts = [text for each in kinds for text in (each.__doc__, vars(each)[name].__doc__)]
            yield f"{item.__name__}.{name}", function, "\n".join(filter(None, [about, *texts]))


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_argument_is_described(module: str) -> None:
    """The `help` of a public function names each of its arguments."""
    imported = importlib.import_module(module)
    missing = [
        f"{name}({argument})"
        for public in PUBLIC_MODULES[module] or imported.__all__
        for name, function, text in _documented(getattr(imported, public))
        for argument in inspect.signature(function).parameters
        if argument not in {"self", "cls", "fields", "options"} and argument[0] != "_"
        if not re.search(rf"\b{argument}\b", text)
    ]
    assert not missing


@pytest.mark.parametrize(
    "function", [KlingClient.expand, KlingClient.submit, KlingClient.create, ExpandRequest]
)
def test_help_lists_every_field_of_a_request(function: Callable[..., object]) -> None:
    """`help(KlingClient.expand)` describes each field of a request."""
    text = inspect.getdoc(function) or ""
    for each in attrs.fields(ExpandRequest):
        assert re.search(rf"^    {each.name}: \S.{{20,}}", text, re.MULTILINE), each.name
    assert "Raises:" in text


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_every_module_has_a_docstring(path: Path) -> None:
    """Each module has a docstring."""
    assert ast.get_docstring(tree(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return every function and method of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_functions_are_short(path: Path) -> None:
    """No function has more than 50 lines or more than five positional parameters."""
    for node in functions(path):
        lines = (node.end_lineno or 0) - node.lineno + 1
        positional = [
            each for each in node.args.posonlyargs + node.args.args if each.arg not in {"self", "cls"}
        ]
        assert lines <= 50, f"{node.name} has {lines} lines"
        reasoned = "noqa: PLR0917 " in path.read_text().splitlines()[node.lineno - 1]
        assert len(positional) <= 5 or reasoned, f"{node.name} has {len(positional)} positional parameters"


def test_the_median_function_is_a_few_lines() -> None:
    """The median length of a function is at most 9 lines."""
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for path in FILES for node in functions(path))
    assert lengths[len(lengths) // 2] <= 9


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_no_file_has_a_todo_or_an_unexplained_exclusion(path: Path) -> None:
    """No file has a TODO, a line excluded from coverage, or an ignored type without a reason."""
    text = path.read_text()
    assert re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b|pragma: no (?:cover|branch)", text) == []
    for line in text.splitlines():
        if "type: ignore" in line:
            assert re.search(r"type: ignore\[[\w-]+\] +(?:#|-|\() ?\w", line), line
    assert "NotImplemented" not in text.replace("return NotImplemented", "")


def kling_expand_dependencies() -> set[str]:
    """Return the import names of the required packages, and yarl, which aiohttp's interface uses."""
    return {"aiohttp", "yarl", "jwt", "attrs", "attr", "cattrs", "backoff"}


def test_there_are_exactly_five_dependencies() -> None:
    """Every other package is an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~\[; ]", each)[0] for each in project["dependencies"]}
    assert names == {"aiohttp", "pyjwt", "attrs", "cattrs", "backoff"}


def test_nothing_else_is_imported_by_the_core() -> None:
    """Files of the core import only the core, the standard library and the five dependencies at the top."""
    known = set(sys.stdlib_module_names) | kling_expand_dependencies() | {"kling_expand"}
    edge = {"cli", "testing", "contrib", "fleet", "pictures", "emulator", "__main__"}
    extras = {"PIL", "fsspec", "pydantic_core"}
    for path in FILES:
        if part(path) not in edge and not dotted(path).startswith("kling_expand.store.postgres"):
            assert {name.split(".")[0] for name in imports(path)} - known <= extras, dotted(path)
            first = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
            named = set(re.findall(r"\w+", " ".join(map(ast.unparse, first))))
            assert not named & extras, dotted(path)


def test_the_package_has_a_py_typed_marker() -> None:
    """The marker file for type checkers exists."""
    assert (PACKAGE / "py.typed").exists()
