-- A process that is gone was killed only if the kernel of its host proves that.

-- One pass, over p_limit workers at most: nobody has to wait long for their rows. Nothing is
-- returned if another sweep is at work. Otherwise: 'swept', and then what was found, as 'worker'
-- with its group, or 'lease'.
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
    -- The kernel of its host says so.
    v_proved boolean[];
    v_ends timestamptz[];
BEGIN
    IF NOT p_dry_run AND NOT pg_try_advisory_xact_lock(
        hashtextextended('worker_heartbeat sweep @schema@', 0)) THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT 'swept', NULL::text, NULL::text;
    v_lost := @schema@.look_for_sessions(p_session_grace, p_dry_run);

    -- Judged and locked at once: a worker that beats meanwhile is not found, or judged again.
    WITH found AS MATERIALIZED (
        SELECT w.worker_id, w.incarnation, w.worker_group, w.session_id,
            greatest(w.last_heartbeat_at, w.started_at)
                + coalesce(w.stale_after, interval '90 seconds') AS belief_ends
        FROM @schema@.worker_heartbeats w
        WHERE w.ended_at IS NULL AND (
            CASE WHEN w.last_heartbeat_at IS NULL
                THEN least(now() - w.started_at, p_watched_for) > coalesce(w.startup_grace, p_threshold)
                ELSE least(now() - w.last_heartbeat_at, p_watched_for) > coalesce(w.stale_after, p_threshold)
            END
            OR w.session_id = ANY (v_lost)
            OR (w.worker_id, w.incarnation) IN (SELECT * FROM unnest(p_ended_ids, p_ended_incarnations)))
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(f.worker_id), array_agg(f.incarnation), array_agg(f.worker_group),
        array_agg(coalesce(e.cause, CASE WHEN f.session_id = ANY (v_lost) THEN 'gone' ELSE 'lost' END)),
        array_agg(e.cause IS NOT NULL), array_agg(f.belief_ends)
        INTO v_ids, v_incarnations, v_groups, v_causes, v_proved, v_ends
        FROM found f LEFT JOIN (
            -- 'killed' rather than 'gone', where both are said.
            SELECT u.id, u.incarnation, max(u.cause) AS cause
            FROM unnest(p_ended_ids, p_ended_incarnations, p_ended_causes) u (id, incarnation, cause)
            GROUP BY u.id, u.incarnation
        ) e ON e.id = f.worker_id AND e.incarnation = f.incarnation;
    IF v_ids IS NOT NULL THEN
        RETURN QUERY SELECT 'worker', f.id, f.grp FROM unnest(v_ids, v_groups) f (id, grp);
        -- By another statement, which sees what was claimed until the rows were locked. A process
        -- that is gone believes in nothing; one that is silent, or cut off, may still do.
        RETURN QUERY SELECT 'lease', l.run_id, NULL::text FROM @schema@.leases l
            JOIN unnest(v_ids, v_incarnations, v_proved, v_ends) f (id, incarnation, proved, ends)
            ON l.worker_id = f.id AND l.incarnation = f.incarnation
            WHERE f.proved OR least(l.expires_at, f.ends) <= now();
        IF NOT p_dry_run THEN
            UPDATE @schema@.worker_heartbeats w SET last_status = w.status, status = 'dead',
                ended_at = now(), ended_cause = f.cause, ended_detail = NULL, lease_expires_at = NULL
                FROM unnest(v_ids, v_causes) f (id, cause) WHERE w.worker_id = f.id;
            DELETE FROM @schema@.leases l
                USING unnest(v_ids, v_incarnations, v_proved, v_ends) f (id, incarnation, proved, ends)
                WHERE l.worker_id = f.id AND l.incarnation = f.incarnation
                AND (f.proved OR least(l.expires_at, f.ends) <= now());
            UPDATE @schema@.leases l SET expires_at = f.ends
                FROM unnest(v_ids, v_incarnations, v_ends) f (id, incarnation, ends)
                WHERE l.worker_id = f.id AND l.incarnation = f.incarnation AND l.expires_at > f.ends;
        END IF;
    END IF;
    IF p_dry_run THEN
        RETURN QUERY SELECT 'lease', l.run_id, NULL::text FROM @schema@.leases l
            WHERE l.expires_at <= now() AND NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w
                WHERE w.worker_id = l.worker_id AND w.incarnation = l.incarnation AND w.ended_at IS NULL);
    ELSE
        RETURN QUERY WITH expired AS MATERIALIZED (
            SELECT l.run_id FROM @schema@.leases l WHERE l.expires_at <= now()
            LIMIT p_limit FOR UPDATE SKIP LOCKED
        ), removed AS (
            DELETE FROM @schema@.leases l USING expired e WHERE l.run_id = e.run_id
            RETURNING l.run_id, l.worker_id, l.incarnation
        )
        SELECT 'lease', r.run_id, NULL::text FROM removed r
        WHERE NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w
            WHERE w.worker_id = r.worker_id AND w.incarnation = r.incarnation AND w.ended_at IS NULL);
    END IF;
END $$;

-- As above, of workers whose processes were killed.
CREATE OR REPLACE FUNCTION @schema@.sweep_workers(
    p_threshold interval, p_watched_for interval, p_killed_ids text[], p_killed_incarnations bigint[],
    p_session_grace interval, p_dry_run boolean, p_limit integer
) RETURNS TABLE (what text, name text, worker_group text) LANGUAGE sql AS $$
    SELECT * FROM @schema@.sweep_workers(p_threshold, p_watched_for, p_killed_ids, p_killed_incarnations,
        (SELECT array_agg('killed'::text) FROM unnest(p_killed_ids)), p_session_grace, p_dry_run, p_limit)
$$;
