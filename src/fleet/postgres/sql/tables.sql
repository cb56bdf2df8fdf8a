-- Heartbeats are heap-only updates, so the table does not grow: each page has room for the next
-- version of its rows, and no index covers a column that a heartbeat writes.
CREATE TABLE IF NOT EXISTS @schema@.worker_heartbeats (
    -- Ordered by bytes, whatever the locale of the database.
    worker_id text COLLATE "C" PRIMARY KEY,
    worker_type text NOT NULL,
    worker_group text NOT NULL DEFAULT 'local',
    -- Higher with every registration; writes of older incarnations are refused.
    incarnation bigint NOT NULL,
    -- The state that its process reported last, or how it ended.
    status text NOT NULL DEFAULT 'starting' CHECK (status IN (
        'starting', 'never_started', 'idle', 'active', 'processing', 'stalled', 'overdue', 'stale',
        'unobserved', 'stopping', 'stopped', 'dead')),
    -- A worker is judged by these: they come first, because a row is read up to the last column that
    -- is asked for.
    started_at timestamptz NOT NULL DEFAULT now(),
    last_heartbeat_at timestamptz,
    ended_at timestamptz,
    -- The worker's own limits. If stale_after is NULL, the limits of the judging program apply.
    stale_after interval,
    startup_grace interval,
    stall_after interval,
    heartbeat_interval interval NOT NULL DEFAULT '30 seconds',
    beats_only boolean NOT NULL DEFAULT false,
    reason text,
    last_progress_at timestamptz,
    -- For display only: the table of leases decides which worker holds a run.
    current_run_id text,
    lease_expires_at timestamptz,
    current_task text,
    progress_done bigint,
    progress_total bigint,
    beats bigint NOT NULL DEFAULT 0,
    restarts bigint NOT NULL DEFAULT 0,
    -- The worker's process.
    hostname text,
    pid bigint,
    process_started bigint,
    boot_id text,
    pid_namespace bigint,
    -- The session of that process; NULL if another process forwards its heartbeats.
    session_id bigint,
    -- Causes: stop, drop, completed, SIGTERM .. if stopped; panicked, failed, exited, killed .. if dead.
    ended_cause text,
    ended_detail text,
    -- File, line and column of a panic.
    ended_location text,
    -- The status before the end, or before the last heartbeat.
    last_status text,
    metadata jsonb NOT NULL DEFAULT '{}',
    -- Attempts to claim a run that are never granted, the latest last.
    withdrawn bigint[],
    -- The death of an earlier life of this worker, kept through registrations.
    last_death_at timestamptz,
    last_death_cause text,
    last_death_detail text,
    last_death_location text,
    last_death_run_id text,
    last_death_task text,
    task_deadline interval,
    progress_after interval,
    -- Where the worker last reported, as src/jobs.rs:42.
    last_location text,
    -- The call stack of its thread, a line a call, while it is unwell.
    stack text,
    CHECK ((status IN ('stopped', 'dead')) = (ended_at IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.5);

-- For schemas of versions 1 to 13.
ALTER TABLE @schema@.worker_heartbeats ADD COLUMN IF NOT EXISTS ended_location text;
ALTER TABLE @schema@.worker_heartbeats ADD COLUMN IF NOT EXISTS withdrawn bigint[],
    ADD COLUMN IF NOT EXISTS last_death_at timestamptz,
    ADD COLUMN IF NOT EXISTS last_death_cause text,
    ADD COLUMN IF NOT EXISTS last_death_detail text,
    ADD COLUMN IF NOT EXISTS last_death_location text,
    ADD COLUMN IF NOT EXISTS last_death_run_id text,
    ADD COLUMN IF NOT EXISTS last_death_task text,
    ADD COLUMN IF NOT EXISTS task_deadline interval,
    ADD COLUMN IF NOT EXISTS progress_after interval,
    ADD COLUMN IF NOT EXISTS last_location text,
    ADD COLUMN IF NOT EXISTS stack text;
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = 'worker_heartbeats_status_check'
            AND c.conrelid = '@schema@.worker_heartbeats'::regclass
            AND pg_get_constraintdef(c.oid) LIKE '%overdue%') THEN
        ALTER TABLE @schema@.worker_heartbeats
            DROP CONSTRAINT IF EXISTS worker_heartbeats_status_check,
            ADD CONSTRAINT worker_heartbeats_status_check CHECK (status IN (
                'starting', 'never_started', 'idle', 'active', 'processing', 'stalled', 'overdue',
                'stale', 'unobserved', 'stopping', 'stopped', 'dead')) NOT VALID;
    END IF;
END $$;

CREATE INDEX IF NOT EXISTS worker_heartbeats_group ON @schema@.worker_heartbeats (worker_group);
-- Whether a living worker replaces a dead one, or keeps its group online.
CREATE INDEX IF NOT EXISTS worker_heartbeats_living
    ON @schema@.worker_heartbeats (worker_group, worker_type, started_at) WHERE ended_at IS NULL;
-- For those that are dead, and those whose retention is over.
CREATE INDEX IF NOT EXISTS worker_heartbeats_ended
    ON @schema@.worker_heartbeats (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS worker_heartbeats_process
    ON @schema@.worker_heartbeats (boot_id, pid_namespace, pid, process_started) WHERE ended_at IS NULL;
-- Of versions 1 to 13.
DROP INDEX IF EXISTS @schema@.worker_heartbeats_host;
CREATE INDEX IF NOT EXISTS worker_heartbeats_session
    ON @schema@.worker_heartbeats (session_id) WHERE ended_at IS NULL;

CREATE TABLE IF NOT EXISTS @schema@.leases (
    run_id text COLLATE "C" PRIMARY KEY,
    worker_id text COLLATE "C" NOT NULL,
    incarnation bigint NOT NULL,
    -- Grows with every claim. A worker passes it along with every write, so that the resource can
    -- refuse late writers.
    fence bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The attempt that it was granted to.
    attempt bigint
) WITH (fillfactor = 70);

-- For schemas of versions 1 to 13.
ALTER TABLE @schema@.leases ADD COLUMN IF NOT EXISTS attempt bigint;

CREATE INDEX IF NOT EXISTS leases_worker ON @schema@.leases (worker_id);

-- Heartbeats that arrived while another transaction locked the worker's row, or the table: proof that
-- the worker is not silent, until its next heartbeat is written to its row. Rows are only added and
-- deleted, and nothing is unique, so that no writer waits.
CREATE TABLE IF NOT EXISTS @schema@.deferred_heartbeats (
    worker_id text COLLATE "C" NOT NULL,
    incarnation bigint NOT NULL,
    heartbeat_at timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS deferred_heartbeats_worker ON @schema@.deferred_heartbeats (worker_id);

-- How many workers of each type have ended in which way: the sum of the rows. Rows are only added and
-- deleted, and nothing is unique, so that no writer waits; a sweep sums them up.
CREATE TABLE IF NOT EXISTS @schema@.endings (
    worker_type text NOT NULL,
    how text NOT NULL,
    total bigint NOT NULL
);

-- Sessions of processes that have workers. If a session is missing from pg_stat_activity, and its
-- workers have not come back through another one, its process is gone.
CREATE TABLE IF NOT EXISTS @schema@.sessions (
    session_id bigint PRIMARY KEY,
    backend_pid integer NOT NULL,
    backend_start timestamptz NOT NULL,
    -- The server's life in which the session was opened. The end of a session in another life of
    -- the server proves nothing.
    server_epoch text NOT NULL,
    -- When a sweep first and last found the session missing, and how much of the time in between
    -- counts as absence.
    lost_at timestamptz,
    looked_at timestamptz,
    lost_for interval NOT NULL DEFAULT '0'
);

-- Absurd values are refused at the door. Rows that hold some are brought within the bounds first: each
-- later write to them would be refused. In days: intervals are compared as if a month had 30 of them.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = 'limits_are_0_to_100_years'
            AND c.conrelid = '@schema@.worker_heartbeats'::regclass) THEN
        UPDATE @schema@.worker_heartbeats w SET
            heartbeat_interval = least(greatest(w.heartbeat_interval, '0'), '36525 days'),
            stale_after = CASE WHEN w.stale_after IS NOT NULL
                THEN least(greatest(w.stale_after, '0'), '36525 days') END,
            stall_after = CASE WHEN w.stall_after IS NOT NULL
                THEN least(greatest(w.stall_after, '0'), '36525 days') END,
            startup_grace = CASE WHEN w.startup_grace IS NOT NULL
                THEN least(greatest(w.startup_grace, '0'), '36525 days') END
            WHERE NOT (w.heartbeat_interval BETWEEN '0' AND '36525 days'
                AND coalesce(w.stale_after, '0') BETWEEN '0' AND '36525 days'
                AND coalesce(w.stall_after, '0') BETWEEN '0' AND '36525 days'
                AND coalesce(w.startup_grace, '0') BETWEEN '0' AND '36525 days');
        ALTER TABLE @schema@.worker_heartbeats ADD CONSTRAINT limits_are_0_to_100_years CHECK (
            heartbeat_interval BETWEEN '0' AND '36525 days' AND stale_after BETWEEN '0' AND '36525 days'
            AND stall_after BETWEEN '0' AND '36525 days' AND startup_grace BETWEEN '0' AND '36525 days'
            AND task_deadline BETWEEN '0' AND '36525 days'
            AND progress_after BETWEEN '0' AND '36525 days') NOT VALID;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = 'times_are_1900_to_2500'
            AND c.conrelid = '@schema@.worker_heartbeats'::regclass) THEN
        UPDATE @schema@.worker_heartbeats w SET
            started_at = CASE WHEN w.started_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
                THEN w.started_at ELSE now() END,
            last_heartbeat_at = CASE WHEN w.last_heartbeat_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
                THEN w.last_heartbeat_at END,
            last_progress_at = CASE WHEN w.last_progress_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
                THEN w.last_progress_at END,
            ended_at = CASE WHEN w.ended_at IS NOT NULL
                THEN CASE WHEN w.ended_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
                    THEN w.ended_at ELSE now() END END
            WHERE NOT (w.started_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
                AND coalesce(w.last_heartbeat_at, now()) BETWEEN '1900-01-01Z' AND '2500-01-01Z'
                AND coalesce(w.last_progress_at, now()) BETWEEN '1900-01-01Z' AND '2500-01-01Z'
                AND coalesce(w.ended_at, now()) BETWEEN '1900-01-01Z' AND '2500-01-01Z');
        ALTER TABLE @schema@.worker_heartbeats ADD CONSTRAINT times_are_1900_to_2500 CHECK (
            started_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
            AND last_heartbeat_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
            AND last_progress_at BETWEEN '1900-01-01Z' AND '2500-01-01Z'
            AND ended_at BETWEEN '1900-01-01Z' AND '2500-01-01Z') NOT VALID;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = 'times_are_1900_to_2500'
            AND c.conrelid = '@schema@.leases'::regclass) THEN
        UPDATE @schema@.leases l SET expires_at = now()
            WHERE NOT l.expires_at BETWEEN '1900-01-01Z' AND '2500-01-01Z';
        ALTER TABLE @schema@.leases ADD CONSTRAINT times_are_1900_to_2500 CHECK (
            expires_at BETWEEN '1900-01-01Z' AND '2500-01-01Z') NOT VALID;
    END IF;
END $$;
-- The last sweep of a sweeper, in one row, so that those of other processes need not do the same.
CREATE TABLE IF NOT EXISTS @schema@.last_sweep (
    id integer PRIMARY KEY CHECK (id = 1),
    swept_at timestamptz NOT NULL,
    -- Since when the sweeper had watched.
    watched_since timestamptz NOT NULL,
    threshold interval NOT NULL
);
