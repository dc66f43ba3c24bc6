"""Trouble of a batch: calls that fail and are retried, and their descriptions."""

from attrs import frozen

from kling_expand.cli.terminal import span
from kling_expand.errors import KlingError, ParallelLimit, RateLimited, TransportError

DOWNLOAD = "download"  # the route of picture downloads


@frozen
class Trouble:
    """Failing calls of one route: the last error, the times of the first and last failure, and the wait."""

    error: KlingError
    started_at: float
    seen_at: float
    wait: float | None = None


# The cause of an error, by the name of its class or of a base class.
_CAUSES = {
    "ClientConnectorCertificateError": "its certificate is not trusted",
    "ClientProxyConnectionError": "the proxy cannot be reached",
    "gaierror": "unknown host name",
    "ConnectionRefusedError": "refused",
    "ConnectionResetError": "connection reset",
    "ServerDisconnectedError": "connection closed",
    "TimeoutError": "timed out",
}


def describe_trouble(route: str, trouble: Trouble, host: str, limit: float, now: float) -> str:
    """Return why calls of *route* fail, and how long they are retried: *limit* seconds from the first."""
    error = trouble.error
    if isinstance(error, ParallelLimit) and error.alone:
        return f"the account has no room for {error.alone} pictures at once (1303), trying again"
    if isinstance(error, ParallelLimit):
        return "the account has reached its limit on parallel tasks (1303), waiting until one ends"
    if isinstance(error, RateLimited):
        pause = trouble.wait or error.retry_after
        rest = f", calling again in {span(max(trouble.seen_at + pause - now, 0))}" if pause else ""
        return f"too many requests for {host} (1302){rest}"
    left = trouble.started_at + limit - now
    end = f"giving up in {span(left)}" if left >= 1 else "giving up soon"
    if route == DOWNLOAD:
        return f"a picture cannot be downloaded yet ({error.message}), {end}"
    return f"{failure_text(error, host)}, {end}"


def failure_text(error: KlingError, host: str) -> str:
    """Return a short reason why a call to the service at *host* failed."""
    if not isinstance(error, TransportError):
        return f"{host}: {error}"
    cause: object = error.__cause__
    cause = getattr(cause, "os_error", None) or cause
    causes = [_CAUSES[kind.__name__] for kind in type(cause).__mro__ if kind.__name__ in _CAUSES]
    return f"no response from {host} ({causes[0]})" if causes else error.message
