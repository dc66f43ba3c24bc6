"""The exceptions of this package, and the table of the service's error codes.

::

    KlingError                    task_id, external_task_id: the ids of the job, as far as they are known
    ├── ConfigurationError        credentials or settings are missing or invalid
    │   └── MissingExtra          an optional dependency is not installed (also an ImportError)
    ├── InvalidRequest            refused locally, before any money is spent (also a ValueError)
    │   ├── GeometryError         the expansion cannot be expressed
    │   ├── ImageError            the photo cannot be sent
    │   └── BudgetExceeded        the job would cost more than the budget has left
    ├── TransportError            no usable response: connection refused, reset, timed out
    ├── APIError                  a call got an error response: code, message, status, request_id, retry_after
    │   ├── AuthenticationError   1000 1001 1002
    │   │   └── TokenExpired      1003 1004
    │   ├── AccountError          1100 1101 1102
    │   ├── PermissionDenied      1103
    │   ├── BadRequest            1200 1201
    │   │   ├── DuplicateTask     1201 "… already exists"
    │   │   └── TaskNotFound      1201 "Task not found …"
    │   ├── NotFound              1202 1203
    │   ├── PolicyRefusal         1300 1301 (also a ContentRejected)
    │   ├── RateLimited           1302
    │   ├── ParallelLimit         1303
    │   ├── IPNotAllowed          1304
    │   ├── ServerError           5000 5001 5002, or any HTTP 5xx, or 408, 425 or 499 without a code
    │   └── ProtocolError         a response that is not the documented envelope
    ├── ContentRejected           moderation rejected the content: PolicyRefusal or TaskModerated
    ├── TaskFailed                the service reports that the task failed
    │   └── TaskModerated         … because of its content (also a ContentRejected)
    ├── SubmissionUnknown         it is not known whether the task exists; look up its id later
    ├── DeadlineExceeded          the deadline passed; the job may continue (also a TimeoutError)
    ├── DownloadError             a result could not be downloaded or saved
    │   └── ResultExpired         … because the service no longer keeps it
    ├── PictureMismatch           a generated picture does not show the photo it was made from
    ├── WebhookError              a callback cannot be trusted or read
    ├── JournalError              the journal file cannot be used
    ├── NotSubmitted              the job ended before it was sent: nothing is billed
    └── ClientClosed              the client was closed; its open tasks continue at the service

``retryable`` says whether the same call may succeed later (see `kling_expand.api.session`). A create is
retried only by the rules of `kling_expand.jobs.submission`.
"""

TYPE_CHECKING = False  # `typing` is not imported for it: that would take most of the import time
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "APIError",
    "AccountError",
    "AuthenticationError",
    "BadRequest",
    "BudgetExceeded",
    "ClientClosed",
    "ConfigurationError",
    "ContentRejected",
    "DeadlineExceeded",
    "DownloadError",
    "DuplicateTask",
    "GeometryError",
    "IPNotAllowed",
    "ImageError",
    "InvalidRequest",
    "JournalError",
    "KlingError",
    "MissingExtra",
    "NotFound",
    "NotSubmitted",
    "ParallelLimit",
    "PermissionDenied",
    "PictureMismatch",
    "PolicyRefusal",
    "ProtocolError",
    "RateLimited",
    "ResultExpired",
    "ServerError",
    "SubmissionUnknown",
    "TaskFailed",
    "TaskModerated",
    "TaskNotFound",
    "TokenExpired",
    "TransportError",
    "WebhookError",
]


def printable(text: str) -> str:
    """Return *text* with unprintable characters escaped, so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class KlingError(Exception):
    """The base class of all exceptions of this package.

    `task_id` and `external_task_id` are the ids of the job, or None if they are not known. `retryable` says
    whether the same call may succeed later. The *message* may quote the service or a file name, so
    unprintable characters in it are escaped.
    """

    retryable: bool = False

    def __init__(
        self, message: str = "", *, task_id: str | None = None, external_task_id: str | None = None
    ) -> None:
        message = printable(message)
        super().__init__(message)
        self.message: str = message
        self.task_id: str | None = task_id
        self.external_task_id: str | None = external_task_id

    def __str__(self) -> str:
        ids = [f"{name}={value}" for name, value in self._details().items() if value is not None]
        return printable(f"{self.message} ({', '.join(ids)})" if ids else self.message)

    def __reduce__(self) -> "Any":
        return _rebuild, (type(self), self.args, self.__dict__.copy())

    def _details(self) -> "dict[str, Any]":
        return {"task_id": self.task_id, "external_task_id": self.external_task_id}


def _rebuild(kind: type[KlingError], args: "tuple[Any, ...]", state: "dict[str, Any]") -> KlingError:
    """Unpickle any class of the tree, whatever the signature of its constructor."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def requirement(name: str, value: object, limit: str, advice: str = "") -> str:
    """Return the message for a value that violates a limit: "n must be between 1 and 9, got 0"."""
    is_rule = limit.startswith("must ")
    message = f"{name} {limit}, got {value}" if is_rule else f"{name}: {limit}: {value}"
    return f"{message}; {advice}" if advice else message


