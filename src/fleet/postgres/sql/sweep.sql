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
    PERFORM @schema@.record_events('died', 1, p_ids);
    RETURN QUERY DELETE FROM @schema@.leases l
        USING unnest(p_ids, p_incarnations, p_leases_end) f (id, incarnation, leases_end)
        WHERE l.worker_id = f.id AND l.incarnation = f.incarnation
            AND least(l.expires_at, f.leases_end) <= now()
        RETURNING l.run_id;
    UPDATE @schema@.leases l SET expires_at = f.leases_end
        FROM unnest(p_ids, p_incarnations, p_leases_end) f (id, incarnation, leases_end)
        WHERE l.worker_id = f.id AND l.incarnation = f.incarnation AND l.expires_at > f.leases_end;
END $$;

-- How much of a silence is charged: Sweep::charged in Rust. p_began, p_ended: how many microseconds ago
-- earlier spans of watched time began and ended.
CREATE OR REPLACE FUNCTION @schema@.charged_silence(
    p_silence interval, p_watched_for interval, p_began bigint[], p_ended bigint[]
) RETURNS interval LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT greatest(least(p_silence, p_watched_for), (least(p_silence, p_watched_for)
        + (SELECT coalesce(sum(least(p_silence, @schema@.micros(s.began))
                - least(p_silence, @schema@.micros(s.ended))), interval '0')
            FROM unnest(p_began, p_ended) s (began, ended))) / @pieces@)
$$;

-- One pass: the workers that a sweep would mark, at most p_limit. Locks and changes nothing.
-- p_longest: no silence is charged with more. p_began, p_ended: NULL if there are no earlier spans.
-- p_lost: sessions that ended. p_proved_*: the workers whose processes have ended, as the kernel of
-- their host proves.
CREATE OR REPLACE FUNCTION @schema@.sweep_candidates(
    p_threshold interval, p_longest interval, p_watched_for interval, p_began bigint[], p_ended bigint[],
    p_lost bigint[], p_proved_ids text[], p_proved_incarnations bigint[], p_limit integer
) RETURNS TABLE (worker_id text, incarnation bigint) LANGUAGE sql STABLE
-- The planner takes a third of the rows for stale, too many to be handed over by parallel processes.
SET jit = off SET parallel_setup_cost = 100 SET parallel_tuple_cost = 0 AS $$
    SELECT f.worker_id, f.incarnation FROM (
        SELECT w.worker_id, w.incarnation FROM @schema@.worker_heartbeats w
            WHERE @schema@.is_stale(w, p_threshold, p_longest)
            AND (p_began IS NULL
                OR @schema@.charged_silence(@schema@.silence(w), p_watched_for, p_began, p_ended)
                    > @schema@.allowed_silence(w, p_threshold))
        UNION
        SELECT w.worker_id, w.incarnation FROM @schema@.worker_heartbeats w
            WHERE w.session_id = ANY (p_lost) AND w.ended_at IS NULL
        UNION
        SELECT w.worker_id, w.incarnation
            FROM unnest(p_proved_ids, p_proved_incarnations) e (id, incarnation)
            JOIN @schema@.worker_heartbeats w ON w.worker_id = e.id AND w.incarnation = e.incarnation
            WHERE w.ended_at IS NULL
    ) f LIMIT p_limit
$$;

-- Those of these workers one of whose leases another transaction locks, such as one that checks a
-- fence. The other leases are locked from now on.
CREATE OR REPLACE FUNCTION @schema@.workers_with_locked_leases(p_ids text[], p_incarnations bigint[])
    RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    v_free text[];
BEGIN
    SELECT array_agg(f.run_id) INTO v_free FROM (
        SELECT l.run_id FROM @schema@.leases l
            WHERE (l.worker_id, l.incarnation) IN (SELECT * FROM unnest(p_ids, p_incarnations))
            FOR UPDATE SKIP LOCKED) f;
    RETURN (SELECT array_agg(DISTINCT l.worker_id) FROM @schema@.leases l
        WHERE (l.worker_id, l.incarnation) IN (SELECT * FROM unnest(p_ids, p_incarnations))
        AND NOT EXISTS (SELECT FROM unnest(v_free) f (run_id) WHERE f.run_id = l.run_id));
