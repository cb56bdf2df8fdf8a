-- Leases: the right of a worker to work on a run for a while.

-- Copies to the workers' rows what they hold, for display. Rows that are locked by another
-- transaction are skipped rather than waited for: the next heartbeat updates them.
CREATE OR REPLACE FUNCTION @schema@.show_leases(p_ids text[], p_run_id text) RETURNS void
    LANGUAGE sql AS $$
    UPDATE @schema@.worker_heartbeats w SET
        current_run_id = coalesce(w.current_run_id, p_run_id),
        lease_expires_at = (SELECT max(l.expires_at) FROM @schema@.leases l
            WHERE l.worker_id = w.worker_id AND l.incarnation = w.incarnation AND l.expires_at > now())
    WHERE w.worker_id IN (SELECT o.worker_id FROM @schema@.worker_heartbeats o
        WHERE o.worker_id = ANY (p_ids) ORDER BY o.worker_id FOR NO KEY UPDATE SKIP LOCKED)
$$;

-- Of versions 1 to 13.
DROP FUNCTION IF EXISTS @schema@.claim_run(text, bigint, text, bigint);

-- Answers 'granted' with a fence, 'taken', or why the worker is refused. p_attempt: an attempt that
-- holds the run gets its fence again; one that was withdrawn gets nothing.
CREATE OR REPLACE FUNCTION @schema@.claim_run(
    p_worker_id text, p_incarnation bigint, p_run_id text, p_ttl bigint,
    p_attempt bigint DEFAULT NULL, OUT answer text, OUT fence bigint
) LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
#variable_conflict use_column
DECLARE
    v_incarnation bigint;
    v_ended_at timestamptz;
    v_withdrawn bigint[];
BEGIN
    PERFORM @schema@.durably();
    SELECT w.incarnation, w.ended_at, w.withdrawn INTO v_incarnation, v_ended_at, v_withdrawn
        FROM @schema@.worker_heartbeats w WHERE w.worker_id = p_worker_id FOR KEY SHARE;
    answer := @schema@.refusal(p_incarnation, v_incarnation, v_ended_at);
    IF answer IS NOT NULL THEN
        RETURN;
    END IF;
    IF p_attempt = ANY (v_withdrawn) THEN
        answer := 'taken';
        RETURN;
    END IF;
    UPDATE @schema@.leases l SET expires_at = greatest(l.expires_at, now() + @schema@.micros(p_ttl))
        WHERE l.run_id = p_run_id AND l.worker_id = p_worker_id AND l.incarnation = p_incarnation
            AND l.attempt = p_attempt AND l.expires_at > now()
        RETURNING l.fence INTO claim_run.fence;
    IF FOUND THEN
        -- The answer was lost, or the request came twice.
        answer := 'granted';
        RETURN;
    END IF;
    -- Not even by the holder: its release may be lost, and the claim of another worker.
    IF @schema@.claims_wait() THEN
        answer := 'taken';
        RETURN;
    END IF;
    INSERT INTO @schema@.leases AS l (run_id, worker_id, incarnation, fence, expires_at, attempt)
        VALUES (p_run_id, p_worker_id, p_incarnation, 0, now() + @schema@.micros(p_ttl), p_attempt)
        ON CONFLICT ON CONSTRAINT leases_pkey DO UPDATE SET
            worker_id = excluded.worker_id, incarnation = excluded.incarnation,
            expires_at = excluded.expires_at, attempt = excluded.attempt
        WHERE l.expires_at <= now()
            OR (l.worker_id = excluded.worker_id AND l.incarnation = excluded.incarnation);
    IF NOT FOUND THEN
        answer := 'taken';
        RETURN;
    END IF;
    answer := 'granted';
    -- Drawn once the run is locked, so that no earlier claim of the run has a higher fence.
    UPDATE @schema@.leases l SET fence = @schema@.next_number(greatest(l.fence, l.incarnation))
        WHERE l.run_id = p_run_id
        RETURNING l.fence INTO claim_run.fence;
    PERFORM @schema@.show_leases(ARRAY[p_worker_id], p_run_id);
END $$;

-- The same, for a run id of the type uuid.
CREATE OR REPLACE FUNCTION @schema@.claim_run(
    p_worker_id text, p_incarnation bigint, p_run_id uuid, p_ttl bigint,
    p_attempt bigint DEFAULT NULL, OUT answer text, OUT fence bigint
) LANGUAGE sql AS $$
    SELECT * FROM @schema@.claim_run(p_worker_id, p_incarnation, p_run_id::text, p_ttl, p_attempt)
$$;

-- Gives up claims whose outcome the worker does not know. Returns the places of those that held a run
-- until now. The lock on the workers' rows waits for claims that are not committed yet.
CREATE OR REPLACE FUNCTION @schema@.withdraw_claims(
    p_ids text[], p_incarnations bigint[], p_run_ids text[], p_attempts bigint[]
) RETURNS SETOF bigint LANGUAGE plpgsql
    SET lock_timeout = '100ms' SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