class ConfigurationError(KlingError):
    """Credentials or settings that are missing or invalid."""


class MissingExtra(ConfigurationError, ImportError):
    """An optional dependency that is not installed. The message names the extra."""


def require(extra: str, *modules: str) -> None:
    """Check, without importing them, that the *modules* of an *extra* are installed.

    Raises:
        MissingExtra: if a module is not installed.
    """
    from importlib.util import find_spec  # imported here, so that the command line can handle Ctrl-C first

    for module in modules:
        try:
            found = find_spec(module)
        except (ImportError, ValueError):  # ValueError: the entry in `sys.modules` is None
            found = None
        if found is None:
            raise MissingExtra(f"{module} is not installed: pip install 'kling-expand[{extra}]'")


class InvalidRequest(KlingError, ValueError):
    """A request that is refused locally, before anything is sent or paid for.

    The message has the *field*, the violated *limit*, the given *value* and optional *advice*: "n must be
    between 1 and 9, got 0". A limit that does not begin with "must" is joined to the field and the value by
    colons: "image: no such file: 'nofile.jpg'".
    """

    def __init__(self, field: str, value: object, limit: str, advice: str = "") -> None:
        super().__init__(requirement(field, value, limit, advice))
        self.field: str = field
        self.value: object = value
        self.limit: str = limit
        self.advice: str = advice


class GeometryError(InvalidRequest):
    """An expansion that cannot be expressed as four ratios in [0, 2] within three times the area."""


class ImageError(InvalidRequest):
    """A photo that cannot be read, or that the service would not accept."""


class BudgetExceeded(InvalidRequest):
    """A job that would cost more units than the client's budget has left."""


class TransportError(KlingError):
    """A call that got no usable response. The *message* says why.

    `sent` is False only if the service certainly did not receive the whole request. `retryable` is False if
    the service was never reached, because the settings may then be wrong. `retried_until` is the loop time
    after which the call is no longer retried, or None if only `retry_timeout` limits the retries.
    """

    retryable: bool = True
    retried_until: float | None = None

    def __init__(self, message: str = "", *, sent: bool = True, retryable: bool = True) -> None:
        super().__init__(message)
        self.sent: bool = sent
        self.retryable: bool = retryable


class APIError(KlingError):
    """A call that got an error response.

    *message* is the text of the service. `code` is the error code in the response, or None if it has none.
    `status` is the HTTP status, and `request_id` the service's id of the call. `retry_after` is the wait in
    seconds that a ``Retry-After`` header asks for, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        code: int | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code: int | None = code
        self.status: int | None = status
        self.request_id: str | None = request_id
        self.retry_after: float | None = retry_after

    def _details(self) -> "dict[str, Any]":
        details = {"code": self.code, "status": self.status, "request_id": self.request_id}
        return details | super()._details()


class AuthenticationError(APIError):
    """Credentials that were not accepted."""


class TokenExpired(AuthenticationError):
    """A token that is not valid yet or has expired. The call may be retried once with a new token."""


class AccountError(APIError):
    """An account that is abnormal, in arrears or out of resources. Waiting does not help."""


class PermissionDenied(APIError):
    """A resource or a model that the account may not use."""


class BadRequest(APIError):
    """Parameters that the service does not accept."""


class DuplicateTask(BadRequest):
    """An `external_task_id` that another task of the account already has."""


class TaskNotFound(BadRequest):
    """An id for which the service has no task."""


class NotFound(APIError):
    """A method or resource that does not exist."""


class ContentRejected(KlingError):
    """Content that moderation rejected, at the create or later."""


class PolicyRefusal(ContentRejected, APIError):
    """A create that was refused by the platform policy or the content policy."""


class RateLimited(APIError):
    """A call that the service refused because it received too many calls.

    `retry_after` is the wait in seconds that the service asks for, or None. `retryable` is False if that is
    longer than the setting `max_retry_after`.
    """

    retryable: bool = True


class ParallelLimit(APIError):
    """A create beyond the account's limit on parallel tasks. Another task must end first.

    `alone` is the number of pictures in the create if this client had no other task running, and otherwise 0.
    """

    retryable: bool = True
    alone: int = 0


class IPNotAllowed(APIError):
    """A caller whose IP address is not on the account's allowlist."""


