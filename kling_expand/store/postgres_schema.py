"""The tables and functions of the job store in PostgreSQL, and the counts of their rows.

Counting a history or a queue of a million rows would take seconds. So triggers add the changes of each
statement to `kling_counts`, in the same transaction. Every change is a new row, so no statement waits for
another. About one change in 32 replaces the rows of its scope with their sums, so a read has few rows to add.
`fleet init` counts everything anew.
"""

NUMBER_BATCH = 10_000  # outcomes that one read numbers at most, so that its cost is bounded
SUM_UP_INTERVAL = 32  # changes of one scope, on average, until their counts are summed up
VERSION = 5  # of all tables of a fleet; version 1 had no table for the version

# Whether the task of a row is, or may be, at the service.
AT_SERVICE = "(state = 'submitted' OR (state IN ('intent', 'unknown') AND last_post_at IS NOT NULL))"
# Triggers count the final states. Few jobs are in the other states, so these are counted at each read.
ENDED, OPEN = "('rejected', 'succeeded', 'done', 'failed')", "('intent', 'unknown', 'submitted')"


def counted(kind: str, table: str, group: str, what: str, *, where: str = "true", units: str = "0") -> str:
    """Return a script that counts the rows of *table*, now and at each later change.

    Rows that match *where* are counted by scope (*kind* and *group*) and by *what*, and their *units* are
    summed. The script must run in a transaction, so that the count and the triggers start together.
    """

    def rows(source: str, sign: str) -> str:
        return (
            f"SELECT '{kind} ' || {group} AS scope, {what} AS what, {sign}1 AS number,"  # noqa: S608 - no user input
            f" {sign}coalesce({units}, 0) AS units FROM {source} WHERE {where}"
        )

    def total(*sources: str) -> str:
        return (
            "INSERT INTO kling_counts SELECT scope, what, sum(number), sum(units)"  # noqa: S608 - no user input
            f" FROM ({' UNION ALL '.join(sources)}) AS changed"
            " GROUP BY scope, what HAVING sum(number) <> 0 OR sum(units) <> 0;"
        )

    added, removed = rows("new_rows", "+"), rows("old_rows", "-")
    tables = {
        "INSERT": "NEW TABLE AS new_rows",
        "UPDATE": "NEW TABLE AS new_rows OLD TABLE AS old_rows",
        "DELETE": "OLD TABLE AS old_rows",
    }
    triggers = "".join(
        f"DROP TRIGGER IF EXISTS kling_count_{event} ON {table};"
        f"CREATE TRIGGER kling_count_{event} AFTER {event} ON {table} REFERENCING {names}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION kling_count_{table}();\n"
        for event, names in tables.items()
    )
    return f"""
CREATE OR REPLACE FUNCTION kling_count_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN {total(added)}
    ELSIF TG_OP = 'DELETE' THEN {total(removed)}
    ELSE {total(added, removed)}
    END IF;
    RETURN NULL;
END $$;
{triggers}
DELETE FROM kling_counts WHERE starts_with(scope, '{kind} ');
{total(rows(table, "+"))}
"""  # noqa: S608 - no user input


