"""The exception tree, the table of codes, and errors that can be copied and pickled."""

import builtins
import copy
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand import errors
from kling_expand.errors import (
    CODES,
    APIError,
    AuthenticationError,
    BadRequest,
    ContentRejected,
    DeadlineExceeded,
    DuplicateTask,
    ImageError,
    InvalidRequest,
    KlingError,
    MissingExtra,
    NotFound,
    ParallelLimit,
    PermissionDenied,
    PolicyRefusal,
    ProtocolError,
    RateLimited,
    ServerError,
    TaskFailed,
    TaskModerated,
    TaskNotFound,
    TokenExpired,
    TransportError,
    refusal,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]
DOC = errors.__doc__ or ""
STATUSES = [200, 201, 302, 400, 401, 403, 404, 408, 418, 425, 429, 499, 500, 502, 503, 504, 599]

# An independent copy of the documented table: HTTP status, and whether the same call may be repeated.
TABLE = {
    **dict.fromkeys((1000, 1001, 1002), (AuthenticationError, 401, False)),
    **dict.fromkeys((1003, 1004), (TokenExpired, 401, False)),
    **dict.fromkeys((1100, 1101, 1102), (errors.AccountError, 429, False)),
    1103: (PermissionDenied, 403, False),
    **dict.fromkeys((1200, 1201), (BadRequest, 400, False)),
    **dict.fromkeys((1202, 1203), (errors.NotFound, 404, False)),
    **dict.fromkeys((1300, 1301), (PolicyRefusal, 400, False)),
    1302: (RateLimited, 429, True),
    1303: (ParallelLimit, 429, True),
    1304: (errors.IPNotAllowed, 429, False),
    **{code: (ServerError, status, True) for code, status in ((5000, 500), (5001, 503), (5002, 504))},
}


def drawn() -> dict[str, str]:
    """Return the base of each class, as drawn in the docstring's tree."""
    parents, path = {}, ["KlingError"]
    for line in DOC.splitlines():
        found = re.match(r" {4}([│ ]*)[├└]── (\w+)", line)
        if found:
            depth = len(found[1]) // 4 + 1
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1]
    return parents


def test_the_tree_in_the_docstring_is_correct() -> None:
    """The docstring's tree shows each class under its base, and omits none."""
    real = {kind.__name__: kind.__mro__[1].__name__ for kind in CLASSES if kind is not KlingError}
    tree = drawn()
    assert set(tree) | {"KlingError"} == set(errors.__all__)
    for name, parent in tree.items():
        assert issubclass(getattr(errors, name), getattr(errors, parent)), name
        assert parent in {base.__name__ for base in getattr(errors, name).__bases__}, name
    second = {"PolicyRefusal": "ContentRejected", "TaskModerated": "ContentRejected"}
    assert real == tree | second


@pytest.mark.parametrize("line", [each for each in DOC.splitlines() if "(also a" in each])
def test_second_base_classes_in_the_tree_are_correct(line: str) -> None:
    """Every second base class that the tree names is a base class."""
    name = re.findall(r"── (\w+)", line)[0]
    for other in re.findall(r"\(also an? (\w+)", line):
        parent = getattr(errors, other, None) or getattr(builtins, other)
        assert issubclass(getattr(errors, name), parent)


def test_codes_in_the_tree_match_the_table() -> None:
    """The codes in the tree are the codes that `refusal` maps to these classes."""
    listed = {}
    for line in DOC.splitlines():
        found = re.search(r"── (\w+)(.*)", line)
        for code in re.findall(r"\b[15]\d{3}\b", found[2]) if found and '1201 "' not in line else ():
            listed[int(code)] = found[1] if found else ""
    assert {code: kind.__name__ for code, kind in CODES.items()} == listed


def test_every_error_is_a_kling_error_and_listed() -> None:
    """`except KlingError` catches every error, and `__all__` lists them all."""
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)
    assert all(issubclass(kind, KlingError) for kind in CLASSES)
    assert all(kind.__doc__ for kind in CLASSES)


# ------------------------------------------------------------------ the table of codes


def test_the_table_has_every_documented_code() -> None:
    """The table has exactly the documented codes."""
    assert set(CODES) == set(TABLE)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("code", TABLE)
def test_a_documented_code_means_the_same_under_any_status(code: int, status: int) -> None:
    """A code takes precedence over the status, because the service sends some codes with status 200."""
    kind, _, retryable = TABLE[code]
    assert refusal(code, "whatever", status) is kind
    assert kind.retryable is retryable


@pytest.mark.parametrize("code", [-1, 0, 1, 999, 1005, 1104, 1204, 1305, 4999, 5003, 10**9])
@pytest.mark.parametrize("status", STATUSES)
def test_an_undocumented_code_is_judged_by_its_status(code: int, status: int) -> None:
    """An unknown code is retryable only if its status is."""
    known = {401: AuthenticationError, 403: PermissionDenied}
    expected = known.get(status, ServerError if status >= 500 else APIError)
    assert refusal(code, "", status) is expected
    assert expected.retryable is (status >= 500)