END $$;

-- Marks those of these workers that deserve it, in one short transaction: each row is judged again
-- once it is locked. Rows, and rows with leases, that other transactions lock are skipped. Returns each
-- 'worker' with its group, each 'lease' that is released, and each worker that is 'busy': it would be
-- marked, but is locked. p_dry_run: only reads.
CREATE OR REPLACE FUNCTION @schema@.sweep_batch(
    p_ids text[], p_incarnations bigint[], p_proved text[], p_lost bigint[], p_threshold interval,
    p_watched_for interval, p_began bigint[], p_ended bigint[], p_dry_run boolean
) RETURNS TABLE (what text, name text, worker_group text) LANGUAGE plpgsql
    -- The rows of a batch are few, even if the planner takes the table for a small one.
    SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_ids text[];
    v_incarnations bigint[];
    v_groups text[];
    v_causes text[];
    v_leases_end timestamptz[];
    v_locked text[];
    -- No silence is charged with more. Only inlined functions are called for each row.
    v_longest interval := CASE WHEN p_began IS NULL THEN p_watched_for ELSE @schema@.charged_silence(
        interval '36525 days', p_watched_for, p_began, p_ended) END;
BEGIN
    IF p_dry_run THEN
        RETURN QUERY WITH found AS MATERIALIZED (
            SELECT w.worker_id, w.incarnation, w.worker_group, c.proved,
                @schema@.belief_ends(w) AS belief_ends
            FROM unnest(p_ids, p_incarnations, p_proved) c (id, incarnation, proved)
            JOIN @schema@.worker_heartbeats w ON w.worker_id = c.id AND w.incarnation = c.incarnation
            WHERE w.ended_at IS NULL AND (c.proved IS NOT NULL OR w.session_id = ANY (p_lost)
                OR @schema@.is_stale(w, p_threshold, v_longest) AND (p_began IS NULL
                    OR @schema@.charged_silence(@schema@.silence(w), p_watched_for, p_began, p_ended)
                        > @schema@.allowed_silence(w, p_threshold)))
        )
        SELECT 'worker', f.worker_id, f.worker_group FROM found f
        UNION ALL
        SELECT 'lease', l.run_id, NULL FROM found f
            JOIN @schema@.leases l ON l.worker_id = f.worker_id AND l.incarnation = f.incarnation
            WHERE l.expires_at <= now() OR f.proved IS NOT NULL OR f.belief_ends <= now();
        RETURN;
    END IF;
    -- A process that is proved to have ended believes in no lease; one that is silent or cut off may
    -- still do.
    WITH found AS MATERIALIZED (
        SELECT w.worker_id, w.incarnation, w.worker_group,
            CASE WHEN c.proved IS NOT NULL THEN c.proved
                WHEN w.session_id = ANY (p_lost) THEN 'gone' ELSE 'lost' END AS cause,
            CASE WHEN c.proved IS NULL THEN @schema@.belief_ends(w) ELSE now() END AS leases_end
        FROM unnest(p_ids, p_incarnations, p_proved) c (id, incarnation, proved)
        JOIN @schema@.worker_heartbeats w ON w.worker_id = c.id AND w.incarnation = c.incarnation
        WHERE w.ended_at IS NULL AND (c.proved IS NOT NULL OR w.session_id = ANY (p_lost)
                OR @schema@.is_stale(w, p_threshold, v_longest) AND (p_began IS NULL
                    OR @schema@.charged_silence(@schema@.silence(w), p_watched_for, p_began, p_ended)
                        > @schema@.allowed_silence(w, p_threshold)))
        FOR UPDATE OF w SKIP LOCKED
    )
    SELECT array_agg(f.worker_id), array_agg(f.incarnation), array_agg(f.worker_group),
        array_agg(f.cause), array_agg(f.leases_end)
        INTO v_ids, v_incarnations, v_groups, v_causes, v_leases_end FROM found f;
    -- By later statements than the one that locked the rows: these see every claim until then.
    v_locked := @schema@.workers_with_locked_leases(v_ids, v_incarnations);
    IF v_locked IS NOT NULL THEN
        SELECT array_agg(f.id), array_agg(f.incarnation), array_agg(f.grp), array_agg(f.cause),
            array_agg(f.leases_end)
            INTO v_ids, v_incarnations, v_groups, v_causes, v_leases_end
            FROM unnest(v_ids, v_incarnations, v_groups, v_causes, v_leases_end)
                f (id, incarnation, grp, cause, leases_end)
            WHERE f.id <> ALL (v_locked);
    END IF;
    RETURN QUERY SELECT 'worker', f.id, f.grp FROM unnest(v_ids, v_groups) f (id, grp);
    RETURN QUERY SELECT 'lease', m.run_id, NULL::text
        FROM @schema@.mark_offline(v_ids, v_incarnations, v_causes, v_leases_end) m (run_id);
    RETURN QUERY SELECT 'busy', w.worker_id, NULL::text
        FROM unnest(p_ids, p_incarnations, p_proved) c (id, incarnation, proved)
        JOIN @schema@.worker_heartbeats w ON w.worker_id = c.id AND w.incarnation = c.incarnation
        WHERE w.ended_at IS NULL AND (c.proved IS NOT NULL OR w.session_id = ANY (p_lost)
                OR @schema@.is_stale(w, p_threshold, v_longest) AND (p_began IS NULL
                    OR @schema@.charged_silence(@schema@.silence(w), p_watched_for, p_began, p_ended)
                        > @schema@.allowed_silence(w, p_threshold)));