SCHEMA = f"""
CREATE SEQUENCE IF NOT EXISTS kling_owners;
CREATE SEQUENCE IF NOT EXISTS kling_outcome_numbers;
CREATE TABLE IF NOT EXISTS kling_jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run text NOT NULL,
    key text NOT NULL,
    external_task_id text NOT NULL UNIQUE,
    params_hash text NOT NULL,
    attempt integer NOT NULL,
    latest boolean NOT NULL DEFAULT true,
    state text NOT NULL,
    task_id text,
    last_post_at double precision,
    snapshot text,
    error text,
    files bytea,
    source bytea,
    params text NOT NULL,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    owner bigint NOT NULL,  -- the worker that may send the job
    units numeric,          -- the cost, once the service has reported it
    UNIQUE (run, key, params_hash, attempt)
);
ALTER TABLE kling_jobs ADD COLUMN IF NOT EXISTS last_post_mark text;  -- by the clock of the database
ALTER TABLE kling_jobs ADD COLUMN IF NOT EXISTS account text;         -- whose slots the job takes
ALTER TABLE kling_jobs DROP COLUMN IF EXISTS holder;
CREATE INDEX IF NOT EXISTS kling_jobs_by_state ON kling_jobs (run, state, id) WHERE latest;
-- Jobs that are, or may be, at the service now: few rows, however long the table is.
CREATE INDEX IF NOT EXISTS kling_jobs_out ON kling_jobs (id) WHERE {AT_SERVICE};
CREATE TABLE IF NOT EXISTS kling_workers (
    id bigint PRIMARY KEY,   -- in the queue, and as the owner of jobs
    run text NOT NULL,
    account text NOT NULL,
    exact boolean NOT NULL,  -- whether its jobs need permits
    alone boolean NOT NULL,  -- whether it takes only jobs that must run alone
    lease_until timestamptz NOT NULL,
    waiting_since timestamptz,  -- when the first of its waiting jobs began to wait for permits
    asked_at timestamptz        -- when the worker last asked for permits
);
ALTER TABLE kling_workers ADD COLUMN IF NOT EXISTS waiting_for integer;  -- pictures of that job
ALTER TABLE kling_workers ADD COLUMN IF NOT EXISTS seen_at timestamptz DEFAULT clock_timestamp();
ALTER TABLE kling_workers ADD COLUMN IF NOT EXISTS steady_since timestamptz DEFAULT clock_timestamp();
CREATE TABLE IF NOT EXISTS kling_deaths (
    run text NOT NULL,
    key text NOT NULL,
    deaths integer NOT NULL,  -- workers that died while they executed the job
    PRIMARY KEY (run, key)
);
CREATE TABLE IF NOT EXISTS kling_outcomes (
    run text NOT NULL,
    key text NOT NULL,
    status text NOT NULL,
    external_task_id text,
    task_id text,
    urls text[] NOT NULL,
    files text[] NOT NULL,
    units numeric,
    error text,
    ended_at double precision NOT NULL,
    PRIMARY KEY (run, key)
);
ALTER TABLE kling_outcomes ADD COLUMN IF NOT EXISTS saved boolean NOT NULL DEFAULT true;
ALTER TABLE kling_outcomes ADD COLUMN IF NOT EXISTS number bigint;  -- set when it is first read
ALTER TABLE kling_outcomes DROP COLUMN IF EXISTS seen;
CREATE INDEX IF NOT EXISTS kling_outcomes_by_number ON kling_outcomes (run, number);
CREATE INDEX IF NOT EXISTS kling_outcomes_by_end ON kling_outcomes (run, ended_at);
CREATE TABLE IF NOT EXISTS kling_counts (
    scope text NOT NULL,
    what text NOT NULL,
    number bigint NOT NULL,  -- rows added, negative for rows removed
    units numeric NOT NULL
);
CREATE INDEX IF NOT EXISTS kling_counts_by_scope ON kling_counts (scope);
-- Replace the rows of a scope with their sums, unless another transaction is doing so. Until that commits,
-- readers see the old rows and not the sums. A transaction with an older snapshot would fail, so it leaves
-- this to others.
CREATE OR REPLACE FUNCTION kling_sum_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed'
        AND pg_try_advisory_xact_lock(hashtextextended('kling_counts ' || NEW.scope, 0)) THEN
        WITH replaced AS (DELETE FROM kling_counts WHERE scope = NEW.scope RETURNING *)
        INSERT INTO kling_counts SELECT scope, what, sum(number), sum(units) FROM replaced
        GROUP BY scope, what HAVING sum(number) <> 0 OR sum(units) <> 0;
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS kling_sum_up ON kling_counts;
CREATE TRIGGER kling_sum_up AFTER INSERT ON kling_counts FOR EACH ROW
    WHEN (random() * {SUM_UP_INTERVAL} < 1) EXECUTE FUNCTION kling_sum_up();
-- The reader numbers what is committed, so an outcome that is committed later gets a higher number.
CREATE OR REPLACE FUNCTION kling_read_outcomes(of_run text, after bigint, page integer)
RETURNS SETOF kling_outcomes LANGUAGE plpgsql
SET enable_sort TO off SET enable_bitmapscan TO off AS $$
BEGIN  -- along the index, which the planner would not choose before the first ANALYZE
    IF page > (SELECT count(*) FROM (
            SELECT FROM kling_outcomes WHERE run = of_run AND number > after LIMIT page) AS numbered)
        AND EXISTS (SELECT FROM kling_outcomes WHERE run = of_run AND number IS NULL) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('kling_outcomes ' || of_run, 0));
        UPDATE kling_outcomes SET number = nextval('kling_outcome_numbers') WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM kling_outcomes WHERE run = of_run AND number IS NULL LIMIT {NUMBER_BATCH}));
    END IF;
    RETURN QUERY
    SELECT * FROM kling_outcomes WHERE run = of_run AND number > after ORDER BY number LIMIT page;
END $$;
-- Insert an attempt. If the job already has this attempt or a later one, return its last attempt with the
-- new owner. A rejected attempt becomes an intent again. No job is returned if the id belongs to another job,
-- or if another worker is inserting the same attempt.
CREATE OR REPLACE FUNCTION kling_claim(of_run text, of_key text, id_of_task text, digest text, try integer,
    photo bytea, values_of text, now double precision, me bigint, OUT job kling_jobs, OUT inserted boolean,
    OUT key_known boolean) LANGUAGE plpgsql AS $$
BEGIN
    key_known := EXISTS (SELECT FROM kling_jobs WHERE run = of_run AND key = of_key);
    INSERT INTO kling_jobs (run, key, external_task_id, params_hash, attempt, source, params, created_at,
        updated_at, owner, state)
    SELECT of_run, of_key, id_of_task, digest, try, photo, values_of, now, now, me, 'intent'
    WHERE NOT key_known OR NOT EXISTS (SELECT FROM kling_jobs
        WHERE run = of_run AND key = of_key AND params_hash = digest AND attempt >= try)
    ON CONFLICT DO NOTHING RETURNING * INTO job;
    inserted := FOUND;
    IF inserted AND key_known THEN
        UPDATE kling_jobs SET latest = false
        WHERE run = of_run AND key = of_key AND params_hash = digest AND attempt < try;
    ELSIF NOT inserted THEN
        UPDATE kling_jobs SET owner = me,
            updated_at = CASE state WHEN 'rejected' THEN now ELSE updated_at END,
            error = CASE state WHEN 'rejected' THEN NULL ELSE error END,
            state = CASE state WHEN 'rejected' THEN 'intent' ELSE state END
        WHERE id = (SELECT id FROM kling_jobs WHERE run = of_run AND key = of_key AND params_hash = digest
            ORDER BY attempt DESC LIMIT 1)
        RETURNING * INTO job;
    END IF;
END $$;
CREATE TABLE IF NOT EXISTS kling_schema (version integer NOT NULL);
{counted("jobs", "kling_jobs", "run", "state", where=f"latest AND state IN {ENDED}", units="units")}
{counted("outcomes", "kling_outcomes", "run", "status")}
"""  # noqa: S608 - no user input
