-- Views and functions for operators, cron and other languages. They judge as the library does.

-- How an earlier life of the worker died.
CREATE OR REPLACE FUNCTION @schema@.last_death(worker @schema@.worker_heartbeats) RETURNS text
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN worker.last_death_at IS NOT NULL THEN concat_ws(': ', worker.last_death_cause,
        worker.last_death_detail || coalesce(' (at ' || worker.last_death_location || ')', '')) END
$$;

-- Workers that are well. status: as reported last; state: as judged now.
CREATE OR REPLACE VIEW @schema@.v_active_workers AS
    SELECT w.worker_id, w.worker_type, w.worker_group, w.status, w.reason, w.last_heartbeat_at,
        w.current_run_id, w.current_task, w.progress_done, w.progress_total,
        (SELECT max(l.expires_at) FROM @schema@.leases l WHERE l.worker_id = w.worker_id
            AND l.incarnation = w.incarnation AND l.expires_at > now()) AS lease_expires_at,
        w.started_at, w.incarnation, w.hostname, w.pid, w.metadata,
        extract(epoch FROM @schema@.silence(w))::double precision AS seconds_since_heartbeat,
        judged.state, @schema@.last_death(w) AS last_death, w.last_death_at, w.last_location
    FROM @schema@.worker_heartbeats w, LATERAL (SELECT @schema@.worker_state(w) AS state) judged
    WHERE @schema@.is_recent(judged.state);

-- Workers that died, are stale or never started. status: as reported last, 'dead' if that was
-- recorded; state: as judged now. An index finds the dead ones.
CREATE OR REPLACE VIEW @schema@.v_dead_workers AS
    SELECT w.worker_id, w.worker_type, w.worker_group, w.status,
        CASE judged.state WHEN 'dead' THEN concat_ws(': ', w.ended_cause,
                w.ended_detail || coalesce(' (at ' || w.ended_location || ')', ''))
            WHEN 'never_started' THEN 'never started' ELSE 'stale' END AS reason,
        w.last_heartbeat_at, w.current_run_id, w.current_task, w.progress_done, w.progress_total,
        w.started_at, w.ended_at, w.incarnation, w.hostname, w.pid, w.metadata,
        extract(epoch FROM @schema@.silence(w))::double precision AS seconds_since_heartbeat,
        judged.state, @schema@.last_death(w) AS last_death, w.last_death_at, w.last_location
    FROM @schema@.worker_heartbeats w, LATERAL (SELECT @schema@.worker_state(w) AS state) judged
    WHERE w.attention = 0
    UNION ALL
    SELECT w.worker_id, w.worker_type, w.worker_group, w.status,
        CASE judged.state WHEN 'never_started' THEN 'never started' ELSE 'stale' END,
        w.last_heartbeat_at, w.current_run_id, w.current_task, w.progress_done, w.progress_total,
        w.started_at, w.ended_at, w.incarnation, w.hostname, w.pid, w.metadata,
        extract(epoch FROM @schema@.silence(w))::double precision, judged.state,
        @schema@.last_death(w), w.last_death_at, w.last_location
    FROM @schema@.worker_heartbeats w, LATERAL (SELECT @schema@.worker_state(w) AS state) judged
    WHERE w.ended_at IS NULL AND @schema@.is_stale(w, @schema@.default_stale_after());

