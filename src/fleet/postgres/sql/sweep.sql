-- A sweep: stale workers are marked offline, their leases are released.

-- Ends these workers, whose rows the caller has locked, and their leases at the given times. Returns
-- the runs of the leases that are released now; the others expire later.
CREATE OR REPLACE FUNCTION @schema@.mark_offline(
    p_ids text[], p_incarnations bigint[], p_causes text[], p_leases_end timestamptz[]
) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    IF p_ids IS NULL THEN
        RETURN;
    END IF;
    UPDATE @schema@.worker_heartbeats w SET last_status = w.status, status = 'dead',
        ended_at = now(), ended_cause = f.cause, ended_detail = NULL, lease_expires_at = NULL
        FROM unnest(p_ids, p_causes) f (id, cause) WHERE w.worker_id = f.id;
    RETURN QUERY DELETE FROM @schema@.leases l
        USING unnest(p_ids, p_incarnations, p_leases_end) f (id, incarnation, leases_end)
        WHERE l.worker_id = f.id AND l.incarnation = f.incarnation
            AND least(l.expires_at, f.leases_end) <= now()
        RETURNING l.run_id;
    UPDATE @schema@.leases l SET expires_at = f.leases_end
        FROM unnest(p_ids, p_incarnations, p_leases_end) f (id, incarnation, leases_end)
        WHERE l.worker_id = f.id AND l.incarnation = f.incarnation AND l.expires_at > f.leases_end;
END $$;