END $$;

-- Deletes those of these leases that have expired and that no other transaction locks. Returns the runs
-- whose holders have ended.
CREATE OR REPLACE FUNCTION @schema@.release_expired(p_run_ids text[]) RETURNS SETOF text
    LANGUAGE sql AS $$
    WITH expired AS MATERIALIZED (
        SELECT l.run_id FROM @schema@.leases l
            WHERE l.run_id = ANY (p_run_ids) AND l.expires_at <= now() FOR UPDATE SKIP LOCKED
    ), removed AS (
        DELETE FROM @schema@.leases l USING expired e WHERE l.run_id = e.run_id
        RETURNING l.run_id, l.worker_id, l.incarnation
    )
    SELECT r.run_id FROM removed r WHERE @schema@.has_ended(r.worker_id, r.incarnation)
$$;

-- Whether a sweep by another sweeper makes this one unneeded: how long ago it was. It began within
-- p_within, with a limit that is as short, by a sweeper that has watched for as long. Otherwise this
-- sweep is noted, unless p_dry_run, and NULL is returned.
CREATE OR REPLACE FUNCTION @schema@.begin_sweep(
    p_within interval, p_threshold interval, p_watched_for interval, p_dry_run boolean
) RETURNS interval LANGUAGE plpgsql AS $$
DECLARE
    v_ago interval;
BEGIN
    SELECT now() - s.swept_at INTO v_ago FROM @schema@.last_sweep s
        -- One of the future is from before the clock was set back.
        WHERE s.swept_at > now() - p_within AND s.swept_at <= now() AND s.threshold <= p_threshold
        AND s.watched_since <= now() - p_watched_for;
    IF v_ago IS NULL AND NOT p_dry_run THEN
        INSERT INTO @schema@.last_sweep (id, swept_at, watched_since, threshold)
            VALUES (1, '-infinity', now(), p_threshold) ON CONFLICT DO NOTHING;
        -- Another transaction that locks the row delays no sweep.
        UPDATE @schema@.last_sweep s SET swept_at = now(), watched_since = now() - p_watched_for,
            threshold = p_threshold
            WHERE s.id IN (SELECT l.id FROM @schema@.last_sweep l FOR UPDATE SKIP LOCKED);
    END IF;
    RETURN v_ago;
END $$;

