-- For people, cron and other languages: the same rows, the same rules.

-- A heartbeat within the last 5 minutes, unless the worker's own threshold says otherwise.
CREATE OR REPLACE VIEW @schema@.v_active_workers AS
    SELECT w.worker_id, w.worker_type, w.worker_group, w.status, w.reason, w.last_heartbeat_at,
        w.current_run_id, w.current_task, w.progress_done, w.progress_total,
        (SELECT max(l.expires_at) FROM @schema@.leases l WHERE l.worker_id = w.worker_id
            AND l.incarnation = w.incarnation AND l.expires_at > now()) AS lease_expires_at,
        w.started_at, w.incarnation, w.hostname, w.pid, w.metadata,
        extract(epoch FROM now() - w.last_heartbeat_at)::double precision AS seconds_since_heartbeat
    FROM @schema@.worker_heartbeats w
    WHERE w.ended_at IS NULL
        AND w.last_heartbeat_at >= now() - coalesce(w.stale_after, interval '5 minutes');

-- Ended otherwise than in good order, silent for too long, or never heard of within their grace.
CREATE OR REPLACE VIEW @schema@.v_dead_workers AS
    SELECT w.worker_id, w.worker_type, w.worker_group, w.status,
        CASE WHEN w.ended_at IS NOT NULL THEN concat_ws(': ', w.ended_cause, w.ended_detail)
            WHEN w.last_heartbeat_at IS NULL THEN 'never started' ELSE 'stale' END AS reason,
        w.last_heartbeat_at, w.current_run_id, w.current_task, w.progress_done, w.progress_total,
        w.started_at, w.ended_at, w.incarnation, w.hostname, w.pid, w.metadata,
        extract(epoch FROM now() - coalesce(w.last_heartbeat_at, w.started_at))::double precision
            AS seconds_since_heartbeat
    FROM @schema@.worker_heartbeats w
    WHERE w.status = 'dead' OR w.ended_at IS NULL AND CASE WHEN w.last_heartbeat_at IS NULL
        THEN w.started_at < now() - coalesce(w.startup_grace, interval '5 minutes')
        ELSE w.last_heartbeat_at < now() - coalesce(w.stale_after, interval '5 minutes') END;