-- One pass over at most p_limit workers, so that their rows are not locked for long. p_ended_*: the
-- workers whose processes are known to have ended, as the kernel of their host proves. Returns
-- nothing if another sweep is running; otherwise 'swept', then each 'worker' with its group, and each
-- 'lease' that is released.
CREATE OR REPLACE FUNCTION @schema@.sweep_workers(
    p_threshold interval, p_watched_for interval, p_ended_ids text[], p_ended_incarnations bigint[],
    p_ended_causes text[], p_session_grace interval, p_dry_run boolean, p_limit integer
) RETURNS TABLE (what text, name text, worker_group text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_lost bigint[];
    v_ids text[];
    v_incarnations bigint[];
    v_groups text[];
    v_causes text[];
    v_leases_end timestamptz[];
BEGIN
    IF NOT p_dry_run AND NOT pg_try_advisory_xact_lock(
        hashtextextended('worker_heartbeat sweep @schema@', 0)) THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT 'swept', NULL::text, NULL::text;
    v_lost := @schema@.look_for_sessions(p_session_grace, p_dry_run);

    -- Judged and locked in one statement: a worker whose heartbeat arrives meanwhile is skipped, or
    -- judged again. A process that is proved to have ended believes in no lease; one that is silent
    -- or cut off may still do.
    WITH found AS MATERIALIZED (
        SELECT w.worker_id, w.incarnation, w.worker_group, w.session_id,
            @schema@.belief_ends(w) AS belief_ends
        FROM @schema@.worker_heartbeats w
        WHERE w.ended_at IS NULL AND (@schema@.is_stale(w, p_threshold, p_watched_for)
            OR w.session_id = ANY (v_lost)
            OR (w.worker_id, w.incarnation) IN (SELECT * FROM unnest(p_ended_ids, p_ended_incarnations)))
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(f.worker_id), array_agg(f.incarnation), array_agg(f.worker_group),
        array_agg(coalesce(e.cause, CASE WHEN f.session_id = ANY (v_lost) THEN 'gone' ELSE 'lost' END)),
        array_agg(CASE WHEN e.cause IS NULL THEN f.belief_ends ELSE now() END)
        INTO v_ids, v_incarnations, v_groups, v_causes, v_leases_end
        FROM found f LEFT JOIN (
            -- 'killed' takes precedence over 'gone'.
            SELECT u.id, u.incarnation, max(u.cause) AS cause
            FROM unnest(p_ended_ids, p_ended_incarnations, p_ended_causes) u (id, incarnation, cause)
            GROUP BY u.id, u.incarnation
        ) e ON e.id = f.worker_id AND e.incarnation = f.incarnation;
    RETURN QUERY SELECT 'worker', f.id, f.grp FROM unnest(v_ids, v_groups) f (id, grp);

    IF p_dry_run THEN
        RETURN QUERY SELECT 'lease', l.run_id, NULL::text FROM @schema@.leases l
            JOIN unnest(v_ids, v_incarnations, v_leases_end) f (id, incarnation, leases_end)
            ON l.worker_id = f.id AND l.incarnation = f.incarnation
            WHERE least(l.expires_at, f.leases_end) <= now();
        RETURN QUERY SELECT 'lease', l.run_id, NULL::text FROM @schema@.leases l
            WHERE l.expires_at <= now() AND @schema@.has_ended(l.worker_id, l.incarnation);
        RETURN;
    END IF;
    -- By later statements than the one that locked the rows: these see every claim until then.
    RETURN QUERY SELECT 'lease', m.run_id, NULL::text
        FROM @schema@.mark_offline(v_ids, v_incarnations, v_causes, v_leases_end) m (run_id);
    RETURN QUERY WITH expired AS MATERIALIZED (
        SELECT l.run_id FROM @schema@.leases l WHERE l.expires_at <= now()
        LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), removed AS (
        DELETE FROM @schema@.leases l USING expired e WHERE l.run_id = e.run_id
        RETURNING l.run_id, l.worker_id, l.incarnation
    )
    SELECT 'lease', r.run_id, NULL::text FROM removed r
    WHERE @schema@.has_ended(r.worker_id, r.incarnation);
END $$;

-- The same, where all ended processes were killed.
CREATE OR REPLACE FUNCTION @schema@.sweep_workers(
    p_threshold interval, p_watched_for interval, p_killed_ids text[], p_killed_incarnations bigint[],
    p_session_grace interval, p_dry_run boolean, p_limit integer
) RETURNS TABLE (what text, name text, worker_group text) LANGUAGE sql AS $$
    SELECT * FROM @schema@.sweep_workers(p_threshold, p_watched_for, p_killed_ids, p_killed_incarnations,
        (SELECT array_agg('killed'::text) FROM unnest(p_killed_ids)), p_session_grace, p_dry_run, p_limit)
$$;

-- Of these groups, those in which every worker that was not stopped counts as dead. p_convicted: the
-- workers that a dry run found.
CREATE OR REPLACE FUNCTION @schema@.offline_groups(
    p_groups text[], p_convicted text[], p_threshold interval, p_watched_for interval
) RETURNS SETOF text LANGUAGE sql STABLE AS $$
    SELECT g.name FROM unnest(p_groups) g (name)
    WHERE NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w
        WHERE w.worker_group = g.name AND w.ended_at IS NULL AND w.worker_id <> ALL (p_convicted)
        AND NOT @schema@.is_stale(w, p_threshold, p_watched_for))
    AND EXISTS (SELECT FROM @schema@.worker_heartbeats w
        WHERE w.worker_group = g.name AND w.status <> 'stopped')
$$;

-- Releases the leases of workers that have ended, as soon as no process believes in them any more. A
-- silent worker has not ended before a sweep, or cleanup_stale_workers, marks it.
CREATE OR REPLACE FUNCTION @schema@.release_dead_worker_leases()
RETURNS TABLE (run_id text, worker_id text, fence bigint) LANGUAGE sql AS $$
    DELETE FROM @schema@.leases l
        WHERE l.expires_at <= now() AND @schema@.has_ended(l.worker_id, l.incarnation)
        RETURNING l.run_id, l.worker_id, l.fence
$$;

-- Marks workers offline that are silent for longer than p_minutes and than their own limit allows.
CREATE OR REPLACE FUNCTION @schema@.cleanup_stale_workers(p_minutes integer DEFAULT 60)
RETURNS TABLE (worker_id text, worker_type text, last_heartbeat_at timestamptz, current_run_id text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_threshold interval := make_interval(mins => p_minutes);
    v_ids text[];
    v_incarnations bigint[];
    v_causes text[];
    v_leases_end timestamptz[];
BEGIN
    IF p_minutes IS NULL OR p_minutes < 0 THEN
        RAISE EXCEPTION 'minutes: %; allowed are 0 and more', p_minutes
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Waits for a sweep that is running: when this call returns, the stale workers are marked.
    PERFORM pg_advisory_xact_lock(hashtextextended('worker_heartbeat sweep @schema@', 0));
    -- A row that was waited for is judged again.
    WITH found AS MATERIALIZED (
        SELECT w.worker_id, w.incarnation, @schema@.belief_ends(w) AS belief_ends
        FROM @schema@.worker_heartbeats w
        WHERE @schema@.is_stale(w, v_threshold) AND @schema@.silence(w) > v_threshold
        ORDER BY w.worker_id FOR UPDATE
    )
    SELECT array_agg(f.worker_id), array_agg(f.incarnation), array_agg('lost'::text),
        array_agg(f.belief_ends) INTO v_ids, v_incarnations, v_causes, v_leases_end FROM found f;
    PERFORM @schema@.mark_offline(v_ids, v_incarnations, v_causes, v_leases_end);
    PERFORM @schema@.release_dead_worker_leases();
    RETURN QUERY SELECT w.worker_id, w.worker_type, w.last_heartbeat_at, w.current_run_id
        FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (v_ids) ORDER BY w.worker_id;
END $$;
