-- Times are nanoseconds of the store's clock, which is roughly the Unix time: see the table clock.
-- For display, use datetime(heartbeat_at / 1000000000, 'unixepoch').
CREATE TABLE workers (
    worker_id        TEXT PRIMARY KEY,
    incarnation      INTEGER NOT NULL,
    worker_type      TEXT NOT NULL,
    worker_group     TEXT NOT NULL,
    interval_ns      INTEGER NOT NULL,
    -- NULL: the limits of the judging program apply.
    stale_after_ns   INTEGER,
    stall_after_ns   INTEGER,
    startup_grace_ns INTEGER,
    beats_only       INTEGER NOT NULL,
    metadata         TEXT NOT NULL,
    restarts         INTEGER NOT NULL,
    -- NULL: the process is not known.
    pid              INTEGER,
    process_started  INTEGER,
    hostname         TEXT,
    boot_id          TEXT,
    pid_namespace    INTEGER,
    -- The state that its process reported last: active, idle, processing, stalled ..
    status           TEXT NOT NULL,
    reason           TEXT,
    registered_at    INTEGER NOT NULL,
    heartbeat_at     INTEGER,
    progress_at      INTEGER,
    run_id           TEXT,
    task             TEXT,
    steps_done       INTEGER,
    steps_total      INTEGER,
    beats            INTEGER NOT NULL,
    -- The call stack of its thread, a line a call, while it is unwell.
    stack            TEXT,
    -- NULL: it has not ended.
    ended_at         INTEGER,
    stopped          INTEGER,
    ending_cause     TEXT,
    ending_detail    TEXT,
    ending_location  TEXT,
    -- Attempts to claim a run that are never granted, as JSON.
    withdrawn        TEXT,
    -- The death of an earlier incarnation: its cause, detail, location, run and task, as JSON.
    last_death_at    INTEGER,
    last_death       TEXT,
    task_deadline_ns INTEGER,
    progress_after_ns INTEGER,
    -- Where it last reported, as src/jobs.rs:42.
    last_location    TEXT,
    -- Absurd values are refused at the door, whichever program writes them.
    CONSTRAINT limits_are_0_to_100_years CHECK (
        interval_ns BETWEEN 0 AND 3153600000000000000
        AND (stale_after_ns IS NULL OR stale_after_ns BETWEEN 0 AND 3153600000000000000)
        AND (stall_after_ns IS NULL OR stall_after_ns BETWEEN 0 AND 3153600000000000000)
        AND (startup_grace_ns IS NULL OR startup_grace_ns BETWEEN 0 AND 3153600000000000000)),
    CONSTRAINT times_are_integers CHECK (typeof(registered_at) = 'integer'
        AND typeof(heartbeat_at) IN ('integer', 'null') AND typeof(progress_at) IN ('integer', 'null')
        AND typeof(ended_at) IN ('integer', 'null'))
) WITHOUT ROWID;
CREATE INDEX workers_living ON workers (worker_id) WHERE ended_at IS NULL;
CREATE INDEX workers_by_group ON workers (worker_group);

CREATE TABLE leases (
    run_id      TEXT PRIMARY KEY,
    worker_id   TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    fence       INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    -- The attempt that it was granted to.
    attempt     INTEGER
) WITHOUT ROWID;
CREATE INDEX leases_by_worker ON leases (worker_id);
CREATE INDEX leases_by_expiry ON leases (expires_at);

-- The last incarnation or fence that was given. The first write of each process that opens the file
-- raises it to the Unix time in microseconds, so that a file that replaces a lost one gives higher numbers.
CREATE TABLE numbers (last INTEGER NOT NULL);
INSERT INTO numbers VALUES (0);

-- The store's time is the time since this boot plus the offset, so that setting the wall clock
-- makes no worker stale and ends no lease.
CREATE TABLE clock (boot_id TEXT NOT NULL, offset_ns INTEGER NOT NULL);
INSERT INTO clock VALUES ('', 0);
