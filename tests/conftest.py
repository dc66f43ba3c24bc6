"""Rules for every test: properties are tried on the same examples, and no log record holds a secret."""

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings
from support.log_secrets import SecretScanner

settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")

# These start several programs in each test.
LONG = {
    "test_benchmarks.py",
    "test_chaos.py",
    "test_random_actions.py",
    "test_worker.py",
    "test_dev_server.py",
}

pytest_plugins = ["kling_expand.testing"]
os.environ["KLING_CACHE_DIR"] = "off"  # no test, and no process of one, reads or changes the user's files
# No test speaks to a public server, and aiohttp reads the system's certificates at every start of a process.
os.environ |= {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}


def pytest_configure() -> None:
    """Give children the default disposition of SIGINT, and let them keep compiled modules.

    Under ``nohup`` or in a background job SIGINT is ignored, and every child would ignore it too. And each
    of some hundred children would compile the package anew where PYTHONDONTWRITEBYTECODE is set.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Keep the thousands of collected items out of all later garbage collections, a tenth of the CPU time."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose single tests take longest, so that no worker ends long after the others."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_xdist_auto_num_workers() -> int:
    """Return two more than there are cores, as many tests wait for a process of their own."""
    return (os.cpu_count() or 1) + 2


@pytest.fixture(autouse=True)
def secret_scanner(caplog: pytest.LogCaptureFixture) -> Iterator[SecretScanner]:
    """Check every log record of a test, at DEBUG: none may hold a secret that tests use."""
    root, handler = logging.getLogger(), SecretScanner()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    # A test that reads its log finds what it would find without this fixture, whatever other tests have set.
    caplog.handler.setLevel(logging.WARNING)
    yield handler
    caplog.handler.setLevel(logging.NOTSET)
    root.setLevel(level)
    root.removeHandler(handler)
    assert handler.leaks == []