class ServerError(APIError):
    """A failure of the service. A create may nevertheless have been accepted."""

    retryable: bool = True


class ProtocolError(APIError):
    """A response that is not as documented, such as HTML or an empty or truncated response."""

    retryable: bool = True


class TaskFailed(KlingError):
    """A task that ended as ``failed``. The message is its `task_status_msg`."""


class TaskModerated(ContentRejected, TaskFailed):
    """A task that failed because its content did not pass the service's risk control."""


class SubmissionUnknown(KlingError):
    """A create that may or may not have been accepted. Never resend it under a new id."""


class DeadlineExceeded(KlingError, TimeoutError):
    """A deadline that passed. If `task_id` is set, the task continues and its future can be awaited again."""


class DownloadError(KlingError):
    """A result that could not be downloaded. No partial file is left."""


class ResultExpired(DownloadError):
    """A result that the service no longer has. It keeps results for 30 days."""


class PictureMismatch(KlingError):
    """A generated picture that does not contain the photo it was made from, so they cannot be combined."""


class WebhookError(KlingError):
    """A callback that cannot be trusted or read."""


class JournalError(KlingError):
    """A journal that cannot be used, for example because it is damaged or belongs to another account."""


class NotSubmitted(KlingError):
    """A job that ended before anything was sent: no task exists, and nothing is billed.

    *message* says why. *resumable* is True if a journal has the job and its photo can be read again from a
    path or URL. In that case, `KlingClient.resume` sends the job. Otherwise, submit it again.
    """

    def __init__(self, message: str = "", *, resumable: bool = False) -> None:
        super().__init__(message)
        self.resumable: bool = resumable


class ClientClosed(KlingError):
    """A client that is not open, or was closed during a wait. A task at the service continues."""


# The service's table of error codes (official documentation). Only `refusal` reads it.
CODES: dict[int, type[APIError]] = {
    1000: AuthenticationError,
    1001: AuthenticationError,
    1002: AuthenticationError,
    1003: TokenExpired,
    1004: TokenExpired,
    1100: AccountError,
    1101: AccountError,
    1102: AccountError,
    1103: PermissionDenied,
    1200: BadRequest,
    1201: BadRequest,
    1202: NotFound,
    1203: NotFound,
    1300: PolicyRefusal,
    1301: PolicyRefusal,
    1302: RateLimited,
    1303: ParallelLimit,
    1304: IPNotAllowed,
    5000: ServerError,
    5001: ServerError,
    5002: ServerError,
}

# 1201 also has these two meanings, which only the message distinguishes (observed).
_BY_MESSAGE: dict[str, type[BadRequest]] = {"already exist": DuplicateTask, "task not found": TaskNotFound}

# A response without a code comes from a server in front of the service, so its HTTP status decides.
_STATUSES: dict[int, type[APIError]] = {
    401: AuthenticationError,
    403: PermissionDenied,
    404: NotFound,
    429: RateLimited,
    # Timed out, too early and closed early: the service may nevertheless have accepted the request.
    **dict.fromkeys((408, 425, 499), ServerError),
}


def refusal(code: int | None, message: str, status: int) -> type[APIError]:
    """Return the class for an error *code* (None if there is none), its *message* and the HTTP *status*."""
    if code == 1201:
        text = message.lower()
        return next((kind for part, kind in _BY_MESSAGE.items() if part in text), BadRequest)
    if code in CODES:
        return CODES[code]
    if status >= 500:
        return ServerError
    if code is None:
        return _STATUSES.get(status, APIError if status >= 400 else ProtocolError)
    # An unknown code with status 429 does not mean that there are too many requests.
    return _STATUSES[status] if status in (401, 403) else APIError
