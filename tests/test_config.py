"""Credentials and settings: the rules for the environment, and checks at construction."""

import math
import os
import pydoc
import sys
from pathlib import Path
from ssl import SSLContext
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_type_hints

import pytest
from attrs import fields

import kling_expand
from kling_expand.config import (
    DEFAULT_BASE_URL,
    KeyPair,
    Settings,
    SettingsOptions,
    StaticKey,
    credentials,
    webhook_secret,
)
from kling_expand.errors import ConfigurationError
from kling_expand.models import Dialect

PACKAGE = Path(kling_expand.__file__).parent
PAIR = {"KLING_ACCESS_KEY": "env-access", "KLING_SECRET_KEY": "env-secret"}
OTHER = {"KLINGAI_ACCESS_KEY": "other-access", "KLINGAI_SECRET_KEY": "other-secret"}


def key_of(found: Any) -> str:
    """Return the key that identifies the credentials."""
    return found.token() if isinstance(found, StaticKey) else found._access_key


# ------------------------------------------------------------------ credentials


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ({}, PAIR, "env-access"),
        ({}, OTHER, "other-access"),
        ({}, {"KLING_API_KEY": "env-key"}, "env-key"),
        ({}, {"KLINGAI_API_KEY": "other-key"}, "other-key"),
        ({}, PAIR | {"KLING_API_KEY": "env-key"}, "env-key"),
        ({}, PAIR | OTHER, "env-access"),
        ({}, {"KLING_API_KEY": " \t", **PAIR}, "env-access"),
        ({}, {"KLING_ACCESS_KEY": "", "KLING_SECRET_KEY": " ", **OTHER}, "other-access"),
        ({}, {"KLING_ACCESS_KEY": "half", "KLING_API_KEY": "env-key"}, "env-key"),
        ({"api_key": "mine"}, PAIR | {"KLING_API_KEY": "env-key"}, "mine"),
        ({"access_key": "a", "secret_key": "s"}, {"KLING_API_KEY": "env-key"}, "a"),
        ({"access_key": "a", "secret_key": "s", "api_key": "mine"}, {}, "mine"),
        ({"access_key": "", "secret_key": " ", "api_key": None}, PAIR, "env-access"),
        ({"api_key": "  "}, {"KLING_API_KEY": "\nenv-key "}, "env-key"),
        ({"access_key": " a ", "secret_key": " s "}, {}, "a"),
    ],
)
def test_arguments_override_credentials_in_the_environment(
    given: dict[str, Any], environ: dict[str, str], expected: str
) -> None:
    """Arguments override the environment, a static key overrides a pair, and blank means absent."""
    assert key_of(credentials(**given, environ=environ)) == expected


@pytest.mark.parametrize(
    ("given", "environ", "missing"),
    [
        ({"access_key": "a"}, PAIR, "secret key"),
        ({"secret_key": "s"}, PAIR, "access key"),
        ({"access_key": "a", "secret_key": " "}, {"KLING_API_KEY": "env-key"}, "secret key"),
        ({}, {"KLING_ACCESS_KEY": "a"}, "secret key"),
        ({}, {"KLING_SECRET_KEY": "s"}, "access key"),
        ({}, {"KLING_ACCESS_KEY": "a", "KLINGAI_SECRET_KEY": "s"}, "secret key"),
        ({}, {"KLINGAI_SECRET_KEY": "s"}, "access key"),
    ],
)
def test_half_a_key_pair_is_an_error(given: dict[str, Any], environ: dict[str, str], missing: str) -> None:
    """Half a pair is never completed from another source, and the message names the missing half."""
    with pytest.raises(ConfigurationError, match=missing):
        credentials(**given, environ=environ)


def test_missing_credentials_name_the_environment_variables() -> None:
    """The message names the environment variables."""
    with pytest.raises(ConfigurationError, match="KLING_ACCESS_KEY and KLING_SECRET_KEY, or KLING_API_KEY"):
        credentials(environ={})


