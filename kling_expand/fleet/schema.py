"""The SQL functions of a fleet, for procrastinate's tables and for the permits.

Everything that must be atomic is in one function, so that a worker needs only one statement to call it.
"""

from kling_expand.store.postgres_schema import AT_SERVICE, counted

TASK = "kling_expand.expand"
NEW, FOLLOW, ALONE, SAVE = "", ":follow", ":alone", ":save"  # suffixes of the names of a run's queues
MAX_DEATHS = 3  # deaths of workers that were running a job, after which the job runs alone

JOB_CHANNEL = "procrastinate_queue_v1#"  # prefix of a queue's channel, which announces jobs to take
PERMIT_CHANNEL = "kling_permits"  # announces the number of the worker that may take permits
STARVATION_TIMEOUT = 15.0  # seconds that a worker's first waiter waits before it blocks the other workers
PERMIT_REQUEST_TIMEOUT = (
    10.0  # seconds without a request or a heartbeat after which a worker blocks no others
)
MAX_TASK_AGE = 3600.0  # seconds after its create for which a task counts although no worker follows it

_COUNTS = f"""{AT_SERVICE} AND account = of_account
    AND coalesce(last_post_mark::double precision, last_post_at) > extract(epoch FROM now())
    - {MAX_TASK_AGE}"""
