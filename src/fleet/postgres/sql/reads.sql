-- Counts, and the worst workers first: what a million workers cost depends on what is shown.

-- The position in the order of severity. Workers that are processing, active or idle share one.
CREATE OR REPLACE FUNCTION @schema@.severity(p_state text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE p_state @severity@ END
$$;

-- The severity of a worker as far as it is known without its heartbeat: dead (0), not heard from yet
-- (1), reported as stalled (2), overdue (4), unobserved (5) or stopping (7), stopped (11); otherwise
-- NULL. The index finds these workers, and heartbeats of all others don't touch it.
ALTER TABLE @schema@.worker_heartbeats ADD COLUMN IF NOT EXISTS attention smallint
    GENERATED ALWAYS AS (CASE
        WHEN status IN ('idle', 'active', 'processing') AND last_heartbeat_at IS NOT NULL THEN NULL
        WHEN status = 'dead' THEN 0
        WHEN status = 'stopped' THEN 11
        WHEN last_heartbeat_at IS NULL THEN 1
        WHEN status = 'stalled' THEN 2
        WHEN status = 'overdue' THEN 4
        WHEN status = 'unobserved' THEN 5
        WHEN status = 'stopping' THEN 7
    END) STORED;
CREATE INDEX IF NOT EXISTS worker_heartbeats_attention
    ON @schema@.worker_heartbeats (attention, worker_id) WHERE attention IS NOT NULL;

-- Whether a worker is of this type and group, and its id, type or group contains the text. ASCII letters
-- match in both cases. NULL: any.
CREATE OR REPLACE FUNCTION @schema@.is_asked_for(
    worker @schema@.worker_heartbeats, p_worker_type text, p_worker_group text, p_search text
) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (p_worker_type IS NULL OR worker.worker_type = p_worker_type)
        AND (p_worker_group IS NULL OR worker.worker_group = p_worker_group)
        AND (p_search IS NULL OR strpos(lower(worker.worker_id COLLATE "C"), p_search) > 0
            OR strpos(lower(worker.worker_type COLLATE "C"), p_search) > 0
            OR strpos(lower(worker.worker_group COLLATE "C"), p_search) > 0)
$$;

-- The workers in the order of severity, and of their ids within a state. p_after_*: the last worker of
-- the page before. An index finds all but stale workers, which a scan finds only if the page has room
-- for them.
CREATE OR REPLACE FUNCTION @schema@.worst_workers(
    p_limit bigint DEFAULT 100, p_after_state text DEFAULT NULL, p_after_id text DEFAULT NULL,
    p_states text[] DEFAULT NULL, p_worker_type text DEFAULT NULL, p_worker_group text DEFAULT NULL,
    p_search text DEFAULT NULL
) RETURNS SETOF @schema@.worker_heartbeats LANGUAGE plpgsql STABLE
SET jit = off SET enable_sort = on AS $$
DECLARE
    v_well CONSTANT text[] := ARRAY['processing', 'active', 'idle'];
    v_after integer := coalesce(@schema@.severity(p_after_state), -1);
    v_left bigint := p_limit;
    v_well_listed boolean := false;
    v_state text;
    v_severity integer;
    v_from text;
    v_count bigint;
BEGIN
    FOREACH v_state IN ARRAY ARRAY[@worst_first@] LOOP
        v_severity := @schema@.severity(v_state);
        CONTINUE WHEN v_severity < v_after OR NOT v_state = ANY (p_states)
            OR (v_state = ANY (v_well) AND v_well_listed);
        EXIT WHEN v_left <= 0;
        v_from := CASE WHEN v_severity = v_after THEN p_after_id ELSE '' END;
        IF v_state = 'stale' THEN
            RETURN QUERY SELECT w.* FROM @schema@.worker_heartbeats w
                WHERE w.last_heartbeat_at IS NOT NULL AND w.worker_id > v_from
                    AND @schema@.is_stale(w, @schema@.default_stale_after())
                    AND @schema@.is_asked_for(w, p_worker_type, p_worker_group, p_search)
                -- Not by the primary key: few workers are stale.
                ORDER BY w.worker_id || '' COLLATE "C" LIMIT v_left;
        ELSIF v_state = ANY (v_well) THEN
            -- All of them at once, by the primary key: most workers are well. The function's SET
            -- clause ends this setting with the function.
            v_well_listed := true;
            PERFORM set_config('enable_sort', 'off', true);
            RETURN QUERY SELECT w.* FROM @schema@.worker_heartbeats w
                WHERE w.attention IS NULL AND w.worker_id > v_from
                    AND @schema@.worker_state(w) = ANY (v_well)
                    AND (p_states IS NULL OR @schema@.worker_state(w) = ANY (p_states))
                    AND @schema@.is_asked_for(w, p_worker_type, p_worker_group, p_search)
                ORDER BY w.worker_id LIMIT v_left;
        ELSE
            RETURN QUERY SELECT w.* FROM @schema@.worker_heartbeats w
                WHERE w.attention = CASE v_state WHEN 'starting' THEN 1 ELSE v_severity END
                    AND w.worker_id > v_from
                    AND (w.ended_at IS NOT NULL OR @schema@.worker_state(w) = v_state)
                    AND @schema@.is_asked_for(w, p_worker_type, p_worker_group, p_search)
                ORDER BY w.worker_id LIMIT v_left;
        END IF;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_left := v_left - v_count;
    END LOOP;
END $$;

-- How many workers there are: 'state' with the name of a state; 'type' and 'group' with a name and a
-- state; 'death' with a type and a cause; 'ended' with a type and how workers ended since the schema was
-- set up; 'leased' workers; 'types' and 'groups', the number of names.
-- Of more than p_most types or groups, those with the most unwell workers are listed.
--
-- Workers are grouped by columns whose numbers of values the planner knows, so that each parallel process
-- counts its share. The state, an expression, would be taken for a key with as many values as rows. So
-- the states are distinguished afterwards, as in worker_state.
CREATE OR REPLACE FUNCTION @schema@.fleet_counts(p_most bigint DEFAULT 10000)
RETURNS TABLE (kind text, name text, detail text, workers bigint) LANGUAGE sql STABLE
SET jit = off SET work_mem = '64MB' SET enable_sort = off SET parallel_setup_cost = 100 AS $$
    WITH reported AS MATERIALIZED (
        SELECT w.worker_type, w.worker_group, w.status, count(*) AS workers,
            count(*) FILTER (WHERE w.last_heartbeat_at IS NULL AND w.ended_at IS NULL) AS unheard,
            count(*) FILTER (WHERE w.last_heartbeat_at IS NULL
                AND @schema@.is_stale(w, @schema@.default_stale_after())) AS never_started,
            count(*) FILTER (WHERE w.last_heartbeat_at IS NOT NULL
                AND @schema@.is_stale(w, @schema@.default_stale_after())) AS stale
        FROM @schema@.worker_heartbeats w GROUP BY 1, 2, 3
    ), counted AS MATERIALIZED (
        SELECT r.worker_type, r.worker_group, 'never_started' AS state, r.never_started AS workers
            FROM reported r WHERE r.never_started > 0
        UNION ALL
        SELECT r.worker_type, r.worker_group, 'stale', r.stale FROM reported r WHERE r.stale > 0
        UNION ALL
        SELECT r.worker_type, r.worker_group, 'starting', r.unheard - r.never_started
            FROM reported r WHERE r.unheard > r.never_started
        UNION ALL
        SELECT r.worker_type, r.worker_group,
                CASE WHEN r.status IN ('idle', 'processing', 'stalled', 'overdue', 'unobserved',
                    'stopping', 'stopped', 'dead') THEN r.status ELSE 'active' END,
                r.workers - r.unheard - r.stale
            FROM reported r WHERE r.workers > r.unheard + r.stale
    ), names AS (
        SELECT 'type' AS kind, c.worker_type AS name, c.state, sum(c.workers)::bigint AS workers
        FROM counted c GROUP BY 2, 3
        UNION ALL
        SELECT 'group', c.worker_group, c.state, sum(c.workers)::bigint FROM counted c GROUP BY 2, 3
    ), ranked AS (
        SELECT n.kind, n.name, row_number() OVER (PARTITION BY n.kind ORDER BY
            sum(n.workers) FILTER (WHERE @schema@.severity(n.state) < 5) DESC NULLS LAST,
            sum(n.workers) DESC, n.name) AS place
        FROM names n GROUP BY n.kind, n.name
    )
    SELECT n.kind, n.name, n.state, n.workers FROM names n JOIN ranked r USING (kind, name)
        WHERE r.place <= p_most
    UNION ALL
    SELECT r.kind || 's', NULL, NULL, count(*) FROM ranked r GROUP BY r.kind
    UNION ALL
    SELECT 'state', c.state, NULL, sum(c.workers)::bigint FROM counted c GROUP BY c.state
    UNION ALL
    SELECT 'death', d.worker_type, d.ended_cause, d.workers FROM (
            SELECT w.worker_type, w.ended_cause, count(*) AS workers
            FROM @schema@.worker_heartbeats w WHERE w.attention = 0 GROUP BY 1, 2) d
        JOIN ranked r ON r.kind = 'type' AND r.name = d.worker_type AND r.place <= p_most
    UNION ALL
    SELECT 'ended', e.worker_type, e.how, sum(e.total)::bigint FROM @schema@.endings e
        GROUP BY e.worker_type, e.how
    UNION ALL
    -- One look-up a holder, however many workers there are.
    SELECT 'leased', NULL, NULL, count(*) FROM (
            SELECT DISTINCT l.worker_id, l.incarnation FROM @schema@.leases l
            WHERE l.expires_at > now()) h
        WHERE h.incarnation = (SELECT w.incarnation FROM @schema@.worker_heartbeats w
            WHERE w.worker_id = h.worker_id)
$$;
