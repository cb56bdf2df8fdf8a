-- Every number that tells one life of a worker, or one claim, from those before it. Rows may be
-- purged; numbers are never given twice.
CREATE SEQUENCE IF NOT EXISTS @schema@.numbers AS bigint;

-- Room on each page for the next version of each row, and no index on what a beat writes: so
-- heartbeats are heap-only updates, and the table does not grow.
CREATE TABLE IF NOT EXISTS @schema@.worker_heartbeats (
    -- In the order of its bytes, whatever the locale of the database.
    worker_id text COLLATE "C" PRIMARY KEY,
    worker_type text NOT NULL,
    worker_group text NOT NULL DEFAULT 'local',
    -- Higher with every registration; a write of an older one is refused.
    incarnation bigint NOT NULL,
    -- What its process said last, or how it ended.
    status text NOT NULL DEFAULT 'starting' CHECK (status IN (
        'starting', 'never_started', 'idle', 'active', 'processing', 'stalled', 'stale',
        'unobserved', 'stopping', 'stopped', 'dead')),
    reason text,
    last_heartbeat_at timestamptz,
    last_progress_at timestamptz,
    started_at timestamptz NOT NULL DEFAULT now(),
    -- For people: who holds a run is decided in the table of leases.
    current_run_id text,
    lease_expires_at timestamptz,
    current_task text,
    progress_done bigint,
    progress_total bigint,
    beats bigint NOT NULL DEFAULT 0,
    restarts bigint NOT NULL DEFAULT 0,
    -- Its own limits. Without stale_after, those of whoever judges.
    heartbeat_interval interval NOT NULL DEFAULT '30 seconds',
    stale_after interval,
    stall_after interval,
    startup_grace interval,
    beats_only boolean NOT NULL DEFAULT false,
    -- The process that it runs in.
    hostname text,
    pid bigint,
    process_started bigint,
    boot_id text,
    pid_namespace bigint,
    -- The session that its heartbeats come through, if the end of that tells anything.
    session_id bigint,
    -- stop, drop, completed, SIGTERM ..; panicked, failed, exited, killed, lost ..
    ended_at timestamptz,
    ended_cause text,
    ended_detail text,
    -- Its status before it ended.
    last_status text,
    metadata jsonb NOT NULL DEFAULT '{}',
    CHECK ((status IN ('stopped', 'dead')) = (ended_at IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.5);

CREATE INDEX IF NOT EXISTS worker_heartbeats_group ON @schema@.worker_heartbeats (worker_group);
CREATE INDEX IF NOT EXISTS worker_heartbeats_host
    ON @schema@.worker_heartbeats (boot_id, pid_namespace) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS worker_heartbeats_session
    ON @schema@.worker_heartbeats (session_id) WHERE ended_at IS NULL;

CREATE TABLE IF NOT EXISTS @schema@.leases (
    run_id text COLLATE "C" PRIMARY KEY,
    worker_id text COLLATE "C" NOT NULL,
    incarnation bigint NOT NULL,
    -- Grows with every claim; hand it on with every write to what the run works on.
    fence bigint NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 70);

CREATE INDEX IF NOT EXISTS leases_worker ON @schema@.leases (worker_id);

-- Sessions of processes with workers. One that is gone from pg_stat_activity, and whose workers
-- have not come back through another one, tells that its process is gone.
CREATE TABLE IF NOT EXISTS @schema@.sessions (
    session_id bigint PRIMARY KEY,
    backend_pid integer NOT NULL,
    backend_start timestamptz NOT NULL,
    -- Which life of the server it belongs to. Of sessions of another life nothing is known.
    server_epoch text NOT NULL,
    -- When a sweep looked and did not find it, first and last, and how much of the time between
    -- those is charged.
    lost_at timestamptz,
    looked_at timestamptz,
    lost_for interval NOT NULL DEFAULT '0'
);
