-- The rules that decide how a worker is judged, as `health::judge` has them in Rust. Views, sweeps
-- and all other queries call these functions. All but the last are single expressions, which the
-- planner inlines: a sweep of a large table calls no function for each row.

-- The limit of workers that have none of their own.
CREATE OR REPLACE FUNCTION @schema@.default_stale_after() RETURNS interval
    LANGUAGE sql IMMUTABLE AS $$ SELECT interval '@default_stale_after@ microseconds' $$;

-- Time since the last heartbeat; before the first one, time since the registration.
CREATE OR REPLACE FUNCTION @schema@.silence(worker @schema@.worker_heartbeats) RETURNS interval
    LANGUAGE sql STABLE AS $$
    SELECT now() - coalesce(worker.last_heartbeat_at, worker.started_at)
$$;

-- The longest silence that is allowed. p_threshold: for workers without limits of their own.
CREATE OR REPLACE FUNCTION @schema@.allowed_silence(
    worker @schema@.worker_heartbeats, p_threshold interval
) RETURNS interval LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN worker.stale_after IS NULL THEN p_threshold
        WHEN worker.last_heartbeat_at IS NULL THEN coalesce(worker.startup_grace, worker.stale_after)
        ELSE worker.stale_after
    END
$$;

-- Whether a worker that has not ended is silent for longer than allowed: it is stale, or it never
-- started. p_watched_for: how long the caller has been watching; earlier silence is not charged.
CREATE OR REPLACE FUNCTION @schema@.is_stale(
    worker @schema@.worker_heartbeats, p_threshold interval, p_watched_for interval DEFAULT NULL
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT worker.ended_at IS NULL AND least(@schema@.silence(worker), p_watched_for)
        > @schema@.allowed_silence(worker, p_threshold)
$$;

-- When the worker's process stops believing in its leases: `Lease::is_held` in Rust. The first
-- heartbeat may be older than the registration; belief begins with the registration.
CREATE OR REPLACE FUNCTION @schema@.belief_ends(worker @schema@.worker_heartbeats) RETURNS timestamptz
    LANGUAGE sql STABLE AS $$
    SELECT greatest(worker.last_heartbeat_at, worker.started_at)
        + coalesce(worker.stale_after, @schema@.default_stale_after())
$$;

-- The state now. The reported status counts as long as the heartbeat is young enough.
CREATE OR REPLACE FUNCTION @schema@.worker_state(worker @schema@.worker_heartbeats) RETURNS text
    LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN worker.ended_at IS NOT NULL THEN worker.status
        WHEN @schema@.is_stale(worker, @schema@.default_stale_after())
            THEN CASE WHEN worker.last_heartbeat_at IS NULL THEN 'never_started' ELSE 'stale' END
        WHEN worker.last_heartbeat_at IS NULL THEN 'starting'
        WHEN worker.status IN ('idle', 'processing', 'stalled', 'unobserved', 'stopping')
            THEN worker.status
        ELSE 'active'
    END
$$;

-- Whether a worker in this state is well: `State::is_recent` in Rust.
CREATE OR REPLACE FUNCTION @schema@.is_recent(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS $$
    SELECT p_state IN ('idle', 'active', 'processing', 'stopping')
$$;

-- Whether a worker in this state counts as dead: `State::is_offline` in Rust.
CREATE OR REPLACE FUNCTION @schema@.is_offline(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS $$
    SELECT p_state IN ('never_started', 'stale', 'dead')
$$;

-- Whether this life of the worker is over, or was purged.
CREATE OR REPLACE FUNCTION @schema@.has_ended(p_worker_id text, p_incarnation bigint) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w WHERE w.worker_id = p_worker_id
        AND w.incarnation = p_incarnation AND w.ended_at IS NULL)
$$;
