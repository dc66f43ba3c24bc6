"""The tables and functions of a fleet's queue and permits in PostgreSQL, beside those of the job store.

What has to happen at once happens in one function, so each call of a worker is one statement.
"""

from kling_expand.store.postgres import AT_SERVICE

NEW, FOLLOW, ALONE, SAVE = "new", "follow", "alone", "save"
MAX_DEATHS = 3  # of workers that had a job in work, after which it runs alone

JOB_CHANNEL = "kling_jobs"  # notified with the begin of a run's name when the run has jobs to take
PERMIT_CHANNEL = "kling_permits"  # notified with the number of the worker that may take permits
STARVATION_TIMEOUT = 15.0  # seconds that a worker's first waiter waits before it blocks the other workers
ASKING_TIMEOUT = 10.0  # seconds after which a worker that neither asks nor sends heartbeats blocks no other
MAX_TASK_AGE = 3600.0  # seconds after its create that a task counts which no worker follows

_COUNTS = f"""{AT_SERVICE} AND account = of_account
    AND coalesce(last_post_mark::double precision, last_post_at) > extract(epoch FROM now())
    - {MAX_TASK_AGE}"""
IMAGES = "(params::json ->> 'n')::integer"
RUN_LENGTH = 1000  # characters of a run's name in a notification, which has at most 8000 bytes
NOTIFY_JOBS = f"pg_notify('{JOB_CHANNEL}', left(%s, {RUN_LENGTH}))"
SCHEMA = f"""
DROP FUNCTION IF EXISTS kling_permits_take, kling_permits_release, kling_permits_join, kling_permits_lock,
    kling_permits_held, kling_permit, kling_requeue, kling_take, kling_requeue_stalled;
CREATE TABLE IF NOT EXISTS kling_queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run text NOT NULL,
    key text NOT NULL,
    stage text NOT NULL DEFAULT '{NEW}',
    priority integer NOT NULL,
    payload jsonb NOT NULL CHECK (payload ->> 'key' IS NOT DISTINCT FROM key),
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz,  -- when it may be taken at the earliest
    worker bigint        -- that has it in hand
);
CREATE INDEX IF NOT EXISTS kling_queue_waiting ON kling_queue (run, stage, priority DESC, id)
    WHERE worker IS NULL;
CREATE INDEX IF NOT EXISTS kling_queue_taken ON kling_queue (worker) WHERE worker IS NOT NULL;
CREATE INDEX IF NOT EXISTS kling_queue_keys ON kling_queue (run, key);
-- How many jobs of a run are open: a count of the table itself would take longer the longer it is. There are
-- several rows for each run, so that few statements wait for each other.
CREATE TABLE IF NOT EXISTS kling_queue_size (
    run text NOT NULL,
    part integer NOT NULL,
    waiting bigint NOT NULL,
    taken bigint NOT NULL,
    PRIMARY KEY (run, part)
);
CREATE OR REPLACE FUNCTION kling_resize_queue(of_run text, more bigint, busy bigint) RETURNS void
LANGUAGE sql AS $$
INSERT INTO kling_queue_size AS size VALUES (of_run, pg_backend_pid() % 8, more, busy)
ON CONFLICT (run, part) DO UPDATE SET waiting = size.waiting + more, taken = size.taken + busy
$$;
CREATE OR REPLACE FUNCTION kling_count_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        PERFORM kling_resize_queue(run, count(*) - count(worker), count(worker))
        FROM added WHERE stage <> '{SAVE}' GROUP BY run;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        PERFORM kling_resize_queue(run, count(worker) - count(*), -count(worker))
        FROM removed WHERE stage <> '{SAVE}' GROUP BY run;
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER kling_queue_added AFTER INSERT ON kling_queue REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION kling_count_queue();
CREATE OR REPLACE TRIGGER kling_queue_removed AFTER DELETE ON kling_queue REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION kling_count_queue();
CREATE OR REPLACE TRIGGER kling_queue_moved AFTER UPDATE ON kling_queue
    REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION kling_count_queue();
CREATE TABLE IF NOT EXISTS kling_permits (
    worker bigint NOT NULL REFERENCES kling_workers ON DELETE CASCADE,
    run text NOT NULL,
    key text NOT NULL,
    account text NOT NULL,
    images integer NOT NULL,
    PRIMARY KEY (run, key, worker)
);
-- Release the permits of some jobs, and give permits to the first of the jobs that wait: return how many get
-- theirs, and NULL where the worker's lease has ended. Then notify the worker whose turn is next.
CREATE OR REPLACE FUNCTION kling_permits(me bigint, of_run text, of_account text, lim integer,
    released text[], keys text[], numbers integer[], waited double precision[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz; used integer; own integer; granted integer := 0; following record;
    late timestamptz := clock_timestamp() - make_interval(secs => {STARVATION_TIMEOUT});
    awake timestamptz := clock_timestamp() - make_interval(secs => {ASKING_TIMEOUT});
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('kling_permits ' || of_account, 0));
    PERFORM FROM kling_workers WHERE id = me FOR UPDATE;
    IF NOT FOUND THEN RETURN NULL; END IF;
    DELETE FROM kling_permits WHERE worker = me AND run = of_run AND key = ANY(released);
    SELECT coalesce(sum(images), 0) INTO used FROM kling_permits WHERE account = of_account;
    SELECT used + coalesce(sum({IMAGES}), 0) INTO used FROM kling_jobs AS job WHERE {_COUNTS}
        AND NOT EXISTS (SELECT FROM kling_permits AS held WHERE held.run = job.run AND held.key = job.key);
    FOR place IN 1 .. cardinality(keys) LOOP
        since := clock_timestamp() - make_interval(secs => waited[place]);
        IF NOT EXISTS (SELECT FROM kling_permits
            WHERE worker = me AND run = of_run AND key = keys[place]) THEN
            -- A job of another worker that has waited long is served first, for as long as that worker asks.
            EXIT WHEN EXISTS (SELECT FROM kling_workers WHERE account = of_account AND id <> me
                AND waiting_since < least(since, late) AND asked_at > awake);
            -- Its own task, which an earlier worker has left, does not count beside its permit.
            SELECT coalesce(sum({IMAGES}), 0) INTO own FROM kling_jobs AS job WHERE {_COUNTS}
                AND run = of_run AND key = keys[place]
                AND NOT EXISTS (SELECT FROM kling_permits AS held
                    WHERE held.run = job.run AND held.key = job.key);
            EXIT WHEN used - own + numbers[place] > lim;
            INSERT INTO kling_permits VALUES (me, of_run, keys[place], of_account, numbers[place]);
            used := used - own + numbers[place];
        END IF;  -- else this statement is repeated
        granted := granted + 1;
        since := NULL;
    END LOOP;
    UPDATE kling_workers SET waiting_since = since, waiting_for = numbers[granted + 1],
        asked_at = clock_timestamp() WHERE id = me;
    SELECT id, waiting_for INTO following FROM kling_workers WHERE account = of_account AND id <> me
        AND asked_at > awake AND (waiting_since < late OR used + waiting_for <= lim)
    ORDER BY (waiting_since < late) DESC, waiting_since LIMIT 1;
    IF used + following.waiting_for <= lim THEN
        PERFORM pg_notify('{PERMIT_CHANNEL}', following.id::text);
    END IF;
    RETURN granted;
END $$;
-- Put jobs back into the queue, in the stage that their state asks for.
CREATE OR REPLACE FUNCTION kling_requeue(ids bigint[], delay double precision, charge integer, saving boolean)
RETURNS void LANGUAGE sql AS $$
UPDATE kling_queue AS job SET worker = NULL, attempts = attempts + charge,
    due_at = CASE WHEN delay > 0 THEN clock_timestamp() + make_interval(secs => delay) END,
    stage = CASE
        WHEN saving OR stage = '{SAVE}' THEN '{SAVE}'
        WHEN EXISTS (SELECT FROM kling_deaths AS dead WHERE dead.run = job.run AND dead.key = job.key
            AND deaths = {MAX_DEATHS}) THEN '{ALONE}'
        WHEN EXISTS (SELECT FROM kling_deaths AS dead WHERE dead.run = job.run AND dead.key = job.key
            AND deaths > {MAX_DEATHS}) THEN '{FOLLOW}'
        WHEN EXISTS (SELECT FROM kling_jobs AS sent WHERE sent.run = job.run AND sent.key = job.key AND latest
            AND {AT_SERVICE}) THEN '{FOLLOW}'
        ELSE '{NEW}' END
WHERE id = ANY(ids) AND worker IS NOT NULL;
SELECT {NOTIFY_JOBS.replace("%s", "run")} FROM kling_queue WHERE id = ANY(ids) AND delay <= 0 GROUP BY run
$$;
-- Take up to n new jobs, and up to m of the other stages. Right after many insertions the planner has no
-- statistics, and would sort the whole queue.
CREATE OR REPLACE FUNCTION kling_take(me bigint, of_run text, n integer, others text[], m integer)
RETURNS SETOF kling_queue LANGUAGE plpgsql SET enable_sort TO off SET enable_bitmapscan TO off AS $$
DECLARE taken bigint[] := '{{}}'; place text; room integer;
BEGIN
    IF NOT EXISTS (SELECT FROM kling_workers WHERE id = me) THEN RETURN; END IF;
    FOREACH place IN ARRAY others || '{NEW}'::text LOOP
        room := CASE place WHEN '{NEW}' THEN n ELSE m - cardinality(taken) END;
        CONTINUE WHEN room <= 0;
        taken := taken || ARRAY(SELECT id FROM kling_queue WHERE worker IS NULL AND run = of_run
            AND stage = place AND (due_at IS NULL OR due_at <= clock_timestamp())
            ORDER BY priority DESC, id LIMIT room FOR UPDATE SKIP LOCKED);
    END LOOP;
    IF taken <> '{{}}' THEN
        RETURN QUERY UPDATE kling_queue SET worker = me WHERE id = ANY(taken) RETURNING *;
    END IF;
END $$;
-- Put the jobs in ids back, and those of workers that are gone. With bury, delete workers whose leases have
-- ended first, and count a death for their jobs in work: neither waiting for a permit, nor with a task that
-- only had to be followed.
CREATE OR REPLACE FUNCTION kling_requeue_stalled(me bigint, of_run text, ids bigint[], bury boolean)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE dead bigint[] := '{{}}'; stalled bigint[];
BEGIN
    IF bury THEN
        dead := ARRAY(SELECT id FROM kling_workers WHERE id <> me AND lease_until < clock_timestamp()
            ORDER BY id FOR UPDATE SKIP LOCKED);
    END IF;
    stalled := ARRAY(SELECT id FROM kling_queue AS job WHERE worker = ANY(dead)
        OR (run = of_run AND worker IS NOT NULL AND (id = ANY(ids)
            OR NOT EXISTS (SELECT FROM kling_workers AS other WHERE other.id = job.worker)))
        FOR UPDATE OF job SKIP LOCKED);
    INSERT INTO kling_deaths
    SELECT DISTINCT job.run, job.key, 1 FROM kling_queue AS job JOIN kling_workers AS gone ON gone.id = worker
    WHERE job.id = ANY(stalled) AND gone.id = ANY(dead)
        AND (NOT exact OR stage <> '{NEW}' OR EXISTS (SELECT FROM kling_permits AS permit
            WHERE permit.worker = gone.id AND permit.run = job.run AND permit.key = job.key))
        AND NOT EXISTS (SELECT FROM kling_jobs AS sent WHERE sent.run = job.run AND sent.key = job.key
            AND latest AND state = 'submitted')
    ON CONFLICT (run, key) DO UPDATE SET deaths = kling_deaths.deaths + 1;
    IF stalled <> '{{}}' THEN PERFORM kling_requeue(stalled, 0, 0, false); END IF;
    DELETE FROM kling_workers WHERE id = ANY(dead);
    RETURN cardinality(stalled);
END $$;
-- Renew the lease, requeue what has stalled, and tell the worker what it has to know. There is no row where
-- the lease has ended. A job that the database assigns to the worker, but that it does not run, is idle.
-- While the database was away no worker could send heartbeats. So a worker deletes others only when it has
-- sent its own in time for as long as a lease lasts.
CREATE OR REPLACE FUNCTION kling_beat(me bigint, of_run text, seconds double precision, running bigint[],
    lost bigint[], OUT version integer, OUT requeued bigint, OUT idle bigint[], OUT due boolean,
    OUT runs_alone boolean, OUT orphans text[]) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    self kling_workers;
    lease interval := make_interval(secs => seconds);
    now timestamptz := clock_timestamp();
BEGIN
    UPDATE kling_workers SET lease_until = now + lease, seen_at = now, asked_at = now,
        steady_since = CASE WHEN seen_at < now - lease * 2 / 3 THEN now ELSE steady_since END
    WHERE id = me RETURNING * INTO self;
    IF NOT FOUND THEN RETURN; END IF;
    version := (SELECT max(schema.version) FROM kling_schema AS schema);
    idle := ARRAY(SELECT id FROM kling_queue WHERE worker = me AND id <> ALL(running));
    requeued := kling_requeue_stalled(me, of_run,
        ARRAY(SELECT unnest(idle) INTERSECT SELECT unnest(lost)), now - self.steady_since >= lease);
    due := EXISTS (SELECT FROM kling_queue WHERE run = of_run AND stage IN ('{FOLLOW}', '{SAVE}')
        AND worker IS NULL AND (due_at IS NULL OR due_at <= clock_timestamp()));
    -- One worker of the run, the oldest, so that the others go on with everything else.
    runs_alone := EXISTS (SELECT FROM kling_queue WHERE run = of_run AND stage = '{ALONE}' AND worker IS NULL
            AND (due_at IS NULL OR due_at <= clock_timestamp()))
        AND (self.alone OR NOT EXISTS (SELECT FROM kling_workers AS other
            WHERE other.run = of_run AND (other.alone OR id < me) AND lease_until > clock_timestamp()));
    -- Tasks that count, but whose run has no worker to follow them: the account's oldest worker gets them.
    orphans := ARRAY(SELECT ARRAY[external_task_id, task_id] FROM kling_jobs AS job
        WHERE self.exact AND {_COUNTS.replace("of_account", "self.account")} AND state = 'submitted'
            AND run <> of_run AND NOT EXISTS (SELECT FROM kling_workers AS worker WHERE worker.run = job.run)
            AND me = (SELECT min(id) FROM kling_workers WHERE account = self.account)
        LIMIT 500);
    RETURN NEXT;
END $$;
"""  # noqa: S608 - built of constants
