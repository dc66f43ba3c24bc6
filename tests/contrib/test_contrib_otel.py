"""Traces and metrics of jobs, read from OpenTelemetry's in-memory exporters."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from kling_expand import KlingError, Ratios, TaskFailed
from kling_expand.contrib.otel import Telemetry
from kling_expand.emulator.faults.plan import Fault
from kling_expand.errors import ClientClosed, ImageError, PolicyRefusal
from kling_expand.testing import emulated, virtual_time

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)


@frozen
class Recorder:
    """A telemetry listener with its in-memory exporters."""

    telemetry: Telemetry
    traces: TracerProvider
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    def spans(self) -> tuple[ReadableSpan, ...]:
        """Return the spans that have ended."""
        return self.exporter.get_finished_spans()

    def metrics(self) -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
        """Return the value of each metric, or (count, sum), by name and attributes."""
        data = self.reader.get_metrics_data()
        found: dict[str, dict[tuple[tuple[str, Any], ...], Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = found.setdefault(metric.name, {})
                    for point in metric.data.data_points:
                        key = tuple(sorted((point.attributes or {}).items()))
                        value = getattr(point, "value", None)
                        points[key] = (point.count, point.sum) if value is None else value  # type: ignore[union-attr]  # no value: a histogram's
        return found


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Return telemetry with its own providers, so that no global state changes."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    traces, meters = TracerProvider(), MeterProvider(metric_readers=[reader])
    traces.add_span_processor(SimpleSpanProcessor(exporter))
    yield Recorder(Telemetry(tracer_provider=traces, meter_provider=meters), traces, exporter, reader)
    traces.shutdown()
    meters.shutdown()


def outcome(name: str) -> tuple[tuple[str, str], ...]:
    """Return the attributes of a job that ended with this outcome."""
    return (("kling.outcome", name),)


@virtual_time
async def test_a_job_is_one_span(recorder: Recorder) -> None:
    """A job is one span with its ids, events and units, and a child of the span at `submit`."""
    async with emulated({"listener": recorder.telemetry}) as (emulator, kling):
        with recorder.traces.get_tracer("shop").start_as_current_span("order"):
            future = kling.submit(PHOTO, WIDER, n=2, key="cat")
        await future
        (task_id,) = emulator.account.tasks
    order, job = recorder.spans()
    assert (order.name, job.name) == ("order", "kling.expand")
    assert job.parent == order.context
    assert job.attributes == {
        "kling.external_task_id": future.external_task_id,
        "kling.task_id": task_id,
        "kling.task_status": "succeed",
        "kling.units": "16",
        "kling.outcome": "succeeded",
    }
    assert [event.name for event in job.events] == ["accepted"]
    assert job.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("prompt", "kind", "name", "words"),
    [
        ("emulate-1301", PolicyRefusal, "PolicyRefusal", "Trigger the content security policy"),
        ("emulate-risk-control", TaskFailed, "failed", "Failure to pass the risk control system"),
    ],
)
@virtual_time
async def test_failures_are_recorded(
    recorder: Recorder, prompt: str, kind: type[KlingError], name: str, words: str
) -> None:
    """A refusal is recorded as an exception, and a failed task with its reason. Both are errors."""
    async with emulated({"listener": recorder.telemetry}) as (_, kling):
        with pytest.raises(kind):
            await kling.expand(PHOTO, WIDER, prompt=prompt)
    (job,) = recorder.spans()
    assert job.status.status_code is StatusCode.ERROR
    assert words in (job.status.description or "")
    assert (job.attributes or {})["kling.outcome"] == name
    assert ("exception" in [event.name for event in job.events]) is (kind is PolicyRefusal)
    assert recorder.metrics()["kling.jobs"] == {outcome(name): 1}
    assert "kling.units" not in recorder.metrics()


@virtual_time
async def test_metrics_agree_with_the_service(recorder: Recorder) -> None:
    """Calls, units, durations and latencies are correct, and no job is counted as open."""
    async with emulated({"listener": recorder.telemetry}) as (emulator, kling):
        emulator.faults.script("create", Fault("error", code=1302))
        futures = [kling.submit(PHOTO, WIDER, n=n) for n in (1, 2, 3)]
        await futures[0].accepted()
        assert recorder.metrics()["kling.jobs.open"] == {(): 3}
        for future in futures:
            await future
        requests = emulator.account.requests
    found = recorder.metrics()
    calls = found["kling.calls"]
    assert calls[("error.type", "RateLimited"), ("kling.call", "create")] == 1
    assert calls[(("kling.call", "create"),)] == 3
    assert sum(calls.values()) == requests["create"] + requests["query"] + requests["list"]
    assert found["kling.jobs"] == {outcome("succeeded"): 3}
    assert found["kling.jobs.open"] == {(): 0}
    assert found["kling.units"] == {(): 48}
    assert found["kling.task.duration"] == {outcome("succeeded"): (3, pytest.approx(7.5))}
    assert found["kling.task.latency"][()][0] == 3
    assert sum(count for count, _ in found["kling.call.duration"].values()) == sum(calls.values())


@virtual_time
async def test_a_closed_client_leaves_no_span_open(recorder: Recorder) -> None:
    """When the client closes, an open span ends as an error, and no job is counted as open."""
    async with emulated({"listener": recorder.telemetry}, work_seconds=3600) as (_, kling):
        future = kling.submit(PHOTO, WIDER)
        await future.accepted()
    (job,) = recorder.spans()
    assert (job.attributes or {})["error.type"] == ClientClosed.__name__
    assert (job.attributes or {})["kling.task_id"] == future.task_id
    assert recorder.metrics()["kling.jobs.open"] == {(): 0}
    assert recorder.telemetry._spans == {}


@virtual_time
async def test_an_attached_task_is_counted_without_a_span(recorder: Recorder) -> None:
    """An attached task has no span, because its start is not known."""
    async with emulated() as (emulator, kling):
        made = await kling.create(PHOTO, WIDER)
        options: dict[str, Any] = {"base_url": emulator.url, "listener": recorder.telemetry}
        async with type(kling)(api_key=emulator.api_key, **options) as other:
            await other.attach(made.task_id)
    assert recorder.spans() == ()
    assert recorder.metrics()["kling.jobs"] == {outcome("succeeded"): 1}


@virtual_time
async def test_no_customer_text_is_recorded(recorder: Recorder) -> None:
    """No span contains a prompt, the name of a photo, a URL or a key."""
    async with emulated({"listener": recorder.telemetry}) as (emulator, kling):
        await kling.expand(PHOTO, WIDER, prompt="the secret garden")
        for refused in ("no-such-chelsea.jpg", "https://h.example/a b?signature=secret"):
            with pytest.raises(ImageError):
                await kling.expand(refused, WIDER)
        shown = "".join(span.to_json() for span in recorder.spans())
        assert "no such file" in shown
        for word in ("secret", "chelsea", "http", emulator.api_key):
            assert word not in shown


def test_a_listener_needs_no_provider() -> None:
    """A listener can be created before an application sets the global providers."""
    listener: Callable[[Any], object] = Telemetry()
    assert callable(listener)
