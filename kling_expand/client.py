"""The asynchronous client for Kling image expansion."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar, Unpack, cast
from weakref import WeakValueDictionary

import aiohttp

from .api import codec
from .api.session import Session, SessionSource
from .config import (
    Auth,
    Settings,
    SettingsOptions,
    account_name,
    check_options,
    credentials,
    enable_logging,
    webhook_secret,
)
from .errors import ClientClosed, DeadlineExceeded, InvalidRequest
from .events import EventLog, Listener, Stats, StatsCollector
from .geometry import Geometry
from .jobs.bulk import BoundedMap, Outcome, Requests, SaveArguments, SaveTo, check_saves
from .jobs.future import (
    LOGGED_IDS,
    ExpandResult,
    TaskFuture,
    TaskRecord,
    deadline_at,
    interrupt,
    log_unretrieved,
)
from .jobs.poll_schedule import (
    AdaptiveSchedule,
    PollSchedule,
    format_durations,
    parse_durations,
    read_history,
    write_history,
)
from .jobs.poller import Poller
from .jobs.runner import Budget, Job, JobRunner, PassReservation, is_resumable
from .jobs.scheduler import Flow, Slots
from .jobs.submission import Submitter
from .models import (
    LAST_PAGE,
    UNITS_PER_IMAGE,
    Dialect,
    ExpandRequest,
    ImageSource,
    RequestFields,
    Task,
    check,
    list_fields,
    nearest_name,
    request_fields,
    shown,
    source_stem,
)
from .store.base import UNFINISHED, JobRecord, JobState, JobStore, MemoryStore

if TYPE_CHECKING:
    from .downloads.downloader import Downloads
    from .downloads.files import SaveOptions
    from .passes import Passes, PassJobs
    from .webhooks import Body, Headers, WebhookEvent, Webhooks

SAVES = 32  # further requests that `map` reads ahead if it saves the pictures

P = ParamSpec("P")
R = TypeVar("R")
First = TypeVar("First")

logger: logging.Logger = logging.getLogger(__name__)


class KlingClient:
    """The asynchronous client for Kling image expansion.

    Open it with ``async with``, in the event loop that uses it. Credentials come from the arguments, or else
    from the environment (see `kling_expand.config.credentials`). A closed client can be reopened, even in
    another event loop.

    ::

        async with KlingClient() as kling:
            result = await kling.expand("dog.jpg", "16:9")
            await result.save("out/")

    Args:
        access_key: the account's access key, used together with `secret_key`.
        secret_key: the account's secret key, which signs the tokens that the client sends.
        api_key: a static API key. It takes precedence over a key pair.
        auth: a `KeyPair`, a `StaticKey` or your own `Auth`, instead of the three arguments above.
        deadline: the default time limit of each job in seconds, from its submission to the end of its task.
        budget: the most units that may be spent (8 per picture). With a journal, the budget also covers the
            jobs that earlier processes recorded in it.
        run: the name of the run. The same `key` in another run is another job.
        journal: a file, or a `JobStore`, that records each job before it is sent, so that the job continues
            after a crash. With a journal, the same photo with the same parameters is the same job, even in a
            later process and without a `key`. It is not paid for again, and its result is returned. To run
            the job again, submit it with ``fresh=True``. The future raises `DuplicateTask` if the job has
            a task under another ``external_task_id``, or if a given ``external_task_id`` belongs to another
            job. A journal file belongs to one service and one account.
        schedule: the schedule by which tasks are polled, by default an `AdaptiveSchedule`. The task durations
            that it learns are kept for later processes, in the journal and in `Settings.cache_dir`.
        slots: the account's slots, to share them among several clients in the same event loop. By default,
            each client has `max_in_flight` slots of its own.
        listener: a function, or a sequence of functions, called with every `Event`.
        webhook_secret: the Webhook Secret from the console, or a sequence of several while secrets are
            rotated. The default is ``KLING_WEBHOOK_SECRET``.
        http: your own aiohttp session, which the client never closes, or a function that returns a new one.
            The function is called each time the client is opened, and its session is closed with the client.
        trace_configs: aiohttp trace configs for the session that the client creates itself.
        rng: the random generator for retry jitter, for tests.
        clock: a function that returns Unix seconds, for tests.
        options: the fields of `Settings`.

    Raises:
        ConfigurationError: if an option is invalid or unknown, or if credentials are missing.
    """

    settings: Settings

    _open = False
    _unsent = 0  # unsent jobs that the store keeps for a later process
    _saving: WeakValueDictionary[str, asyncio.Lock]  # by task id
    _known_durations: tuple[float, ...] = ()  # the task durations that were last loaded or stored
    _downloads: "Downloads | None" = None  # created at the first save

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
        http: SessionSource | None = None,
        trace_configs: list[aiohttp.TraceConfig] | None = None,
        slots: Slots | None = None,
        schedule: PollSchedule | None = None,
        listener: Listener | Sequence[Listener] | None = None,
        rng: Random | None = None,
        clock: Callable[[], float] = time.time,
        **options: Unpack[SettingsOptions],
    ) -> None:
        check_options(locals())
        self.settings = settings = Settings.from_env(**options)
        self._auth = auth or credentials(access_key, secret_key, api_key, clock=clock)
        self._webhooks = _webhooks(webhook_secret, clock)
        self._deadline = deadline
        self._flow = Flow()
        self._rng = rng = rng or Random()
        self._log = EventLog()
        self._collector = StatsCollector(self._log, listener)
        emit = self._collector.emit
        self._session = session = Session(
            settings, self._auth, http=http, trace_configs=trace_configs, rng=rng, emit=emit, clock=clock
        )
        self._schedule = schedule or AdaptiveSchedule()
        reads = _Reads(session, settings.dialect)
        self._poller = Poller(reads, self._schedule, settings, emit=emit)
        self._account = account_name(settings, self._auth)
        self._store, self._owns_store = _store(journal, run, self._account, clock)
        self._slots = slots or Slots(settings.max_in_flight)
        self._budget = Budget(budget)
        parts = Submitter(session, settings, rng=rng), self._poller, self._store, self._slots
        self._jobs = JobRunner(*parts, budget=self._budget, emit=emit)
        self._stack, self._saving = AsyncExitStack(), WeakValueDictionary()
        self._poller.registry.make_result = self._make_result

    def __repr__(self) -> str:
        return f"<KlingClient {self.settings.base_url} {self._auth!r} {len(self._poller)} open>"

    async def __aenter__(self) -> Self:
        enable_logging()
        async with AsyncExitStack() as stack:
            if self._owns_store:
                await stack.enter_async_context(self._store)
            await self._load_durations()
            stack.push_async_callback(self._keep_durations)
            await stack.enter_async_context(self._session)
            await stack.enter_async_context(self._poller)
            await self._budget.count_earlier_runs(self._store)
            self._stack = stack.pop_all()
        self._downloads = None  # the previous one uses a session that is closed
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log_running(self, await self.aclose())

    async def aclose(self, *, wait: bool = False) -> tuple[TaskFuture, ...]:
        """Close the client, and return the futures of the tasks that are still running at the service.

        The service cannot cancel a task, so these tasks continue and are billed. Their futures raise
        `ClientClosed`, and `attach` follows the tasks again by id. The future of a job that was not sent
        raises `NotSubmitted`. With *wait*, the client first waits until all jobs have ended.
        """
        check(wait=wait)
        self._open = False
        async with self._stack:  # closed even if this call is cancelled
            try:
                if wait:
                    await self._jobs.idle()
                    await asyncio.gather(*(TaskFuture(record).wait() for record in self._poller.records()))
            finally:
                running = await self._close_jobs()
        self._log.flush()
        return running

    async def _close_jobs(self) -> tuple[TaskFuture, ...]:
        """End every job, and return the futures of the tasks that are still running."""
        registry = self._poller.registry
        kept = [TaskFuture(record) for record in registry]  # otherwise each gets a log line of its own
        try:
            await self._jobs.close()
        finally:
            running = tuple(TaskFuture(record) for record in self._poller.records())
            for future in running:
                future.record.retrieve()  # the caller receives this future
                future.record.fail(ClientClosed("the client was closed; the task continues at the service"))
            if self._store.durable:
                self._unsent = _retrieve_unsent(kept)
            log_unretrieved(tuple(registry.unretrieved))
            kept.clear()
        await self._jobs.written()
        return running

    @property
    def stats(self) -> Stats:
        """The statistics of this client so far."""
        return self._collector.stats(
            waiting=len(self._jobs), running=len(self._poller), units_due=self._budget.units_due
        )

    # ------------------------------------------------------------------ submitting and waiting

    @list_fields
    async def expand(
        self,
        image: ImageSource | ExpandRequest,
        geometry: Geometry | str | None = None,
        *,
        passes: int = 1,
        deadline: float | None = None,
        priority: int = 0,
        fresh: bool = False,
        **fields: Unpack[RequestFields],
    ) -> ExpandResult:
        """Submit a photo, wait for its task and return the result.

        One task can enlarge a photo to at most three times its area. A geometry that needs more takes as few
        passes as possible, and at most *passes*. Each pass is a task that expands the result of the previous
        one, and each is billed. With a journal, a later call continues where an earlier one stopped.
        `ExpandResult.save` with ``full_size`` puts the photo back at its own size.

        Cancelling this call cancels the job if it has not been sent yet. A task that already exists
        continues. Its ids are logged and added to the `CancelledError` as a note.

        *deadline*, *priority* and *fresh* have the same meaning as in `submit`.

        Raises:
            KlingError: if `submit` or its future fails.
        """
        check(passes=passes)
        if passes == 1:
            future = self.submit(image, geometry, deadline=deadline, priority=priority, fresh=fresh, **fields)
            with _interrupt_if_cancelled(future):
                return await future
        request = _request(image, geometry, fields)
        chain = self.expand_passes(request, passes, deadline=deadline, priority=priority, fresh=fresh)
        async with aclosing(chain.futures()) as futures:
            async for future in futures:
                with _interrupt_if_cancelled(future):
                    await future
        return cast(ExpandResult, chain.result)

    def expand_passes(
        self,
        request: ExpandRequest,
        passes: int,
        *,
        deadline: float | None = None,
        priority: int = 0,
        fresh: bool = False,
        note: Mapping[str, Any] | None = None,
    ) -> "Passes":
        """Return a series of at most *passes* passes that expands the photo of a *request*.

        Each pass starts when an iteration over the `futures` of the series reaches it.

        *deadline*, *priority*, *fresh* and *note* have the same meaning as in `submit`.

        Raises:
            InvalidRequest: if an argument is invalid.
            ClientClosed: if the client is not open.
        """
        check(request=request, passes=passes, deadline=deadline, priority=priority, fresh=fresh, note=note)
        from .passes import Passes  # imported here, as few jobs need it

        return Passes(self._pass_jobs(deadline, priority, fresh=fresh), request, passes, note)

    def resume_passes(self, known: JobRecord) -> "Passes":
        """Return the remaining passes of a job of the journal, beginning with that job.

        If the job already has a task, that task is followed, and the photo is not needed.

        Raises:
            InvalidRequest: if *known* is not a record of a journal.
            ClientClosed: if the client is not open.
        """
        check(known=known)
        from .passes import Passes  # imported here, as few jobs need it

        return Passes(self._pass_jobs(None, 0), known=known)

    @list_fields
    def submit(
        self,
        image: ImageSource | ExpandRequest,
        geometry: Geometry | str | None = None,
        *,
        deadline: float | None = None,
        priority: int = 0,
        fresh: bool = False,
        note: Mapping[str, Any] | None = None,
        **fields: Unpack[RequestFields],
    ) -> TaskFuture:
        """Submit a photo and return its future without waiting. Later errors are raised by the future.

        *image* may also be a complete `ExpandRequest`, without *geometry* and *fields*. A job of higher
        *priority* gets slots first. Its task must end within *deadline* seconds from now.

        Submissions with the same `key`, photo and parameters are one job with one task. If one of them fails
        before the task exists, such as at its deadline, the others continue. Without a journal, a submission
        without a `key` is always a new job. With *fresh*, a job is run and paid for again if it has
        ended (for example because its pictures have expired) or if the service no longer has its task. A job
        that is still open is followed.

        A journal keeps *note*, a mapping of your own JSON values, in the job's record. It does not keep the
        photo. If the process ends before a job is sent, the job can be resumed only if its photo was given
        as a path or a URL.

        Raises:
            InvalidRequest: if an argument or a field of the request is invalid.
            ClientClosed: if the client is not open.
        """
        self._require_open()
        check(deadline=deadline, priority=priority, fresh=fresh, note=note)
        request = _request(image, geometry, fields)
        deadline_at = self._ends_at(deadline)
        return self._submit(request, deadline_at, priority, fresh=fresh, flow=self._flow, note=note)

    async def map(
        self,
        requests: Requests,
        *,
        ordered: bool = False,
        prefetch: int | None = None,
        max_failures: int | None = None,
        deadline: float | None = None,
        priority: int = 0,
        fresh: bool = False,
        save_to: SaveTo | None = None,
        save_options: SaveArguments | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Yield an `Outcome` for each request as its job ends, or in the order of *requests* if *ordered*.

        *requests* is an iterable or async iterable of any length. At most *prefetch* requests, by default
        twice `max_in_flight`, are read before their outcomes are yielded. A failure is an ordinary outcome
        with an error. After *max_failures* failures, jobs that were not sent are cancelled and no further
        request is read. *deadline*, *priority* and *fresh* apply to each job, as in `submit`.

        An item is an `ExpandRequest`, a mapping of its fields, or a function that returns an `ExpandRequest`.
        An error in an item becomes its outcome. An error in *requests* is raised after all earlier outcomes.

        *save_to* is a target as in `ExpandResult.save`, or a function that returns one for a request. It is
        checked before the job is sent. The pictures are saved before their outcome is yielded, and its
        `files` are their paths. *save_options* are arguments of `save`, such as ``{"full_size": True}``.
        Pictures that an earlier run saved are not saved again. Without *save_options*, this includes pictures
        that were edited. A save holds no slot, so *save_to* raises the default of *prefetch* by 32.

        Raises:
            InvalidRequest: if an argument is invalid, or an item is not a request, a mapping or a function.
            ClientClosed: if the client is not open.
        """
        self._require_open()
        check(requests=requests, ordered=ordered, prefetch=prefetch, max_failures=max_failures)
        check(deadline=deadline, priority=priority, fresh=fresh, save_to=save_to, save_options=save_options)
        check_saves(save_to, save_options)
        flow = Flow()  # shares the slots evenly with other calls
        bulk = BoundedMap(
            lambda request: self._submit(request, self._ends_at(deadline), priority, fresh=fresh, flow=flow),
            interrupt,
            prefetch=prefetch or 2 * self.settings.max_in_flight + (SAVES if save_to is not None else 0),
            save_to=save_to,
            save_options=save_options,
            ordered=ordered,
            max_failures=max_failures,
        )
        async with aclosing(bulk.run(requests)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def resume(self, *, deadline: float | None = None) -> AsyncGenerator[TaskFuture, None]:
        """Yield a future for each job of the journal whose pictures are not on disk yet, oldest first.

        An existing task is followed. A job that may have been sent is looked up. A job that was not sent is
        sent if its photo can still be read from its path or URL. The same applies to a job that was refused
        for a temporary reason, such as an empty account. Jobs that this client already follows are left out.
        If a job cannot be resumed, the error is logged and raised by its future. *deadline* applies to each
        job, as in `submit`.

        A job that is one of several passes is left out and logged, because its result is not the whole
        picture. Call `expand` again, or pass the job's record to `resume_passes`.

        Raises:
            InvalidRequest: if *deadline* is invalid.
            JournalError: if the journal cannot be read.
        """
        self._require_open()
        check(deadline=deadline)
        deadline_at = self._ends_at(deadline)
        async for listed in self._store.jobs(*UNFINISHED, JobState.REJECTED):
            if self._jobs.follows(listed):
                continue
            known = await self._store.get(listed.external_task_id)  # it may have ended since it was listed
            if known is None or not is_resumable(known) or self._jobs.follows(known):
                continue
            if is_pass(known):
                text = "job %s is not resumed, as it is one pass of several: call `expand` or `resume_passes`"
                logger.warning(text, known.external_task_id)
            else:
                yield self._resume(known, deadline_at)

    def resume_job(self, known: JobRecord, *, priority: int = 0) -> TaskFuture:
        """Return a future for one job of the journal, as `resume` would yield it.

        An existing task is followed, even if it has ended, and the photo is then not needed. *priority* has
        the same meaning as in `submit`.

        Raises:
            InvalidRequest: if *known* is not a record of a journal.
            ClientClosed: if the client is not open.
        """
        self._require_open()
        check(known=known, priority=priority)
        return self._resume(known, self._ends_at(None), priority)

    def attach(self, any_id: str, *, deadline: float | None = None) -> TaskFuture:
        """Return a future for a task that was submitted earlier or by another process.

        *any_id* is its `task_id` or its `external_task_id`. Because a new task may not be visible at once,
        the future of an unknown id raises `TaskNotFound` only after 30 s. `get` raises it after one read.
        *deadline* limits the wait for the task, in seconds from now.

        Raises:
            InvalidRequest: if *any_id* is not an id, or *deadline* is invalid.
            ClientClosed: if the client is not open.
        """
        self._require_open()
        check(any_id=any_id, deadline=deadline)
        deadline_at = self._ends_at(deadline)
        record = self._poller.registry.add(TaskRecord(any_id, pictures=1))
        if record.job is None:
            self._jobs.follow(record)  # a job of this client begins polling when its create is answered
        return TaskFuture(record, deadline_at=deadline_at)

    def receive(self, headers: "Headers", body: "Body") -> "WebhookEvent":
        """Process a callback with these *headers* and this raw *body*, as `Webhooks.parse` accepts them.

        The snapshot of a verified callback is delivered to its future at once. Without a secret, a callback
        only triggers a poll, so a forged one costs at most one read and delivers nothing.

        Raises:
            WebhookError: if the callback cannot be trusted or read.
        """
        event = self._webhooks.parse(headers, body)
        if event.needs_poll or not self._poller.deliver(event.task):
            self._poller.poll_now(event.task.task_id)
        return event

    # ------------------------------------------------------------------ single calls

    @list_fields
    async def create(
        self,
        image: ImageSource | ExpandRequest,
        geometry: Geometry | str | None = None,
        **fields: Unpack[RequestFields],
    ) -> Task:
        """Submit a photo, and return a snapshot of its task as soon as the service has accepted the task.

        Raises:
            KlingError: if `submit` or the future's `accepted` fails.
        """
        future = self.submit(image, geometry, **fields)
        with _interrupt_if_cancelled(future):
            task = await future.accepted()
        future.record.retrieve()  # the caller follows the task by its id
        return task

    async def get(self, any_id: str) -> Task:
        """Return the task with this `task_id` or `external_task_id`.

        Raises:
            InvalidRequest: if *any_id* is not an id.
            TaskNotFound: if the service has no such task.
        """
        self._require_open()
        return await self._session.read(codec.task_path(self.settings.dialect, any_id), codec.decode_task)

    async def job(self, external_task_id: str) -> JobRecord | None:
        """Return the journal's record of a job, or None if there is none. No request is sent.

        *external_task_id* is the id that `TaskFuture.recorded` returns. With a journal such as
        ``jobs-{worker}.db``, the files of the other workers are read too, so any worker can find any job.
        Without a journal, only open jobs are found, and only if their ids were derived from a `key`.

        Raises:
            InvalidRequest: if *external_task_id* is not an id.
            ClientClosed: if the client is not open.
            JournalError: if a journal cannot be read.
        """
        self._require_open()
        check(external_task_id=external_task_id)
        return await self._store.get_from_any(external_task_id)

    async def list(self, page: int = 1, page_size: int = 30) -> tuple[Task, ...]:
        """Return one page of the account's tasks.

        *page* is 1 to 1000, and *page_size* is 1 to 500 (documented).

        Raises:
            InvalidRequest: if *page* or *page_size* is out of range.
        """
        self._require_open()
        check(page=page, page_size=page_size)
        return await self._session.read(
            codec.create_path(self.settings.dialect),
            codec.decode_tasks,
            params={"pageNum": page, "pageSize": page_size},
        )

    async def tasks(self, *, page_size: int = 100) -> AsyncGenerator[Task, None]:
        """Yield all of the account's tasks, each once, even if new tasks are added in the meantime.

        The order is that of the service. Each request reads *page_size* tasks, 1 to 500 (documented). A task
        that moves to an earlier page in the meantime may be missed.

        Raises:
            KlingError: if `list` fails.
        """
        seen: set[str] = set()
        for page in range(1, LAST_PAGE + 1):
            tasks = await self.list(page, page_size)
            if not tasks:
                return
            for task in tasks:
                if task.task_id not in seen:
                    seen.add(task.task_id)
                    yield task

    # ------------------------------------------------------------------ internals

    def _submit(
        self,
        request: ExpandRequest,
        deadline_at: float | None,
        priority: int,
        *,
        fresh: bool,
        flow: Flow,
        note: Mapping[str, Any] | None = None,
        reservation: PassReservation | None = None,
    ) -> TaskFuture:
        self._require_open()
        if not isinstance(request, ExpandRequest):
            raise InvalidRequest("requests", shown(request), "must contain only ExpandRequest objects")
        any_id = request.external_task_id or codec.random_id()
        record = TaskRecord(any_id, pictures=request.n)
        self._jobs.start(
            record,
            request,
            deadline_at=deadline_at,
            flow=flow,
            priority=priority,
            fresh=fresh,
            note=note,
            reservation=reservation,
        )
        return TaskFuture(record, deadline_at=deadline_at)

    def _pass_jobs(self, deadline: float | None, priority: int, *, fresh: bool = False) -> "PassJobs":
        from .passes import PassJobs  # imported here, as few jobs need it

        self._require_open()
        deadline_at = self._ends_at(deadline)
        return PassJobs(
            self._store,
            self._budget,
            lambda request, note, reservation: self._submit(
                request,
                deadline_at,
                priority,
                fresh=fresh,
                flow=self._flow,
                note=note,
                reservation=reservation,
            ),
            lambda known: self._resume(known, deadline_at, priority),
            self._record_saved,
            deadline_at,
            fresh,
        )

    def _resume(self, known: JobRecord, deadline_at: float | None, priority: int = 0) -> TaskFuture:
        pictures = known.units // UNITS_PER_IMAGE
        record = TaskRecord(known.external_task_id, pictures=pictures)
        self._jobs.start(record, known.request, deadline_at=deadline_at, priority=priority, known=known)
        return TaskFuture(record, deadline_at=deadline_at)

    async def _load_durations(self) -> None:
        """Load the durations learned by earlier processes into a schedule that has none yet."""
        if not isinstance(self._schedule, AdaptiveSchedule) or self._schedule.durations:
            return
        known: list[float] = []
        try:
            known = parse_durations(await self._store.durations())
        except Exception as error:  # noqa: BLE001 - a store may be a user's own
            logger.debug("the durations of earlier tasks cannot be read: %s", error)
        folder = self.settings.cache_dir
        if not known and folder is not None:
            known = await asyncio.to_thread(read_history, folder, self._account)
        for duration in known:
            self._schedule.learn(duration)
        self._known_durations = self._schedule.durations

    async def _keep_durations(self) -> None:
        """Store the durations that the schedule has learned, for later processes."""
        if not isinstance(self._schedule, AdaptiveSchedule):
            return
        if self._schedule.durations == self._known_durations:
            return
        self._known_durations = durations = self._schedule.durations
        try:
            await self._store.keep_durations(format_durations(durations))
        except Exception as error:  # noqa: BLE001 - a store may be a user's own
            logger.debug("the durations of tasks cannot be stored: %s", error)
        if self.settings.cache_dir is not None:
            await asyncio.to_thread(write_history, self.settings.cache_dir, self._account, durations)

    def _ends_at(self, deadline: float | None) -> float | None:
        """Return the loop time at which *deadline*, or else the client's default, passes."""
        return deadline_at(self._deadline if deadline is None else deadline)

    def _make_result(self, record: TaskRecord, task: Task) -> ExpandResult:
        job = record.job if isinstance(record.job, Job) else None
        request = job.request if job else None
        name = source_stem(request.image) if request else None
        files, saves = (job.files, job.saves) if job else ((), ())
        return ExpandResult(task, request, name, files, saves=saves, save=self._save, read=self._read)

    def _get_downloads(self) -> "Downloads":
        if self._downloads is None:
            from .downloads.downloader import Downloads  # imported here, as many callers only want the URLs

            self._downloads = Downloads(
                self._session.http,
                self.settings,
                refresh=self.get,
                rng=self._rng,
                proxy_of=self._session.proxy_of,
                emit=self._collector.emit,
            )
        return self._downloads

    def _read(self, task: Task, position: int, *, deadline_at: float | None) -> AsyncGenerator[bytes, None]:
        return self._get_downloads().stream(task, position, deadline_at=deadline_at)

    async def _save(
        self,
        task: Task,
        target: str | os.PathLike[str],
        options: "SaveOptions",
        *,
        deadline_at: float | None,
    ) -> tuple[Path, ...]:
        # Saves of one task run one after another, so that a later one finds the files of an earlier one.
        lock = self._saving.setdefault(task.task_id, asyncio.Lock())
        try:
            async with asyncio.timeout_at(deadline_at):
                await lock.acquire()
        except TimeoutError:
            reason = "the deadline passed while this save waited for another save of the same task"
            raise DeadlineExceeded(reason, task_id=task.task_id) from None
        try:
            task = await self._jobs.with_all_pictures(task, options.pictures, deadline_at)
            paths = await self._get_downloads().save(task, target, options, deadline_at=deadline_at)
            await self._record_saved(task, paths)
        finally:
            lock.release()
        if options.finish is None:
            return paths
        try:
            async with asyncio.timeout_at(deadline_at):
                finished = await options.finish(task, paths)
        except TimeoutError:
            reason = "the deadline passed while full-size pictures were being made"
            raise DeadlineExceeded(reason, task_id=task.task_id) from None
        await self._record_saved(task, finished)
        return finished

    async def _record_saved(self, task: Task, paths: tuple[Path, ...]) -> None:
        name = task.external_task_id
        if name and (saves := await self._store.saves(name)) is not None:
            await self._store.observe(name, task)
            saved = tuple(path.absolute() for path in paths)
            earlier = [files for files in saves if saved != files and any(map(os.path.exists, files))]
            await self._store.mark_saved(name, chain(saved, *earlier))

    def _require_open(self) -> None:
        if not self._open:
            raise ClientClosed("the client is not open: use it inside `async with`")


class _Reads(NamedTuple):
    """The reads of the poller, through one session."""

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


def _retrieve_unsent(futures: Sequence[TaskFuture]) -> int:
    """Mark the unsent jobs that the store keeps as retrieved, and return their number.

    They are not lost, so their errors are not logged.
    """
    jobs = [(future, future.record.job) for future in futures if future.cancelled()]
    unsent = [future for future, job in jobs if job is not None and job.recorded_id is not None]
    for future in unsent:
        future.record.retrieve()
    return len(unsent)


def log_running(client: KlingClient, running: Sequence[TaskFuture]) -> None:
    """Log what was still open when *client* was closed, such as the *running* tasks."""
    if client._store.durable:  # noqa: SLF001 - the two are one unit
        if jobs := len(running) + client._unsent:  # noqa: SLF001 - the same
            open_jobs = "1 open job" if jobs == 1 else f"{jobs} open jobs"
            text = "the client was closed with %s; nothing is lost: call `resume` after the next start"
            logger.info(text, open_jobs)
    elif running:
        ids = ", ".join(future.any_id for future in running[:LOGGED_IDS])
        tasks = "1 task continues" if len(running) == 1 else f"{len(running)} tasks continue"
        logger.warning("the client was closed; %s at the service: %s", tasks, ids)


def _request(
    image: ImageSource | ExpandRequest, geometry: Geometry | str | None, fields: RequestFields
) -> ExpandRequest:
    if isinstance(image, ExpandRequest):
        if geometry is not None or fields:
            limit = "must not be combined with a geometry or fields"
            raise InvalidRequest("request", shown(image), limit, "to change a field, use attrs.evolve")
        return image
    known = [each.name for each in request_fields()]
    for name in fields.keys() - {*known}:
        advice = nearest_name(name, [*known, "deadline", "priority", "fresh"])
        value = shown(dict(fields)[name])
        raise InvalidRequest(
            name, value, "no such argument", advice or f"the arguments are {', '.join(known)}"
        )
    return ExpandRequest(image, cast(Geometry, geometry), **fields)


def is_pass(known: JobRecord) -> bool:
    """Return whether a job of the journal is one of several passes."""
    if "pass" not in known.note:
        return False
    from .passes import pass_of  # imported here, as few jobs have passes

    return pass_of(known) is not None


def _store(
    given: str | os.PathLike[str] | JobStore | None, run: str, account: str, clock: Callable[[], float]
) -> tuple[JobStore, bool]:
    """Return the client's job store, and whether the client opens and closes it."""
    if given is None:
        return MemoryStore(run=run, clock=clock), True
    if not isinstance(given, str | os.PathLike):
        return given, False
    from .store.sqlite import SQLiteStore  # imported here, as most clients need no database

    return SQLiteStore(given, run=run, account=account, clock=clock), True


def _webhooks(given: str | Sequence[str] | None, clock: Callable[[], float]) -> "Webhooks":
    from .webhooks import Webhooks  # imported here, to keep the import of the package fast

    if given is None or isinstance(given, str):
        secret = webhook_secret(given)
        given = [secret] if secret else []
    return Webhooks(*given, clock=clock)


@contextmanager
def _interrupt_if_cancelled(future: TaskFuture) -> Iterator[None]:
    """Cancel the job if the call that waits for it is cancelled."""
    try:
        yield
    except asyncio.CancelledError:
        interrupt(future)
        raise


def takes_options(
    _client: Callable[P, KlingClient],
) -> Callable[[Callable[Concatenate[First, ...], R]], Callable[Concatenate[First, P], R]]:
    """Return a decorator that gives a function's ``**options`` the types of a client's arguments."""

    def decorate(function: Callable[Concatenate[First, ...], R]) -> Callable[Concatenate[First, P], R]:
        return function

    return decorate
