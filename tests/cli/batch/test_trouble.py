"""The texts about calls that fail and are retried."""

import pytest

from kling_expand.cli.batch.trouble import DOWNLOAD, Trouble, describe_trouble, failure_text
from kling_expand.errors import DownloadError, KlingError, ParallelLimit, RateLimited, TransportError


def without_room(n: int) -> ParallelLimit:
    """Return the refusal of *n* pictures although no other task was running."""
    error = ParallelLimit("full")
    error.alone = n
    return error


def description(error: KlingError, route: str = "create", wait: float | None = None) -> str:
    """Return the text 20 s after the first failure and 1 s after the last, with a limit of 120 s."""
    return describe_trouble(route, Trouble(error, 100.0, 119.0, wait), "host", 120.0, 120.0)


@pytest.mark.parametrize(
    ("error", "route", "text"),
    [
        (TransportError("reset by peer"), "create", "reset by peer, giving up in 1:40"),
        (
            DownloadError("HTTP 503"),
            DOWNLOAD,
            "a picture cannot be downloaded yet (HTTP 503), giving up in 1:40",
        ),
        (
            RateLimited("slow", retry_after=31.0),
            "read",
            "too many requests for host (1302), calling again in 30 s",
        ),
        (RateLimited("slow"), "read", "too many requests for host (1302)"),
        (
            ParallelLimit("full"),
            "create",
            "the account has reached its limit on parallel tasks (1303), waiting until one ends",
        ),
        (
            without_room(6),
            "create",
            "the account has no room for 6 pictures at once (1303), trying again",
        ),
    ],
)
def test_each_kind_of_failure_has_its_own_text(error: KlingError, route: str, text: str) -> None:
    """The text has the cause, and the time left for retries or the requested pause."""
    assert description(error, route) == text


def test_a_known_pause_is_counted_down() -> None:
    """The client's own wait takes precedence over the requested one, and never falls below zero."""
    assert description(RateLimited("slow", retry_after=31.0), wait=11.0).endswith("again in 10 s")
    assert description(RateLimited("slow"), wait=0.5).endswith("again in 0 s")


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (ConnectionRefusedError(), "(refused)"),
        (TimeoutError(), "(timed out)"),
        (ConnectionResetError(), "reset)"),
    ],
)
def test_the_cause_of_a_missing_response_is_named(cause: Exception, text: str) -> None:
    """The text has the cause of the error, or of the connection error that caused it."""
    error, outer = TransportError("x"), Exception()
    error.__cause__ = cause
    assert failure_text(error, "host").startswith("no response from host (")
    assert text in failure_text(error, "host")
    vars(outer)["os_error"] = cause
    error.__cause__ = outer
    assert text in failure_text(error, "host")
