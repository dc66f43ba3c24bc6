"""Where does one come in? One object that submits, waits and fetches, and leaves nothing when closed."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack
from uuid import uuid4

import aiohttp
from attrs import frozen

from .api import codec
from .api.session import Session
from .auth import Auth
from .config import Settings, SettingsFields, credentials, webhook_secret
from .errors import ClientClosed, InvalidRequest
from .events import Listener, Stats, StatsCollector
from .geometry import Geometry
from .jobs.admission import Admission, Job
from .jobs.bulk import BoundedMap, Outcome, Requests
from .jobs.future import ExpandResult, Save, TaskFuture, TaskRecord
from .jobs.poll_schedule import AdaptiveSchedule, PollSchedule
from .jobs.poller import Poller
from .jobs.runner import Jobs
from .jobs.scheduler import Flow, Slots
from .jobs.submission import Submitter
from .models import Dialect, ExpandRequest, ImageSource, RequestFields, Task, source_stem
from .store.base import UNFINISHED, JobRecord, JobStore, MemoryStore

if TYPE_CHECKING:
    from .downloads.downloader import Downloads
    from .webhooks import WebhookEvent, Webhooks


class KlingClient:
    """Expands photos over the Kling API; open it with ``async with`` in the loop it is used in.

    Credentials come from the arguments, else the environment (see `kling_expand.config`).
    `deadline` (seconds) is the default bound of each job, from its submission to the end of its
    download. `budget` (units, 8 a picture) is the most this client may spend. `run` names the run that
    the `key` of a request counts in. `journal` is a file in which every job is written down before it
    is sent: after a crash the same jobs go on where they were. `schedule` says when tasks are looked at,
    `slots` may be shared with other clients of the account in this event loop, and `listener` is called
    with every `Event`.
    `webhook_secret` is the console's, or several while one replaces another. Further *options* are the
    fields of `Settings`.

    An `http` session given here is used as it is and never closed; `trace_configs` go to our own.
    """

    _downloads: "Downloads | None" = None  # made with the first save

    def __init__(
        self,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        api_key: str | None = None,
        auth: Auth | None = None,
        deadline: float | None = None,
        budget: int | None = None,
        run: str = "default",
        journal: str | os.PathLike[str] | JobStore | None = None,
        webhook_secret: str | Sequence[str] | None = None,
        http: aiohttp.ClientSession | None = None,
        trace_configs: list[aiohttp.TraceConfig] | None = None,
        slots: Slots | None = None,
        schedule: PollSchedule | None = None,
        listener: Listener | None = None,
        rng: Random | None = None,
        clock: Callable[[], float] = time.time,
        **options: Unpack[SettingsFields],
    ) -> None:
        self.settings = settings = Settings.from_env(**options)
        dialect = settings.dialect
        self._auth = auth or credentials(access_key, secret_key, api_key, clock=clock)
        self._webhooks = _webhooks(webhook_secret, clock)
        self._deadline = deadline
        self._lane = Flow()
        self._rng = rng = rng or Random()
        self._collector = StatsCollector(listener)
        emit = self._collector.emit
        self._session = session = Session(
            settings, self._auth, http=http, trace_configs=trace_configs, rng=rng, emit=emit, clock=clock
        )
        reads = _Reads(session, dialect)
        self._poller = Poller(
            reads, schedule or AdaptiveSchedule(rng), poll_timeout=settings.poll_timeout, emit=emit
        )
        self._store, self._owns_store = _store(journal, run, clock)
        submitter = Submitter(session, dialect, rng=rng, budget=settings.retry_timeout)
        slots = slots or Slots(settings.max_in_flight)
        self._admission = admission = Admission(
            submitter, slots, self._store, budget=budget, upload_bytes=settings.upload_bytes, rng=rng
        )
        self._jobs = Jobs(admission, submitter, self._poller, self._store, dialect=dialect, emit=emit)
        self._stack = AsyncExitStack()
        self._open = False
        self._saving: Save = self._save  # one for all results: each attribute access would make another

    def __repr__(self) -> str:
        return f"<KlingClient {self.settings.base_url} {self._auth!r} {len(self._poller)} open>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._owns_store:
                await stack.enter_async_context(self._store)
            await stack.enter_async_context(self._session)
            await stack.enter_async_context(self._poller)
            self._stack = stack.pop_all()
        self._downloads = None  # an earlier one belongs to an earlier session
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, wait: bool = False) -> tuple[TaskFuture, ...]:
        """Submit nothing more, and return the futures of the tasks that still run at the service.

        There is no remote cancel: those tasks go on, and are paid for; `attach` them again by their
        id. With *wait* they are waited for first. What was not sent yet fails with `NotSubmitted`,
        what is given up with `ClientClosed`.
        """
        self._open = False
        async with self._stack:  # closed in the end even if this is cancelled
            try:
                if wait:
                    await self._jobs.idle()
                    await asyncio.gather(
                        *(TaskFuture(record).finished() for record in self._poller.records())
                    )
            finally:
                running = await self._give_up()
        return running

    async def _give_up(self) -> tuple[TaskFuture, ...]:
        """End every job; the futures of those whose task runs on."""
        try:
            await self._jobs.close()
        finally:
            running = tuple(TaskFuture(record) for record in self._poller.records())
            for future in running:
                future.record.fail(ClientClosed("the client was closed; the task goes on at the service"))
        await self._jobs.noted()
        return running

    @property
    def stats(self) -> Stats:
        """What this client has done so far."""
        return self._collector.stats(
            waiting=len(self._jobs), running=len(self._poller), units_due=self._admission.units_due
        )

    # ------------------------------------------------------------------ submitting and waiting

    async def expand(
        self,
        image: ImageSource | ExpandRequest,
        geometry: Geometry | None = None,
        *,
        deadline: float | None = None,
        priority: int = 0,
        **fields: Unpack[RequestFields],
    ) -> ExpandResult:
        """Submit a photo and wait for its expanded pictures; `submit` followed by ``await``."""
        return await self.submit(image, geometry, deadline=deadline, priority=priority, **fields)

    def submit(
        self,
        image: ImageSource | ExpandRequest,
        geometry: Geometry | None = None,
        *,
        deadline: float | None = None,
        priority: int = 0,
        **fields: Unpack[RequestFields],
    ) -> TaskFuture:
        """Submit a photo, or a whole `ExpandRequest`; its future at once, its slot is waited for behind it.

        A higher *priority* gets a slot before a lower one. *deadline* seconds from now bound
        everything up to the end of the download. Raises `InvalidRequest` for a request that can be
        seen to be wrong, and `ClientClosed`; whatever comes later is raised by the future.
        """
        self._require_open()
        request = _request(image, geometry, fields)
        return self._submit(request, deadline, priority, self._lane)

    async def map(
        self,
        requests: Requests,
        *,
        ordered: bool = False,
        prefetch: int | None = None,
        max_failures: int | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[Outcome, None]:
        """Expand many: an `Outcome` for each request, as they end or (*ordered*) in their order.

        Any iterable or async iterable will do, of any length: at most *prefetch* requests (twice
        `max_in_flight`) are taken before their outcomes are read. A failure is an outcome like any
        other; after *max_failures* of them nothing more is submitted. *deadline* counts for each job.
        """
        self._require_open()
        flow = Flow()  # it takes turns with other calls
        bulk = BoundedMap(
            lambda request: self._submit(request, deadline, priority, flow),
            self._jobs.cancel,
            prefetch=prefetch or 2 * self.settings.max_in_flight,
            ordered=ordered,
            max_failures=max_failures,
        )
        async with aclosing(bulk.run(requests)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def resume(self, *, deadline: float | None = None) -> AsyncGenerator[TaskFuture, None]:
        """A future for every job in the journal whose pictures are not on disk yet, oldest first.

        What runs at the service is waited for; what may have been sent is looked up; what was not is
        sent, if its photo can be read again from its path or URL. Raises `JournalError`.
        """
        self._require_open()
        deadline_at = _until(self._deadline if deadline is None else deadline)
        async for known in self._store.jobs(*UNFINISHED):
            if self._poller.registry.get(known.external_task_id) is not None:
                continue  # this client follows it already
            name = source_stem(known.source)
            yield self._start(known.external_task_id, known.request, deadline_at, known=known, name=name)

    def attach(self, any_id: str, *, deadline: float | None = None) -> TaskFuture:
        """The future of a task submitted elsewhere or earlier, by `task_id` or `external_task_id`."""
        self._require_open()
        deadline_at = _until(self._deadline if deadline is None else deadline)
        record = TaskRecord(any_id, make_result=self._result(None, deadline_at))
        self._poller.add(record, soon=True)
        return TaskFuture(record, deadline_at=deadline_at)

    def receive(self, headers: Mapping[str, str], body: bytes) -> "WebhookEvent":
        """Take a callback: its raw *body* and its *headers*, names in any case.

        Signed news is told to its future at once. Any other call is only a doorbell: the service is
        asked, so a forged one costs a read at most and delivers nothing. Raises `WebhookError`.
        """
        call = self._webhooks.parse(headers, body)
        if call.needs_poll or not self._poller.deliver(call.task):
            self._poller.poll_now(call.task.task_id)
        return call

    # ------------------------------------------------------------------ the plain calls

    async def create(
        self,
        image: ImageSource | ExpandRequest,
        geometry: Geometry | None = None,
        **fields: Unpack[RequestFields],
    ) -> Task:
        """Submit a photo without watching it: the first snapshot of its task."""
        future = self.submit(image, geometry, **fields)
        return await future.accepted()

    async def get(self, any_id: str) -> Task:
        """The task with this `task_id` or `external_task_id`. Raises `TaskNotFound`."""
        self._require_open()
        return await self._session.read(codec.task_path(self.settings.dialect, any_id), codec.decode_task)

    async def list(self, page: int = 1, page_size: int = 30) -> tuple[Task, ...]:
        """One page of the account's tasks: *page* from 1 to 1000, *page_size* from 1 to 500 (doc)."""
        self._require_open()
        for field, value, last in (
            ("page", page, codec.LAST_PAGE),
            ("page_size", page_size, codec.PAGE_SIZE),
        ):
            if not 1 <= value <= last:
                raise InvalidRequest(field, value, f"must be between 1 and {last}")
        return await self._session.read(
            codec.create_path(self.settings.dialect),
            codec.decode_tasks,
            params={"pageNum": page, "pageSize": page_size},
        )

    async def tasks(self, *, page_size: int = 100) -> AsyncGenerator[Task, None]:
        """All of the account's tasks, each once, even while others are being added.

        The order is the service's; a task that moves to an earlier page meanwhile may be missed.
        """
        seen: set[str] = set()
        for page in range(1, codec.LAST_PAGE + 1):
            tasks = await self.list(page, page_size)
            if not tasks:
                return
            for task in tasks:
                if task.task_id not in seen:
                    seen.add(task.task_id)
                    yield task

    # ------------------------------------------------------------------ within

    def _submit(
        self, request: ExpandRequest, deadline: float | None, priority: int, flow: Flow
    ) -> TaskFuture:
        self._require_open()
        deadline_at = _until(self._deadline if deadline is None else deadline)
        any_id = request.external_task_id or f"kx-{uuid4().hex}"
        return self._start(any_id, request, deadline_at, flow=flow, priority=priority)

    def _start(
        self,
        any_id: str,
        request: ExpandRequest | None,
        deadline_at: float | None,
        *,
        flow: Flow | None = None,
        priority: int = 0,
        known: JobRecord | None = None,
        name: str | None = None,
    ) -> TaskFuture:
        files: list[Path] = []
        name = name or (source_stem(request.image) if request else None)
        record = TaskRecord(any_id, make_result=self._result(request, deadline_at, name, files))
        job = record.job = Job(request, record, deadline_at, flow, priority, known, files)
        self._jobs.start(job)
        return TaskFuture(record, deadline_at=deadline_at)

    def _result(
        self,
        request: ExpandRequest | None,
        deadline_at: float | None,
        name: str | None = None,
        files: Sequence[Path] = (),
    ) -> Callable[[Task], ExpandResult]:
        return _Results(self._saving, request, name, files, deadline_at)

    async def _save(
        self, task: Task, target: str | os.PathLike[str], *, name: str | None, deadline_at: float | None
    ) -> tuple[Path, ...]:
        if self._downloads is None:
            from .downloads.downloader import Downloads  # here, as many only want the URLs

            self._downloads = Downloads(self._session.http, self.settings, refresh=self.get, rng=self._rng)
        paths = await self._downloads.save(task, target, name=name, deadline_at=deadline_at)
        if task.external_task_id and await self._store.get(task.external_task_id):
            await self._store.observe(task.external_task_id, task)
            await self._store.mark_saved(task.external_task_id, [path.absolute() for path in paths])
        return paths

    def _require_open(self) -> None:
        if not self._open:
            raise ClientClosed("the client is not open: use it inside `async with`")