-- Registers the worker if nobody has this id or its last life is over, and takes in a heartbeat.
-- Returns its incarnation. Limits are kept unless others are given.
CREATE OR REPLACE FUNCTION @schema@.upsert_worker_heartbeat(
    p_worker_id text, p_worker_type text, p_status text DEFAULT 'active',
    p_current_run_id text DEFAULT NULL, p_current_task text DEFAULT NULL,
    p_metadata jsonb DEFAULT NULL, p_worker_group text DEFAULT NULL,
    p_stale_after interval DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_incarnation bigint;
BEGIN
    IF p_status NOT IN ('starting', 'idle', 'active', 'processing', 'stopping', 'stopped') THEN
        RAISE EXCEPTION 'status %: allowed are starting, idle, active, processing, stopping, stopped', p_status
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT w.incarnation INTO v_incarnation FROM @schema@.worker_heartbeats w
        WHERE w.worker_id = p_worker_id AND w.ended_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        IF p_status = 'stopped' THEN
            RETURN NULL;
        END IF;
        SELECT r.incarnation INTO v_incarnation FROM @schema@.register_workers(
            ARRAY[p_worker_id], ARRAY[true], ARRAY[p_worker_type],
            ARRAY[coalesce(p_worker_group, 'local')], ARRAY[30000000]::bigint[],
            ARRAY[NULL]::bigint[], ARRAY[NULL]::bigint[], ARRAY[NULL]::bigint[], ARRAY[false],
            ARRAY['{}'], ARRAY[0]::bigint[], ARRAY[NULL]::text[], ARRAY[NULL]::bigint[],
            ARRAY[NULL]::bigint[], ARRAY[NULL]::text[], ARRAY[NULL]::bigint[], ARRAY[false], NULL) r;
    END IF;
    UPDATE @schema@.worker_heartbeats w SET
        worker_type = p_worker_type,
        worker_group = coalesce(p_worker_group, w.worker_group),
        stale_after = coalesce(p_stale_after, w.stale_after),
        startup_grace = coalesce(p_stale_after, w.startup_grace),
        status = CASE WHEN p_status = 'stopped' THEN w.status ELSE p_status END,
        reason = NULL,
        last_heartbeat_at = greatest(w.last_heartbeat_at, now()),
        last_progress_at = greatest(w.last_progress_at, now()),
        current_run_id = p_current_run_id, current_task = p_current_task,
        progress_done = NULL, progress_total = NULL, beats = w.beats + 1,
        metadata = @schema@.merged(w.metadata, coalesce(p_metadata, '{}'))
        WHERE w.worker_id = p_worker_id AND w.incarnation = v_incarnation;
    IF p_status = 'stopped' THEN
        PERFORM @schema@.stop_worker(p_worker_id);
    END IF;
    RETURN v_incarnation;
END $$;

-- Whether it lived until now. Its leases are released.
CREATE OR REPLACE FUNCTION @schema@.stop_worker(p_worker_id text) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    v_incarnation bigint;
BEGIN
    SELECT w.incarnation INTO v_incarnation FROM @schema@.worker_heartbeats w
        WHERE w.worker_id = p_worker_id AND w.ended_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM @schema@.stop_workers(ARRAY[p_worker_id], ARRAY[v_incarnation], ARRAY[true],
        ARRAY['stop'], ARRAY[NULL]::text[], ARRAY[0]::bigint[]);
    RETURN true;
END $$;

-- Who would be marked offline now; changes nothing.
CREATE OR REPLACE FUNCTION @schema@.detect_stale_workers(p_threshold interval DEFAULT '90 seconds')
RETURNS TABLE (worker_id text, worker_type text, worker_group text, status text, current_run_id text,
    last_heartbeat_at timestamptz, seconds_since_heartbeat double precision, allowed_seconds double precision)
LANGUAGE sql STABLE AS $$
    SELECT w.worker_id, w.worker_type, w.worker_group, w.status, w.current_run_id, w.last_heartbeat_at,
        extract(epoch FROM now() - coalesce(w.last_heartbeat_at, w.started_at))::double precision,
        extract(epoch FROM a.allowed)::double precision
    FROM @schema@.worker_heartbeats w, LATERAL (SELECT coalesce(
        CASE WHEN w.last_heartbeat_at IS NULL THEN w.startup_grace ELSE w.stale_after END,
        p_threshold) AS allowed) a
    WHERE w.ended_at IS NULL AND now() - coalesce(w.last_heartbeat_at, w.started_at) > a.allowed
    ORDER BY w.worker_id
$$;

-- Marks workers offline that were silent for longer than so many minutes, and than their own limit
-- allows; their leases are released as by any sweep. A sweep, once, on the word of whoever calls it.
CREATE OR REPLACE FUNCTION @schema@.cleanup_stale_workers(p_minutes integer DEFAULT 60)
RETURNS TABLE (worker_id text, worker_type text, last_heartbeat_at timestamptz, current_run_id text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_ids text[];
BEGIN
    IF p_minutes IS NULL OR p_minutes < 0 THEN
        RAISE EXCEPTION 'minutes: %; allowed are 0 and more', p_minutes
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Waits for a sweep that is at work: whoever calls this expects it to be done.
    PERFORM pg_advisory_xact_lock(hashtextextended('worker_heartbeat sweep @schema@', 0));
    SELECT array_agg(d.worker_id) INTO v_ids
        FROM @schema@.detect_stale_workers(make_interval(mins => p_minutes)) d
        WHERE d.seconds_since_heartbeat > p_minutes::double precision * 60;
    PERFORM FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (v_ids)
        ORDER BY w.worker_id FOR UPDATE;
    -- Again, now that nobody else can write to them.
    SELECT array_agg(d.worker_id) INTO v_ids
        FROM @schema@.detect_stale_workers(make_interval(mins => p_minutes)) d
        WHERE d.seconds_since_heartbeat > p_minutes::double precision * 60 AND d.worker_id = ANY (v_ids);
    UPDATE @schema@.leases l SET expires_at = least(l.expires_at, greatest(now(),
            greatest(w.last_heartbeat_at, w.started_at) + coalesce(w.stale_after, interval '90 seconds')))
        FROM @schema@.worker_heartbeats w
        WHERE w.worker_id = ANY (v_ids) AND l.worker_id = w.worker_id AND l.incarnation = w.incarnation;
    RETURN QUERY UPDATE @schema@.worker_heartbeats w SET last_status = w.status, status = 'dead',
        ended_at = now(), ended_cause = 'lost', ended_detail = NULL, lease_expires_at = NULL
        WHERE w.worker_id = ANY (v_ids)
        RETURNING w.worker_id, w.worker_type, w.last_heartbeat_at, w.current_run_id;
    PERFORM @schema@.release_dead_worker_leases();
END $$;

-- Releases the leases of workers that are over, as soon as nobody can believe in them any more. The
-- silent are not over before they are marked: by a sweep, or by cleanup_stale_workers.
CREATE OR REPLACE FUNCTION @schema@.release_dead_worker_leases()
RETURNS TABLE (run_id text, worker_id text, fence bigint) LANGUAGE sql AS $$
    DELETE FROM @schema@.leases l WHERE l.expires_at <= now()
        AND NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w WHERE w.worker_id = l.worker_id
            AND w.incarnation = l.incarnation AND w.ended_at IS NULL)
    RETURNING l.run_id, l.worker_id, l.fence
$$;

CREATE OR REPLACE FUNCTION @schema@.get_worker_stats()
RETURNS TABLE (worker_type text, total_workers bigint, active_workers bigint, dead_workers bigint,
    stopped_workers bigint, starting_workers bigint, idle_workers bigint, processing_workers bigint,
    stalled_workers bigint, oldest_heartbeat_seconds double precision)
LANGUAGE sql STABLE AS $$
    SELECT w.worker_type, count(*), count(a.worker_id), count(d.worker_id),
        count(*) FILTER (WHERE w.status = 'stopped'),
        count(*) FILTER (WHERE w.ended_at IS NULL AND w.last_heartbeat_at IS NULL AND d.worker_id IS NULL),
        count(a.worker_id) FILTER (WHERE w.status = 'idle'),
        count(a.worker_id) FILTER (WHERE w.status = 'processing'),
        count(a.worker_id) FILTER (WHERE w.status = 'stalled'),
        max(a.seconds_since_heartbeat)
    FROM @schema@.worker_heartbeats w
    LEFT JOIN @schema@.v_active_workers a ON a.worker_id = w.worker_id
    LEFT JOIN @schema@.v_dead_workers d ON d.worker_id = w.worker_id
    GROUP BY w.worker_type ORDER BY w.worker_type
$$;