-- Forgets at most p_limit workers that ended this long ago: stopped ones, dead ones, and dead ones that
-- were replaced by a living worker of the same type and group, which was registered after they were last
-- heard of. NULL: never. Returns how many. p_dry_run: only counts.
CREATE OR REPLACE FUNCTION @schema@.forget_workers(
    p_stopped interval, p_dead interval, p_replaced interval, p_dry_run boolean, p_limit integer
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_ids text[];
    v_forgotten bigint;
BEGIN
    SELECT array_agg(f.worker_id) INTO v_ids FROM (
        SELECT w.worker_id FROM @schema@.worker_heartbeats w
            WHERE w.status = 'stopped' AND w.ended_at <= now() - p_stopped
        UNION ALL
        SELECT w.worker_id FROM @schema@.worker_heartbeats w
            WHERE w.status = 'dead' AND w.ended_at <= now() - p_dead
        UNION ALL
        SELECT w.worker_id FROM @schema@.worker_heartbeats w
            WHERE w.status = 'dead' AND w.ended_at <= now() - p_replaced
            AND (w.ended_at <= now() - p_dead) IS NOT TRUE
            AND EXISTS (SELECT FROM @schema@.worker_heartbeats o
                WHERE o.worker_group = w.worker_group AND o.worker_type = w.worker_type
                AND o.ended_at IS NULL AND o.started_at > coalesce(w.last_heartbeat_at, w.started_at))
        LIMIT p_limit) f;
    IF p_dry_run OR v_ids IS NULL THEN
        RETURN coalesce(cardinality(v_ids), 0);
    END IF;
    -- A worker that is registered again meanwhile lives again.
    WITH locked AS MATERIALIZED (
        SELECT w.worker_id FROM @schema@.worker_heartbeats w
            WHERE w.worker_id = ANY (v_ids)
            AND w.ended_at <= now() - least(p_stopped, p_dead, p_replaced)
            FOR UPDATE SKIP LOCKED
    ), deleted AS (
        DELETE FROM @schema@.worker_heartbeats w USING locked l WHERE w.worker_id = l.worker_id
        RETURNING 1
    )
    SELECT count(*) INTO v_forgotten FROM deleted;
    RETURN v_forgotten;
END $$;

-- A sweep in one transaction, of at most p_limit workers. p_ended_*: the workers whose processes are
-- known to have ended. Returns 'swept', then each 'worker' with its group, and each 'lease' that is
-- released.
CREATE OR REPLACE FUNCTION @schema@.sweep_workers(
    p_threshold interval, p_watched_for interval, p_ended_ids text[], p_ended_incarnations bigint[],
    p_ended_causes text[], p_session_grace interval, p_dry_run boolean, p_limit integer
) RETURNS TABLE (what text, name text, worker_group text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_lost bigint[] := @schema@.look_for_sessions(p_session_grace, p_dry_run);
    v_ids text[];
    v_incarnations bigint[];
    v_proved text[];
    v_run_ids text[];
BEGIN
    RETURN QUERY SELECT 'swept', NULL::text, NULL::text;
    SELECT array_agg(f.worker_id), array_agg(f.incarnation), array_agg(e.cause)
        INTO v_ids, v_incarnations, v_proved
        FROM @schema@.sweep_candidates(p_threshold, p_watched_for, p_watched_for, NULL, NULL, v_lost,
            p_ended_ids, p_ended_incarnations, p_limit) f
        LEFT JOIN (
            -- 'killed' takes precedence over 'gone'.
            SELECT u.id, u.incarnation, max(u.cause) AS cause
            FROM unnest(p_ended_ids, p_ended_incarnations, p_ended_causes) u (id, incarnation, cause)
            GROUP BY u.id, u.incarnation
        ) e ON e.id = f.worker_id AND e.incarnation = f.incarnation;
    RETURN QUERY SELECT b.what, b.name, b.worker_group
        FROM @schema@.sweep_batch(v_ids, v_incarnations, v_proved, v_lost, p_threshold, p_watched_for,
            NULL, NULL, p_dry_run) b WHERE b.what <> 'busy';
    IF p_dry_run THEN
        RETURN QUERY SELECT 'lease', l.run_id, NULL::text FROM @schema@.leases l
            WHERE l.expires_at <= now() AND @schema@.has_ended(l.worker_id, l.incarnation);
        RETURN;
    END IF;
    SELECT array_agg(f.run_id) INTO v_run_ids FROM (
        SELECT l.run_id FROM @schema@.leases l WHERE l.expires_at <= now() LIMIT p_limit) f;
    RETURN QUERY SELECT 'lease', r.run_id, NULL::text FROM @schema@.release_expired(v_run_ids) r (run_id);
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
        WHERE w.worker_group = g.name AND w.ended_at IS NULL
        AND NOT @schema@.is_stale(w, p_threshold, p_watched_for)
        AND NOT EXISTS (SELECT FROM unnest(p_convicted) c (id) WHERE c.id = w.worker_id))
    AND EXISTS (SELECT FROM @schema@.worker_heartbeats w
        WHERE w.worker_group = g.name AND w.status <> 'stopped')
$$;

-- Releases the leases of workers that have ended, as soon as no process believes in them any more. A
-- silent worker has not ended before a sweep, or cleanup_stale_workers, marks it.
CREATE OR REPLACE FUNCTION @schema@.release_dead_worker_leases()
RETURNS TABLE (run_id text, worker_id text, fence bigint) LANGUAGE sql AS $$
    WITH expired AS MATERIALIZED (
        SELECT l.run_id FROM @schema@.leases l
            WHERE l.expires_at <= now() AND @schema@.has_ended(l.worker_id, l.incarnation)
            FOR UPDATE SKIP LOCKED
    )
    DELETE FROM @schema@.leases l USING expired e WHERE l.run_id = e.run_id
        RETURNING l.run_id, l.worker_id, l.fence
$$;

-- Marks workers offline that are silent for longer than p_minutes and than their own limit allows. While
-- the server was down, nobody could be heard: only the time since its last restart counts. A transaction
-- that calls it delays no other: others skip the rows that it locks, and it skips theirs.
CREATE OR REPLACE FUNCTION @schema@.cleanup_stale_workers(p_minutes integer DEFAULT 60)
RETURNS TABLE (worker_id text, worker_type text, last_heartbeat_at timestamptz, current_run_id text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_threshold interval := make_interval(mins => p_minutes);
    v_heard_for interval := now() - @schema@.last_restart();
    v_ids text[];
    v_incarnations bigint[];
    v_causes text[];
    v_leases_end timestamptz[];
    v_locked text[];
BEGIN
    IF p_minutes IS NULL OR p_minutes < 0 THEN
        RAISE EXCEPTION 'minutes: %; allowed are 0 and more', p_minutes
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH found AS MATERIALIZED (
        SELECT w.worker_id, w.incarnation, @schema@.belief_ends(w) AS belief_ends
        FROM @schema@.worker_heartbeats w
        WHERE @schema@.is_stale(w, v_threshold, v_heard_for)
            AND least(@schema@.silence(w), v_heard_for) > v_threshold
        FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(f.worker_id), array_agg(f.incarnation), array_agg('lost'::text),
        array_agg(f.belief_ends) INTO v_ids, v_incarnations, v_causes, v_leases_end FROM found f;
    v_locked := @schema@.workers_with_locked_leases(v_ids, v_incarnations);
    IF v_locked IS NOT NULL THEN
        SELECT array_agg(f.id), array_agg(f.incarnation), array_agg(f.cause), array_agg(f.leases_end)
            INTO v_ids, v_incarnations, v_causes, v_leases_end
            FROM unnest(v_ids, v_incarnations, v_causes, v_leases_end) f (id, incarnation, cause, leases_end)
            WHERE f.id <> ALL (v_locked);
    END IF;
    PERFORM @schema@.mark_offline(v_ids, v_incarnations, v_causes, v_leases_end);
    PERFORM @schema@.release_dead_worker_leases();
    RETURN QUERY SELECT w.worker_id, w.worker_type, w.last_heartbeat_at, w.current_run_id
        FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (v_ids) ORDER BY w.worker_id;
END $$;