@frozen(eq=False, weakref_slot=False)
class _Results:
    """Makes the result of one job: as small as can be, for there is one for each that waits."""

    save: Save
    request: ExpandRequest | None
    name: str | None
    files: Sequence[Path]
    deadline_at: float | None

    def __call__(self, task: Task) -> ExpandResult:
        return ExpandResult(task, self.request, self.name, tuple(self.files), self.save, self.deadline_at)


class _Reads(NamedTuple):
    """The poll loop's questions, over one session."""

    session: Session
    dialect: Dialect

    async def one(self, any_id: str) -> Task:
        return await self.session.call("GET", codec.task_path(self.dialect, any_id), codec.decode_task)

    async def page(
        self, number: int, size: int, known_status: Callable[[str], str | None]
    ) -> tuple[dict[str, Task | None], bool]:
        decode = partial(codec.decode_page, known_status=known_status)
        params = {"pageNum": number, "pageSize": size}
        shown, length = await self.session.call("GET", codec.create_path(self.dialect), decode, params=params)
        return shown, length < size


def _request(image: Any, geometry: Geometry | None, fields: RequestFields) -> ExpandRequest:
    if isinstance(image, ExpandRequest):
        if geometry is not None or fields:
            limit = "must be the only argument, as it says everything"
            raise InvalidRequest("request", image, limit, "change it with attrs.evolve")
        return image
    if geometry is None:
        raise InvalidRequest("geometry", None, 'must say how far to expand, such as ToAspect("16:9")')
    return ExpandRequest(image, geometry, **fields)


def _store(
    given: str | os.PathLike[str] | JobStore | None, run: str, clock: Callable[[], float]
) -> tuple[JobStore, bool]:
    """Return the client's job store, and whether the client opens and closes it."""
    if given is None:
        return MemoryStore(run=run, clock=clock), True
    if isinstance(given, JobStore):
        return given, False
    from .store.sqlite import SQLiteStore  # here, as most clients need no database

    return SQLiteStore(given, run=run, clock=clock), True


def _webhooks(given: str | Sequence[str] | None, clock: Callable[[], float]) -> "Webhooks":
    from .webhooks import Webhooks  # here, so that the import of the package does not wait for it

    if given is None or isinstance(given, str):
        secret = webhook_secret(given)
        given = [secret] if secret else []
    return Webhooks(*given, clock=clock)


def _until(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    if not deadline > 0:
        raise InvalidRequest("deadline", deadline, "must be above 0 seconds")
    return asyncio.get_running_loop().time() + deadline