@pytest.mark.parametrize("status", STATUSES)
def test_a_response_without_a_code_is_judged_by_its_status(status: int) -> None:
    """A page with a 4xx status is a refusal, except after a timeout. Below 400 it may be incomplete."""
    known = {401: AuthenticationError, 403: PermissionDenied, 404: NotFound, 429: RateLimited}
    known |= dict.fromkeys((408, 425, 499), ServerError)
    usual = ServerError if status >= 500 else APIError if status >= 400 else ProtocolError
    expected = known.get(status, usual)
    assert refusal(None, "", status) is expected
    assert expected.retryable is (status in {408, 425, 429, 499} or status >= 500 or status < 400)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("external_task_id X already exists", DuplicateTask),
        ("The External_Task_Id ALREADY EXISTS.", DuplicateTask),
        ("Task not found by id/external id: X", TaskNotFound),
        ("TASK NOT FOUND", TaskNotFound),
        ("image can not be null", BadRequest),
        ("File is not in a valid base64 format", BadRequest),
    ],
)
def test_the_message_distinguishes_the_meanings_of_1201(message: str, kind: type[APIError]) -> None:
    """Two meanings of 1201 have their own classes, which the message decides."""
    assert refusal(1201, message, 400) is kind
    assert refusal(1200, message, 400) is BadRequest


# ------------------------------------------------------------------ copies of errors

texts = st.text(max_size=30)
ids = st.none() | texts


def make(kind: type[KlingError], message: str, task_id: str | None, external: str | None) -> KlingError:
    """Return an error of this class with every attribute set."""
    error: KlingError
    if issubclass(kind, InvalidRequest):
        error = kind("n", message, "1 to 9 is allowed")
    elif issubclass(kind, APIError):
        error = kind(message, code=1201, status=400, request_id="r", retry_after=2.5)
    elif issubclass(kind, TransportError):
        error = kind(message, sent=False)
    else:
        error = kind(message)
    error.task_id, error.external_task_id = task_id, external
    return error


@given(message=texts, task_id=ids, external=ids)
def test_errors_survive_pickling_and_copying(message: str, task_id: str | None, external: str | None) -> None:
    """A pickled or copied error of any class has the same class, text and attributes."""
    for kind in CLASSES:
        error = make(kind, message, task_id, external)
        copies: list[Any] = [copy.copy(error), copy.deepcopy(error)]
        protocols = range(pickle.HIGHEST_PROTOCOL + 1)
        copies += [pickle.loads(pickle.dumps(error, protocol)) for protocol in protocols]
        for each in copies:
            assert type(each) is kind
            assert (str(each), each.args, vars(each)) == (str(error), error.args, vars(error))
            assert each.retryable is error.retryable


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_names_the_task_it_is_about(kind: type[KlingError]) -> None:
    """The text of an error has the ids, so a single log line is enough for a lookup."""
    shown = str(make(kind, "it broke", "930810057590833241", "dog-1"))
    assert "it broke" in shown
    assert "task_id=930810057590833241" in shown
    assert "external_task_id=dog-1" in shown
    assert "None" not in str(make(kind, "it broke", None, None))


def test_an_api_error_shows_what_support_asks_for() -> None:
    """The text has code, status and request id, but not `retry_after`."""
    error = APIError("no", code=1200, status=400, request_id="abc", retry_after=3)
    assert str(error) == "no (code=1200, status=400, request_id=abc)"
    assert str(APIError("no")) == "no"


def test_an_invalid_request_names_field_value_and_limit() -> None:
    """The error has the field, the value and the limit as text and as attributes."""
    error = InvalidRequest("n", 12, "must be between 1 and 9", "make two requests")
    assert str(error) == "n must be between 1 and 9, got 12; make two requests"
    assert (error.field, error.value, error.limit) == ("n", 12, "must be between 1 and 9")
    assert error.advice == "make two requests"
    assert str(ImageError("image", "'nofile.jpg'", "no such file")) == "image: no such file: 'nofile.jpg'"


def test_errors_are_also_built_in_exceptions() -> None:
    """Some errors are also subclasses of the matching built-in exceptions."""
    for kind, ordinary in (
        (InvalidRequest, ValueError),
        (MissingExtra, ImportError),
        (DeadlineExceeded, TimeoutError),
    ):
        with pytest.raises(ordinary):
            raise make(kind, "x", None, None)


def test_early_and_late_moderation_is_content_rejected() -> None:
    """A refusal of the create and a later moderation are both `ContentRejected`."""
    assert issubclass(PolicyRefusal, ContentRejected)
    assert issubclass(TaskModerated, ContentRejected)
    assert not issubclass(PolicyRefusal, TaskFailed)
    assert not issubclass(TaskModerated, APIError)


def test_only_temporary_errors_are_retryable() -> None:
    """Only temporary errors are retryable, and no error of a task that was paid for is."""
    retryable = {kind for kind in CLASSES if kind.retryable}
    assert retryable == {TransportError, RateLimited, ParallelLimit, ServerError, ProtocolError}


def test_copies_of_an_error_keep_its_notes() -> None:
    """Copies of an error keep its notes."""
    error = KlingError("x")
    error.add_note("while resuming")
    assert copy.copy(error).__notes__ == ["while resuming"]


@pytest.mark.parametrize("kind", [KlingError, APIError, TransportError, TaskFailed])
def test_control_characters_are_shown_as_escapes(kind: type[KlingError]) -> None:
    """Text from the service cannot move a terminal's cursor, forge a log line or break its encoding."""
    error = kind("bad \x1b[2J\x07\nworse \udcff é")
    shown = "bad \\x1b[2J\\x07\\nworse \\udcff é"
    assert (str(error), error.message, error.args) == (shown, shown, (shown,))
    assert str(pickle.loads(pickle.dumps(error))) == shown


def test_control_characters_in_ids_and_values_are_shown_as_escapes() -> None:
    """The ids and the quoted values in a message are escaped too."""
    refused = APIError("no", code=1201, request_id="\x1b[31mred")
    refused.task_id = "\r1"
    assert str(refused) == "no (code=1201, request_id=\\x1b[31mred, task_id=\\r1)"
    assert "\x1b" not in str(InvalidRequest("image", "\x1b[2J.png", "no such file"))
