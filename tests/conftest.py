"""What holds for every test? Properties are tried on the same examples, and nobody logs a secret."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.eavesdropping import Eavesdropper

settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")

pytest_plugins = ["kling_expand.testing"]


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for a process of their own."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def eavesdropper(caplog: pytest.LogCaptureFixture) -> Iterator[Eavesdropper]:
    """Hears every log record of a test, at DEBUG; none may hold a secret that tests use."""
    root, handler = logging.getLogger(), Eavesdropper()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    # A test that looks at its log sees what it would see without this, whatever another test has set.
    caplog.handler.setLevel(logging.WARNING)
    yield handler
    caplog.handler.setLevel(logging.NOTSET)
    root.setLevel(level)
    root.removeHandler(handler)
    assert handler.told == []