-- Refuses a name or an id that programs in Rust cannot have. NULL is none.
CREATE OR REPLACE FUNCTION @schema@.check_name(p_field text, p_name text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_fault text := CASE WHEN p_name = '' THEN 'it is empty'
        WHEN octet_length(p_name) > @longest_name@ THEN 'it is too long'
        WHEN p_name ~ '[\x01-\x1f\x7f]' THEN 'it has control characters'
        WHEN p_name ~ '^ | $' THEN 'it begins or ends with a space'
        -- Other encodings have other numbers for these.
        WHEN getdatabaseencoding() <> 'UTF8' THEN NULL
        WHEN p_name ~ '[\u0080-\u009f]' THEN 'it has control characters'
        WHEN p_name ~ '[@unprintable@]' THEN 'it has invisible characters'
        WHEN p_name ~ '^[@spaces@]|[@spaces@]$' THEN 'it begins or ends with a space'
    END;
BEGIN
    IF v_fault IS NOT NULL THEN
        RAISE EXCEPTION '%: %', p_field, v_fault USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Allowed are 1 to @longest_name@ bytes without control characters, invisible '
                'characters, and spaces at either end.';
    END IF;
END $$;

-- Records a heartbeat, and registers the worker first if its id is unknown or its last life is over.
-- Returns its incarnation. p_stale_after: NULL keeps the limit. A worker that a sweep marked offline
-- keeps its group, its limit and its metadata when it comes back.
CREATE OR REPLACE FUNCTION @schema@.upsert_worker_heartbeat(
    p_worker_id text, p_worker_type text, p_status text DEFAULT 'active',
    p_current_run_id text DEFAULT NULL, p_current_task text DEFAULT NULL,
    p_metadata jsonb DEFAULT NULL, p_worker_group text DEFAULT NULL,
    p_stale_after interval DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_incarnation bigint;
    v_old @schema@.worker_heartbeats;
    -- In seconds: months and years have several lengths.
    v_stale_after interval := make_interval(secs => extract(epoch FROM p_stale_after)::double precision);
BEGIN
    PERFORM @schema@.check_name('worker_id', coalesce(p_worker_id, ''));
    PERFORM @schema@.check_name('worker_type', coalesce(p_worker_type, ''));
    PERFORM @schema@.check_name('worker_group', p_worker_group);
    PERFORM @schema@.check_name('current_run_id', p_current_run_id);
    IF jsonb_typeof(p_metadata) <> 'object' THEN
        RAISE EXCEPTION 'metadata: it is of the JSON type %; allowed are objects', jsonb_typeof(p_metadata)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_status NOT IN ('starting', 'idle', 'active', 'processing', 'stopping', 'stopped') THEN
        RAISE EXCEPTION 'status %: allowed are starting, idle, active, processing, stopping, stopped', p_status
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_stale_after NOT BETWEEN interval '0' AND interval '36525 days' THEN
        RAISE EXCEPTION 'stale_after: %; allowed are 0 to 100 years', p_stale_after
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A database without an encoding takes any bytes, which make every reader of the row fail.
    PERFORM convert_to(concat_ws(' ', p_worker_id, p_worker_type, p_worker_group, p_current_run_id,
        p_current_task, p_metadata), 'UTF8');
    SELECT w.incarnation INTO v_incarnation FROM @schema@.worker_heartbeats w
        WHERE w.worker_id = p_worker_id AND w.ended_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        IF p_status = 'stopped' THEN
            RETURN NULL;
        END IF;
        SELECT * INTO v_old FROM @schema@.worker_heartbeats w
            WHERE w.worker_id = p_worker_id AND w.ended_cause = 'lost' AND w.pid IS NULL;
        SELECT r.incarnation INTO v_incarnation FROM @schema@.register_workers(
            ARRAY[p_worker_id], ARRAY[true], ARRAY[p_worker_type],
            ARRAY[coalesce(p_worker_group, v_old.worker_group, 'local')], ARRAY[30000000]::bigint[],
            ARRAY[(extract(epoch FROM v_old.stale_after) * 1000000)::bigint], ARRAY[NULL]::bigint[],
            ARRAY[(extract(epoch FROM v_old.startup_grace) * 1000000)::bigint], ARRAY[false],
            ARRAY[coalesce(v_old.metadata, '{}')::text], ARRAY[0]::bigint[], ARRAY[NULL]::text[], ARRAY[NULL]::bigint[],
            ARRAY[NULL]::bigint[], ARRAY[NULL]::text[], ARRAY[NULL]::bigint[], ARRAY[false], NULL) r;
    END IF;
    UPDATE @schema@.worker_heartbeats w SET
        worker_type = p_worker_type,
        worker_group = coalesce(p_worker_group, w.worker_group),
        stale_after = coalesce(v_stale_after, w.stale_after),
        startup_grace = coalesce(v_stale_after, w.startup_grace),
        status = CASE WHEN p_status = 'stopped' THEN w.status ELSE p_status END,
        reason = NULL, stack = NULL,
        last_heartbeat_at = greatest(w.last_heartbeat_at, now()),
        last_progress_at = greatest(w.last_progress_at, now()),
        current_run_id = p_current_run_id, current_task = p_current_task,
        progress_done = NULL, progress_total = NULL, last_location = NULL, beats = w.beats + 1,
        metadata = @schema@.merged(w.metadata, coalesce(p_metadata, '{}'))
        WHERE w.worker_id = p_worker_id AND w.incarnation = v_incarnation;
    IF p_status = 'stopped' THEN
        PERFORM @schema@.stop_worker(p_worker_id);
    END IF;
    RETURN v_incarnation;
END $$;

-- The same, for a run id of the type uuid.
CREATE OR REPLACE FUNCTION @schema@.upsert_worker_heartbeat(
    p_worker_id text, p_worker_type text, p_status text, p_current_run_id uuid,
    p_current_task text DEFAULT NULL, p_metadata jsonb DEFAULT NULL, p_worker_group text DEFAULT NULL,
    p_stale_after interval DEFAULT NULL
) RETURNS bigint LANGUAGE sql AS $$
    SELECT @schema@.upsert_worker_heartbeat(p_worker_id, p_worker_type, p_status, p_current_run_id::text,
        p_current_task, p_metadata, p_worker_group, p_stale_after)
$$;

-- The same, for an active worker. At each place, the first of these functions takes what this one takes,
-- so that arguments without a type choose that one.
CREATE OR REPLACE FUNCTION @schema@.upsert_worker_heartbeat(
    p_worker_id text, p_worker_type text, p_current_run_id uuid, p_current_task text DEFAULT NULL,
    p_worker_group text DEFAULT NULL, p_metadata jsonb DEFAULT NULL, p_stale_after interval DEFAULT NULL
) RETURNS bigint LANGUAGE sql AS $$
    SELECT @schema@.upsert_worker_heartbeat(p_worker_id, p_worker_type, 'active', p_current_run_id::text,
        p_current_task, p_metadata, p_worker_group, p_stale_after)
$$;

-- Returns whether the worker was alive until now. Its leases are released.
CREATE OR REPLACE FUNCTION @schema@.stop_worker(p_worker_id text) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    v_incarnation bigint;
BEGIN
    PERFORM @schema@.check_name('worker_id', coalesce(p_worker_id, ''));
    SELECT w.incarnation INTO v_incarnation FROM @schema@.worker_heartbeats w
        WHERE w.worker_id = p_worker_id AND w.ended_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM @schema@.stop_workers(ARRAY[p_worker_id], ARRAY[v_incarnation], ARRAY[true],
        ARRAY['stop'], ARRAY[NULL]::text[], ARRAY[NULL]::text[], ARRAY[0]::bigint[]);
    RETURN true;
END $$;

-- The workers that a sweep would mark offline for their silence. Changes nothing.
CREATE OR REPLACE FUNCTION @schema@.detect_stale_workers(
    p_threshold interval DEFAULT @schema@.default_stale_after()
) RETURNS TABLE (worker_id text, worker_type text, worker_group text, status text, current_run_id text,
    last_heartbeat_at timestamptz, seconds_since_heartbeat double precision, allowed_seconds double precision)
LANGUAGE sql STABLE AS $$
    SELECT w.worker_id, w.worker_type, w.worker_group, w.status, w.current_run_id, w.last_heartbeat_at,
        extract(epoch FROM @schema@.silence(w))::double precision,
        extract(epoch FROM @schema@.allowed_silence(w, p_threshold))::double precision
    FROM @schema@.worker_heartbeats w WHERE @schema@.is_stale(w, p_threshold)
    ORDER BY w.worker_id
$$;

-- Of versions 1 to 13.
DROP FUNCTION IF EXISTS @schema@.get_worker_stats();

-- Figures of each type. active_workers, dead_workers: those of the views; all other columns count
-- workers by their state.
CREATE OR REPLACE FUNCTION @schema@.get_worker_stats()
RETURNS TABLE (worker_type text, total_workers bigint, active_workers bigint, dead_workers bigint,
    stopped_workers bigint, starting_workers bigint, idle_workers bigint, processing_workers bigint,
    stalled_workers bigint, oldest_heartbeat_seconds double precision, overdue_workers bigint)
LANGUAGE sql STABLE AS $$
    SELECT w.worker_type, count(*),
        count(*) FILTER (WHERE @schema@.is_recent(judged.state)),
        count(*) FILTER (WHERE @schema@.is_offline(judged.state)),
        count(*) FILTER (WHERE judged.state = 'stopped'),
        count(*) FILTER (WHERE judged.state = 'starting'),
        count(*) FILTER (WHERE judged.state = 'idle'),
        count(*) FILTER (WHERE judged.state = 'processing'),
        count(*) FILTER (WHERE judged.state = 'stalled'),
        -- Of the active workers.
        max(extract(epoch FROM @schema@.silence(w))::double precision)
            FILTER (WHERE @schema@.is_recent(judged.state)),
        count(*) FILTER (WHERE judged.state = 'overdue')
    FROM @schema@.worker_heartbeats w, LATERAL (SELECT @schema@.worker_state(w) AS state) judged
    GROUP BY w.worker_type ORDER BY w.worker_type
$$;
