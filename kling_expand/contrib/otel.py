"""OpenTelemetry spans and metrics of jobs, from the events of a client.

::

    async with KlingClient(listener=Telemetry()) as kling:
        ...

Each job is one span ``kling.expand``, from `submit` to the end of the job. Its parent is the span that was
current at `submit`. It has the events ``accepted``, ``retry`` and ``pause``. Durations are in seconds. The
metrics are:

=====================  ===============  =================================================
kling.jobs             counter          ended jobs, by `kling.outcome`
kling.jobs.open        up-down counter  submitted jobs that have not ended
kling.units            counter          units billed, as the service reports them
kling.calls            counter          calls to the API, by `kling.call` and `error.type`
kling.call.duration    histogram        duration of the calls
kling.task.duration    histogram        duration of the tasks, by the service's clock
kling.task.latency     histogram        time from the end of a task to its detection
=====================  ===============  =================================================
"""

from kling_expand import models
from kling_expand.errors import InvalidRequest, KlingError, require
from kling_expand.events import CALLS, Event, EventKind

require("otel", "opentelemetry")
from opentelemetry import metrics, trace
from opentelemetry.trace import Span, Status, StatusCode

__all__ = ["Telemetry"]

NAME = "kling_expand"


class Telemetry:
    """A `listener` for one or more clients, which records spans and metrics.

    *tracer_provider* and *meter_provider* default to the global ones.

    Prompts, photos and URLs are not recorded. Attached tasks are counted, but have no spans.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(NAME, meter_provider=meter_provider)
        self._spans: dict[int, Span] = {}
        self._jobs = meter.create_counter("kling.jobs", "{job}", "ended jobs")
        self._open = meter.create_up_down_counter("kling.jobs.open", "{job}", "open jobs")
        self._units = meter.create_counter("kling.units", "{unit}", "units billed")
        self._calls = meter.create_counter("kling.calls", "{call}", "calls to the API")
        self._call = meter.create_histogram("kling.call.duration", "s", "duration of a call")
        self._task = meter.create_histogram("kling.task.duration", "s", "duration of a task")
        self._latency = meter.create_histogram(
            "kling.task.latency", "s", "time from the end of a task to its detection"
        )

    def __call__(self, event: Event) -> None:
        """Record one event."""
        if event.kind in CALLS:
            self._called(event)
        elif event.kind in {EventKind.RETRY, EventKind.PAUSE}:
            self._repeated(event)
        elif event.number is None:
            return
        elif event.kind is EventKind.SUBMITTED:
            self._spans[event.number] = self._tracer.start_span("kling.expand", attributes=_ids(event))
            self._open.add(1)
        elif event.kind is EventKind.ACCEPTED:
            if span := self._spans.get(event.number):
                span.add_event("accepted", _ids(event))
        else:
            self._ended(event, self._spans.pop(event.number, None))

    def _called(self, event: Event) -> None:
        attributes = {"kling.call": str(event.kind)}
        if event.error is not None:
            attributes["error.type"] = type(event.error).__name__
        self._calls.add(1, attributes)
        self._call.record(event.seconds or 0.0, attributes)

    def _repeated(self, event: Event) -> None:
        """Add a retry or a pause to the span of its job."""
        if span := self._spans.get(event.number or 0):
            attributes: dict[str, str | int | float] = {"kling.call": event.route or ""}
            attributes |= {"kling.attempt": event.attempt or 1, "kling.wait": event.wait or 0.0}
            attributes["error.type"] = type(event.error).__name__
            span.add_event(str(event.kind), attributes)

    def _ended(self, event: Event, span: Span | None) -> None:
        error, task = event.error, event.task
        failed = error is None and task is not None and task.status is models.Status.FAILED
        outcome = type(error).__name__ if error else "failed" if failed else "succeeded"
        self._jobs.add(1, {"kling.outcome": outcome})
        if event.seconds is not None:
            self._task.record(event.seconds, {"kling.outcome": outcome})
        if event.latency is not None:
            self._latency.record(event.latency)
        if task is not None and not failed and task.units:
            self._units.add(float(task.units))
        if span is not None:
            self._open.add(-1)
            span.set_attributes(_ids(event))
            span.set_attribute("kling.outcome", outcome)
            _set_status(span, error, (task.task_status_msg or "") if failed and task else None)
            span.end()


def _set_status(span: Span, error: KlingError | None, reason: str | None) -> None:
    """Record an error, or the reason why a task failed, on *span*."""
    if error is not None:
        kind, text = type(error).__name__, error.message
        if isinstance(error, InvalidRequest):  # its message quotes input, such as the name of a photo
            text = f"{error.field}: {error.limit}"
            span.add_event("exception", {"exception.type": kind, "exception.message": text})
        else:
            span.record_exception(error)
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, text))
    elif reason is not None:
        span.set_status(Status(StatusCode.ERROR, reason))


def _ids(event: Event) -> dict[str, str]:
    """Return the ids of the job, and the status and units of its task, as far as they are known."""
    known = {"kling.external_task_id": event.external_task_id}
    if task := event.task:
        known["kling.task_id"] = task.task_id
        known["kling.task_status"] = task.task_status
        known["kling.units"] = task.final_unit_deduction
    return {name: value for name, value in known.items() if value is not None}