def test_a_key_pair_uses_the_given_clock() -> None:
    """A key pair uses the given clock for its tokens."""
    found = credentials("a", "s", environ={}, clock=lambda: 0.0)
    assert isinstance(found, KeyPair)
    assert found._clock() == 0.0


def test_the_environment_is_not_read_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that are set after the import take effect."""
    for name in [name for name in os.environ if name.startswith("KLING")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KLING_API_KEY", "late")
    monkeypatch.setenv("KLING_BASE_URL", "https://late.example")
    monkeypatch.setenv("KLING_WEBHOOK_SECRET", "whsec_late")
    assert key_of(credentials()) == "late"
    assert Settings.from_env().base_url == "https://late.example"
    assert webhook_secret() == "whsec_late"


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        (None, {}, None),
        (None, {"KLING_WEBHOOK_SECRET": "  "}, None),
        (None, {"KLING_WEBHOOK_SECRET": " whsec_x "}, "whsec_x"),
        ("whsec_mine", {"KLING_WEBHOOK_SECRET": "whsec_x"}, "whsec_mine"),
        ("", {"KLING_WEBHOOK_SECRET": "whsec_x"}, "whsec_x"),
    ],
)
def test_the_webhook_secret_follows_the_rules_of_credentials(
    given: str | None, environ: dict[str, str], expected: str | None
) -> None:
    """The webhook secret follows the rules of the credentials."""
    assert webhook_secret(given, environ) == expected


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ({}, {}, DEFAULT_BASE_URL),
        ({}, {"KLING_BASE_URL": " "}, DEFAULT_BASE_URL),
        ({}, {"KLING_BASE_URL": " https://api-beijing.klingai.com/ "}, "https://api-beijing.klingai.com"),
        ({"base_url": None}, {"KLING_BASE_URL": "https://b.example"}, "https://b.example"),
        (
            {"base_url": "http://127.0.0.1:8000"},
            {"KLING_BASE_URL": "https://b.example"},
            "http://127.0.0.1:8000",
        ),
        ({"base_url": "https://proxy.example/kling//"}, {}, "https://proxy.example/kling"),
        ({"base_url": "http://[::1]:80"}, {}, "http://[::1]:80"),
    ],
)
def test_the_argument_overrides_the_base_url_in_the_environment(
    given: dict[str, Any], environ: dict[str, str], expected: str
) -> None:
    """The base URL comes from the argument, the environment or the default, without a final slash."""
    assert Settings.from_env(environ, **given).base_url == expected


BAD_URLS = [
    "",
    " ",
    "api.klingai.com",
    "ftp://x",
    "https://",
    "http:///x",
    "https://:80",
    "http://[::1",
    "http://a:b",
]
BAD_URLS += [
    "http://a:99999",
    "http://a:0",
    "https://a b",
    "https://a/?x=1",
    "https://a/#x",
    "https://a\n.example",
]
BAD_URLS += ["https://user:hunter2@a.example"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_an_invalid_base_url_is_refused(url: str) -> None:
    """A bad URL is refused at construction, and the error does not repeat a password in it."""
    with pytest.raises(ConfigurationError) as caught:
        Settings(base_url=url)
    assert "hunter2" not in str(caught.value)


def test_defaults_match_the_documentation() -> None:
    """Every setting has its documented default."""
    settings = Settings()
    assert (settings.base_url, settings.dialect) == ("https://api-singapore.klingai.com", Dialect.EDITING)
    assert settings.max_in_flight == 9
    assert Settings.from_env({}) == settings


NUMBERS = [each.name for each in fields(Settings) if each.type in {int, float}]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, "10", True, [], b"1"])
def test_an_invalid_number_is_refused(name: str, value: Any) -> None:
    """The error names the setting, and None means that the setting is not given."""
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_env({}, **{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_a_valid_number_is_accepted(name: str) -> None:
    """Integers and floats are accepted."""
    seven: dict[str, Any] = {name: 7}
    nothing: dict[str, Any] = {name: None}
    assert getattr(Settings.from_env({}, **seven), name) == 7
    assert Settings.from_env({}, **nothing) == Settings()


@pytest.mark.parametrize("name", [each.name for each in fields(Settings) if each.type is int])
def test_a_count_must_be_a_whole_number(name: str) -> None:
    """A count that is not a whole number is refused."""
    half: dict[str, Any] = {name: 7.5}
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number, got 7.5"):
        Settings.from_env({}, **half)


def test_an_unknown_dialect_is_refused() -> None:
    """A dialect is one of two words, and the error lists them."""
    assert Settings(dialect=Dialect("direction")).dialect is Dialect.DIRECTION
    assert Settings.from_env({}, dialect="direction").dialect is Dialect.DIRECTION
    with pytest.raises(ConfigurationError, match="editing or direction, got 'dutch'"):
        Settings.from_env({}, dialect="dutch")


def test_settings_are_immutable() -> None:
    """Settings are immutable."""
    settings: Any = Settings()
    with pytest.raises(AttributeError):
        settings.read_timeout = 1.0


def test_typed_settings_match_the_fields_of_the_class() -> None:
    """The typed keyword arguments have the names and types of the fields, and also accept None."""
    names = {"SSLContext": SSLContext}
    options, settings = get_type_hints(SettingsOptions, None, names), get_type_hints(Settings, None, names)
    assert list(options) == list(settings) == [each.name for each in fields(Settings)]
    converted = {"dialect": (str,), "cache_dir": (str, os.PathLike[str], Literal[False])}
    for name, kind in settings.items():
        kinds = converted.get(name) or (get_args(kind) if isinstance(kind, UnionType) else (kind,))
        assert {*get_args(options[name])} == {*kinds, NoneType}


def test_a_replaced_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a test or a program replaces `os.environ`, the new object is read."""
    replaced = {"KLING_BASE_URL": "https://late.example", "KLING_API_KEY": "k"}
    monkeypatch.setattr("os.environ", replaced)
    assert Settings.from_env().base_url == "https://late.example"
    assert isinstance(credentials(), StaticKey)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_help_does_not_show_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of a module shows no value of the environment, although defaults are read from it."""
    monkeypatch.setenv("KLING_SECRET_KEY", "a-secret-of-the-environment")
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    module = pytest.importorskip(name, exc_type=ImportError)  # its extra may not be installed
    assert "a-secret-of-the-environment" not in pydoc.plain(pydoc.render_doc(module))


# ------------------------------------------------------------------ the cache folder

HOME = Path("~").expanduser()
FOLDERS = {"win32": "AppData/Local", "darwin": "Library/Caches"}
USUAL = HOME / FOLDERS.get(sys.platform, ".cache") / "kling-expand"


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        (None, {"KLING_CACHE_DIR": "/tmp/here"}, Path("/tmp/here")),
        (None, {"KLING_CACHE_DIR": " Off "}, None),
        (None, {"XDG_CACHE_HOME": "relative", "LOCALAPPDATA": "relative"}, USUAL),
        ("~/mine", {"KLING_CACHE_DIR": "off"}, HOME / "mine"),
        (Path("mine"), {}, Path("mine")),
        (False, {"KLING_CACHE_DIR": "/tmp/here"}, None),
    ],
)
def test_the_cache_folder_may_be_set_or_turned_off(
    given: Any, environ: dict[str, str], expected: Path | None
) -> None:
    """An argument overrides the environment, which overrides the default. Both can turn the cache off."""
    assert Settings.from_env(environ, cache_dir=given).cache_dir == expected


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="these systems have a folder of their own")
def test_xdg_cache_home_is_obeyed() -> None:
    """`XDG_CACHE_HOME` is obeyed."""
    assert Settings.from_env({"XDG_CACHE_HOME": "/x"}).cache_dir == Path("/x/kling-expand")


@pytest.mark.parametrize("wrong", [True, 1, "", b"", 1.5, ["a"]])
def test_a_cache_folder_must_be_a_path(wrong: Any) -> None:
    """A value that is not a path is refused."""
    with pytest.raises(ConfigurationError, match="cache_dir must be a directory"):
        Settings(cache_dir=wrong)