IMAGES = "(split_part(params, chr(10), 1)::json ->> 'n')::integer"  # the second line is the job's note
SCHEMA = f"""
DROP FUNCTION IF EXISTS kling_permits_take, kling_permits_release, kling_permits_join, kling_permits_lock,
    kling_permits_held, kling_permit, kling_requeue, kling_take, kling_requeue_stalled, kling_beat;
-- Version 3 had a table of its own for the queue.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('kling_queue') AND relkind = 'r') THEN
        PERFORM setval(pg_get_serial_sequence('procrastinate_workers', 'id'),
            greatest(own.last_value, other.last_value))
        FROM kling_owners AS own, procrastinate_workers_id_seq AS other;
        INSERT INTO procrastinate_jobs (queue_name, task_name, priority, args, attempts, scheduled_at)
        SELECT 'kling_' || CASE WHEN run ~ '^[A-Za-z0-9_.-]{{1,27}}$' THEN run
                ELSE left(encode(sha256(convert_to(run, 'UTF8')), 'hex'), 26) END
            || CASE stage WHEN 'new' THEN '' ELSE ':' || stage END,
            '{TASK}', priority, payload, attempts, due_at
        FROM kling_queue ORDER BY id;
        DROP TABLE kling_queue, kling_queue_size;
        DROP FUNCTION IF EXISTS kling_count_queue, kling_resize_queue;
    END IF;
END $$;
CREATE INDEX IF NOT EXISTS kling_queue ON procrastinate_jobs (queue_name, priority DESC, id)
    WHERE status = 'todo';
CREATE INDEX IF NOT EXISTS kling_queue_taken ON procrastinate_jobs (queue_name) WHERE status = 'doing';
-- Serves the check of the foreign key when the row of a worker is deleted.
CREATE INDEX IF NOT EXISTS kling_queue_workers ON procrastinate_jobs (worker_id) WHERE worker_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS kling_queue_keys ON procrastinate_jobs ((args ->> 'key'))
    WHERE task_name = '{TASK}' AND status IN ('todo', 'doing');
CREATE TABLE IF NOT EXISTS kling_permits (
    worker bigint NOT NULL REFERENCES kling_workers ON DELETE CASCADE,
    run text NOT NULL,
    key text NOT NULL,
    account text NOT NULL,
    images integer NOT NULL,
    PRIMARY KEY (run, key, worker)
);
-- Release the permits of some jobs, and give permits to the first of the waiting jobs. Return how many got
-- theirs, or NULL if the worker's lease has ended. Also notify the worker whose turn is next.
CREATE OR REPLACE FUNCTION kling_permits(me bigint, of_run text, of_account text, lim integer,
    released text[], keys text[], numbers integer[], waited double precision[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz; used integer; own integer; granted integer := 0; following record;
    late timestamptz := clock_timestamp() - make_interval(secs => {STARVATION_TIMEOUT});
    awake timestamptz := clock_timestamp() - make_interval(secs => {PERMIT_REQUEST_TIMEOUT});
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
            -- A job of another worker that has waited long is served first, while that worker keeps asking.
            EXIT WHEN EXISTS (SELECT FROM kling_workers WHERE account = of_account AND id <> me
                AND waiting_since < least(since, late) AND asked_at > awake);
            -- The job's own task, left by an earlier worker, does not count in addition to its permits.
            SELECT coalesce(sum({IMAGES}), 0) INTO own FROM kling_jobs AS job WHERE {_COUNTS}
                AND run = of_run AND key = keys[place]
                AND NOT EXISTS (SELECT FROM kling_permits AS held
                    WHERE held.run = job.run AND held.key = job.key);
            EXIT WHEN used - own + numbers[place] > lim;
            INSERT INTO kling_permits VALUES (me, of_run, keys[place], of_account, numbers[place]);
            used := used - own + numbers[place];
        END IF;  -- otherwise the statement is a repetition, and the job has its permits
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
-- Requeue jobs, each into the queue that its state requires.
CREATE OR REPLACE FUNCTION kling_requeue(ids bigint[], of_run text, delay double precision, charge integer,
    saving boolean) RETURNS void LANGUAGE sql AS $$
UPDATE procrastinate_jobs AS job SET status = 'todo', worker_id = NULL, attempts = attempts + charge,
    scheduled_at = CASE WHEN delay > 0 THEN clock_timestamp() + make_interval(secs => delay) END,
    queue_name = split_part(queue_name, ':', 1) || CASE
        WHEN saving OR queue_name LIKE '%{SAVE}' THEN '{SAVE}'
        WHEN EXISTS (SELECT FROM kling_deaths WHERE run = of_run AND key = args ->> 'key'
            AND deaths = {MAX_DEATHS}) THEN '{ALONE}'
        WHEN EXISTS (SELECT FROM kling_deaths WHERE run = of_run AND key = args ->> 'key'
            AND deaths > {MAX_DEATHS}) THEN '{FOLLOW}'
        WHEN EXISTS (SELECT FROM kling_jobs WHERE run = of_run AND key = args ->> 'key' AND latest
            AND {AT_SERVICE}) THEN '{FOLLOW}'
        ELSE '{NEW}' END
WHERE id = ANY(ids) AND status = 'doing';
SELECT pg_notify('{JOB_CHANNEL}' || split_part(queue_name, ':', 1),
    json_build_object('type', 'job_inserted', 'job_id', min(id))::text)
FROM procrastinate_jobs WHERE id = ANY(ids) AND delay <= 0 GROUP BY split_part(queue_name, ':', 1)
$$;
-- Take up to n new jobs of a queue, and up to m of the other queues. Sorting is off because, right after many
-- insertions, the planner has no statistics and would sort the whole queue.
CREATE OR REPLACE FUNCTION kling_take(me bigint, of_queue text, n integer, others text[], m integer)
RETURNS SETOF procrastinate_jobs LANGUAGE plpgsql SET enable_sort TO off SET enable_bitmapscan TO off AS $$
DECLARE taken bigint[] := '{{}}'; place text; room integer;
BEGIN
    IF NOT EXISTS (SELECT FROM kling_workers WHERE id = me) THEN RETURN; END IF;
    FOREACH place IN ARRAY others || of_queue LOOP
        room := CASE place WHEN of_queue THEN n ELSE m - cardinality(taken) END;
        CONTINUE WHEN room <= 0;
        taken := taken || ARRAY(SELECT id FROM procrastinate_jobs WHERE status = 'todo'
            AND queue_name = place AND (scheduled_at IS NULL OR scheduled_at <= clock_timestamp())
            ORDER BY priority DESC, id LIMIT room FOR UPDATE SKIP LOCKED);
    END LOOP;
    IF taken <> '{{}}' THEN
        RETURN QUERY UPDATE procrastinate_jobs SET status = 'doing', worker_id = me
        WHERE id = ANY(taken) RETURNING *;
    END IF;
END $$;
-- Requeue the jobs in ids, and those of workers that are gone. With bury, first delete the workers whose
-- leases have ended, and count a death for each job that they were running. This excludes jobs that were
-- waiting for a permit, and jobs with a task that only had to be followed.
CREATE OR REPLACE FUNCTION kling_requeue_stalled(me bigint, of_run text, of_queue text, ids bigint[],
    bury boolean) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE dead bigint[] := '{{}}'; stalled bigint[];
BEGIN
    IF bury THEN
        dead := ARRAY(SELECT id FROM kling_workers WHERE id <> me AND lease_until < clock_timestamp()
            ORDER BY id FOR UPDATE SKIP LOCKED);
    END IF;
    stalled := ARRAY(SELECT id FROM procrastinate_jobs AS job WHERE status = 'doing'
        AND (worker_id = ANY(dead) OR (split_part(queue_name, ':', 1) = of_queue
            AND (id = ANY(ids) OR worker_id IS NULL
                OR NOT EXISTS (SELECT FROM kling_workers AS other WHERE other.id = worker_id))))
        FOR UPDATE OF job SKIP LOCKED);
    IF dead <> '{{}}' OR stalled <> '{{}}' THEN  -- because planning alone takes some milliseconds
        INSERT INTO kling_deaths
        SELECT DISTINCT gone.run, args ->> 'key', 1
        FROM procrastinate_jobs AS job JOIN kling_workers AS gone ON gone.id = worker_id
        WHERE job.id = ANY(stalled) AND gone.id = ANY(dead) AND args ->> 'key' IS NOT NULL
            AND (NOT exact OR queue_name LIKE '%:%' OR EXISTS (SELECT FROM kling_permits AS permit
                WHERE permit.worker = gone.id AND permit.run = gone.run AND permit.key = args ->> 'key'))
            AND NOT EXISTS (SELECT FROM kling_jobs AS sent WHERE sent.run = gone.run
                AND sent.key = args ->> 'key' AND latest AND state = 'submitted')
        ON CONFLICT (run, key) DO UPDATE SET deaths = kling_deaths.deaths + 1;
        PERFORM kling_requeue(array_agg(job.id), coalesce(gone.run, of_run), 0, 0, false)
        FROM procrastinate_jobs AS job
        LEFT JOIN kling_workers AS gone ON gone.id = worker_id AND gone.id = ANY(dead)
        WHERE job.id = ANY(stalled) GROUP BY coalesce(gone.run, of_run);
        DELETE FROM kling_workers WHERE id = ANY(dead);
        DELETE FROM procrastinate_workers WHERE id = ANY(dead);
    END IF;
    RETURN cardinality(stalled);
END $$;
-- Renew the lease, requeue stalled jobs, and return what the worker must know, or no row if the lease has
-- ended. A job that the database assigns to the worker, but that it is not running, is idle. While the
-- database is down, no worker can send heartbeats. So a worker deletes others only after it has sent its own
-- heartbeats in time for the length of a lease.
CREATE OR REPLACE FUNCTION kling_beat(me bigint, of_run text, of_queue text, seconds double precision,
    running bigint[], lost bigint[], OUT version integer, OUT requeued bigint, OUT idle bigint[],
    OUT due boolean, OUT runs_alone boolean, OUT orphans text[]) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    self kling_workers;
    lease interval := make_interval(secs => seconds);
    now timestamptz := clock_timestamp();
BEGIN
    UPDATE kling_workers SET lease_until = now + lease, seen_at = now, asked_at = now,
        steady_since = CASE WHEN seen_at < now - lease * 2 / 3 THEN now ELSE steady_since END
    WHERE id = me RETURNING * INTO self;
    IF NOT FOUND THEN RETURN; END IF;
    PERFORM procrastinate_update_heartbeat_v1(me);
    version := (SELECT max(schema.version) FROM kling_schema AS schema);
    idle := ARRAY(SELECT id FROM procrastinate_jobs
        WHERE worker_id = me AND status = 'doing' AND id <> ALL(running));
    requeued := kling_requeue_stalled(me, of_run, of_queue,
        ARRAY(SELECT unnest(idle) INTERSECT SELECT unnest(lost)), now - self.steady_since >= lease);
    due := EXISTS (SELECT FROM procrastinate_jobs WHERE status = 'todo'
        AND queue_name IN (of_queue || '{FOLLOW}', of_queue || '{SAVE}')
        AND (scheduled_at IS NULL OR scheduled_at <= clock_timestamp()));
    -- Only the oldest worker of the run does this, so that the others continue with all other jobs.
    runs_alone := EXISTS (SELECT FROM procrastinate_jobs WHERE status = 'todo'
            AND queue_name = of_queue || '{ALONE}'
            AND (scheduled_at IS NULL OR scheduled_at <= clock_timestamp()))
        AND (self.alone OR NOT EXISTS (SELECT FROM kling_workers AS other
            WHERE other.run = of_run AND (other.alone OR id < me) AND lease_until > clock_timestamp()));
    -- Tasks that count but whose run has no worker to follow them. The account's oldest worker gets them.
    orphans := ARRAY(SELECT ARRAY[external_task_id, task_id] FROM kling_jobs AS job
        WHERE self.exact AND {_COUNTS.replace("of_account", "self.account")} AND state = 'submitted'
            AND run <> of_run AND NOT EXISTS (SELECT FROM kling_workers AS worker WHERE worker.run = job.run)
            AND me = (SELECT min(id) FROM kling_workers WHERE account = self.account)
        LIMIT 500);
    RETURN NEXT;
END $$;
-- Triggers count only the waiting jobs. The jobs that workers have are few, and are counted when read.
{
    counted(
        "queue",
        "procrastinate_jobs",
        "split_part(queue_name, ':', 1)",
        "queue_name",
        where="status = 'todo' AND starts_with(queue_name, 'kling_')",
    )
}
"""  # noqa: S608 - built of constants
