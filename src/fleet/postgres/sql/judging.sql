-- The rules that decide how a worker is judged, as `health::judge` has them in Rust. Views, sweeps
-- and all other queries call these functions. All but the last are single expressions, which the
-- planner inlines: a sweep of a large table calls no function for each row.

-- The limit of workers that have none of their own.
CREATE OR REPLACE FUNCTION @schema@.default_stale_after() RETURNS interval
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT interval '@default_stale_after@ microseconds' $$;

-- Bounds of times and of limits, so that a row that holds others fails nothing: 'infinity' cannot be
-- subtracted, and a sum may be out of range.
CREATE OR REPLACE FUNCTION @schema@.bounded(p_at timestamptz) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN p_at IS NOT NULL THEN least(greatest(p_at, timestamptz '1900-01-01 00:00Z'),
        timestamptz '2500-01-01 00:00Z') END
$$;
CREATE OR REPLACE FUNCTION @schema@.bounded(p_limit interval) RETURNS interval
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN p_limit IS NOT NULL
        THEN least(greatest(p_limit, interval '0'), interval '36525 days') END
$$;

-- Microseconds since a time; negative if it is in the future.
CREATE OR REPLACE FUNCTION @schema@.age_micros(p_at timestamptz) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT (extract(epoch FROM now() - @schema@.bounded(p_at)) * 1000000)::bigint
$$;

-- Time since the last heartbeat; before the first one, time since the registration.
CREATE OR REPLACE FUNCTION @schema@.silence(worker @schema@.worker_heartbeats) RETURNS interval
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT now() - least(greatest(coalesce(worker.last_heartbeat_at, worker.started_at),
        timestamptz '1900-01-01 00:00Z'), timestamptz '2500-01-01 00:00Z')
$$;

-- The last heartbeat that could not be written to the worker's row; NULL if there is none. Asked of
-- workers only that are silent by their rows.
CREATE OR REPLACE FUNCTION @schema@.deferred_heartbeat(p_worker_id text, p_incarnation bigint)
    RETURNS timestamptz LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (SELECT max(d.heartbeat_at) FROM @schema@.deferred_heartbeats d
        WHERE d.worker_id = p_worker_id AND d.incarnation = p_incarnation);
END $$;

-- The longest silence that is allowed. p_threshold: for workers without limits of their own.
CREATE OR REPLACE FUNCTION @schema@.allowed_silence(
    worker @schema@.worker_heartbeats, p_threshold interval
) RETURNS interval LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN worker.stale_after IS NULL THEN p_threshold
        WHEN worker.last_heartbeat_at IS NULL
            THEN coalesce(worker.startup_grace, worker.stale_after)
        ELSE worker.stale_after
    END
$$;

-- Whether a worker that has not ended is silent for longer than allowed: it is stale, or it never
-- started. p_watched_for: how long the caller has been watching; earlier silence is not charged, nor is
-- silence because its row was locked.
CREATE OR REPLACE FUNCTION @schema@.is_stale(
    worker @schema@.worker_heartbeats, p_threshold interval, p_watched_for interval DEFAULT NULL
) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT worker.ended_at IS NULL AND least(@schema@.silence(worker), p_watched_for)
        > @schema@.allowed_silence(worker, p_threshold)
        AND coalesce(now() - @schema@.deferred_heartbeat(worker.worker_id, worker.incarnation)
            > coalesce(worker.stale_after, p_threshold), true)
$$;

-- When the worker's process stops believing in its leases: `Lease::is_held` in Rust. The first
-- heartbeat may be older than the registration; belief begins with the registration.
CREATE OR REPLACE FUNCTION @schema@.belief_ends(worker @schema@.worker_heartbeats) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT @schema@.bounded(greatest(worker.last_heartbeat_at, worker.started_at))
        + coalesce(@schema@.bounded(worker.stale_after), @schema@.default_stale_after())
$$;

-- The state now. The reported status counts as long as the heartbeat is young enough.
CREATE OR REPLACE FUNCTION @schema@.worker_state(worker @schema@.worker_heartbeats) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN worker.ended_at IS NOT NULL THEN worker.status
        WHEN @schema@.is_stale(worker, @schema@.default_stale_after())
            THEN CASE WHEN worker.last_heartbeat_at IS NULL THEN 'never_started' ELSE 'stale' END
        WHEN worker.last_heartbeat_at IS NULL THEN 'starting'
        WHEN worker.status IN ('idle', 'processing', 'stalled', 'overdue', 'unobserved', 'stopping')
            THEN worker.status
        ELSE 'active'
    END
$$;

-- Whether a worker in this state is well: `State::is_recent` in Rust.
CREATE OR REPLACE FUNCTION @schema@.is_recent(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_state IN ('idle', 'active', 'processing', 'stopping')
$$;

-- Whether a worker in this state counts as dead: `State::is_offline` in Rust.
CREATE OR REPLACE FUNCTION @schema@.is_offline(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_state IN ('never_started', 'stale', 'dead')
$$;

-- Whether this life of the worker is over, or was purged.
CREATE OR REPLACE FUNCTION @schema@.has_ended(p_worker_id text, p_incarnation bigint) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w WHERE w.worker_id = p_worker_id
        AND w.incarnation = p_incarnation AND w.ended_at IS NULL)
$$;