BEGIN
    PERFORM @schema@.durably();
    PERFORM FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (p_ids)
        ORDER BY w.worker_id FOR UPDATE;
    WITH withdrawn AS (
        SELECT c.id, c.incarnation, array_agg(c.attempt) AS attempts
        FROM unnest(p_ids, p_incarnations, p_attempts) AS c (id, incarnation, attempt)
        WHERE c.attempt IS NOT NULL GROUP BY c.id, c.incarnation
    ), kept AS (
        SELECT w.worker_id, w.incarnation, coalesce(w.withdrawn, '{}') || c.attempts AS attempts
        FROM withdrawn c JOIN @schema@.worker_heartbeats w
            ON w.worker_id = c.id AND w.incarnation = c.incarnation AND w.ended_at IS NULL
    )
    UPDATE @schema@.worker_heartbeats w
        SET withdrawn = k.attempts[greatest(1, cardinality(k.attempts) - @most_withdrawn@ + 1):]
        FROM kept k WHERE w.worker_id = k.worker_id AND w.incarnation = k.incarnation;
    RETURN QUERY
        DELETE FROM @schema@.leases l
        USING unnest(p_ids, p_incarnations, p_run_ids, p_attempts) WITH ORDINALITY
            AS c (id, incarnation, run_id, attempt, ord)
        WHERE l.run_id = c.run_id AND l.worker_id = c.id AND l.incarnation = c.incarnation
            AND l.attempt IS NOT DISTINCT FROM c.attempt AND l.expires_at > now()
        RETURNING c.ord;
    PERFORM @schema@.show_leases(p_ids, NULL);
END $$;

-- Returns the fences of the leases that are still held.
CREATE OR REPLACE FUNCTION @schema@.renew_leases(
    p_ids text[], p_incarnations bigint[], p_run_ids text[], p_fences bigint[], p_ttl bigint
) RETURNS SETOF bigint LANGUAGE plpgsql
    SET lock_timeout = '100ms' SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
BEGIN
    PERFORM @schema@.durably();
    PERFORM FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (p_ids)
        ORDER BY w.worker_id FOR KEY SHARE;
    RETURN QUERY
        UPDATE @schema@.leases l
        SET expires_at = greatest(l.expires_at, now() + @schema@.micros(p_ttl))
        FROM unnest(p_ids, p_incarnations, p_run_ids, p_fences) AS k (id, incarnation, run_id, fence),
            @schema@.worker_heartbeats w
        WHERE l.run_id = k.run_id AND l.worker_id = k.id AND l.incarnation = k.incarnation
            AND l.fence = k.fence AND l.expires_at > now()
            AND w.worker_id = k.id AND w.incarnation = k.incarnation AND w.ended_at IS NULL
        RETURNING l.fence;
    PERFORM @schema@.show_leases(p_ids, NULL);
END $$;

-- Returns the fences of the leases that were held until now.
CREATE OR REPLACE FUNCTION @schema@.release_leases(
    p_ids text[], p_incarnations bigint[], p_run_ids text[], p_fences bigint[]
) RETURNS SETOF bigint LANGUAGE plpgsql
    SET lock_timeout = '100ms' SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        DELETE FROM @schema@.leases l
        USING unnest(p_ids, p_incarnations, p_run_ids, p_fences) AS k (id, incarnation, run_id, fence)
        WHERE l.run_id = k.run_id AND l.worker_id = k.id AND l.incarnation = k.incarnation
            AND l.fence = k.fence AND l.expires_at > now()
        RETURNING l.fence;
    PERFORM @schema@.show_leases(p_ids, NULL);
END $$;

-- Those of these runs whose lease, or the row of whose worker, other transactions lock.
CREATE OR REPLACE FUNCTION @schema@.locked_leases(p_run_ids text[], p_ids text[]) RETURNS SETOF text
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM @schema@.wait_for_tables();
    RETURN QUERY SELECT l.run_id FROM @schema@.leases l WHERE l.run_id = ANY (p_run_ids)
        EXCEPT SELECT h.run_id FROM (SELECT l.run_id FROM @schema@.leases l
            WHERE l.run_id = ANY (p_run_ids) ORDER BY l.run_id FOR UPDATE SKIP LOCKED) h;
    RETURN QUERY SELECT k.run_id FROM unnest(p_run_ids, p_ids) AS k (run_id, id)
        WHERE EXISTS (SELECT FROM @schema@.worker_heartbeats w WHERE w.worker_id = k.id)
        AND k.id NOT IN (SELECT h.worker_id FROM (SELECT w.worker_id FROM @schema@.worker_heartbeats w
            WHERE w.worker_id = ANY (p_ids) ORDER BY w.worker_id FOR KEY SHARE SKIP LOCKED) h);
END $$;
