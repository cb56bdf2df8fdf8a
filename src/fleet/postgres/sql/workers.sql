-- Registration, heartbeats and stops. Each function is one statement of its caller, and so one
-- transaction: no lock outlives a call, even if the caller is suspended or cut off.
--
-- Functions that change which life a worker is in (register, stop, sweep) lock its row FOR UPDATE
-- before they read its leases; claims and renewals lock the row FOR KEY SHARE first. So none of them
-- sees a half-finished other one, and heartbeats don't wait for claims or renewals.

-- Functions of batches are planned for their number of items (force_custom_plan): a plan for any number,
-- made before a table was first analyzed, reads all its rows for each item.

-- Acknowledged writes must survive a crash, because leases depend on them: overrides a server
-- default of synchronous_commit = off.
CREATE OR REPLACE FUNCTION @schema@.durably() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION @schema@.micros(p_micros bigint) RETURNS interval
    LANGUAGE sql IMMUTABLE AS $$ SELECT p_micros * interval '1 microsecond' $$;

-- Waits for a lock on a whole table, such as that of CREATE INDEX. Other waits are for rows, and short:
-- the functions below set lock_timeout, and a caller that gets lock_not_available asks locked_workers,
-- or locked_leases, which rows it has to do without.
CREATE OR REPLACE FUNCTION @schema@.wait_for_tables() RETURNS void
    LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
    LOCK TABLE @schema@.worker_heartbeats, @schema@.leases, @schema@.sessions,
        @schema@.deferred_heartbeats IN ROW EXCLUSIVE MODE;
END $$;

-- Those of these workers whose rows other transactions lock. p_ends: a lock against reading the key
-- counts too, and one of the worker's leases.
CREATE OR REPLACE FUNCTION @schema@.locked_workers(p_ids text[], p_ends boolean) RETURNS SETOF text
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM @schema@.wait_for_tables();
    IF p_ends THEN
        RETURN QUERY SELECT w.worker_id FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (p_ids)
            EXCEPT SELECT h.worker_id FROM (SELECT w.worker_id FROM @schema@.worker_heartbeats w
                WHERE w.worker_id = ANY (p_ids) ORDER BY w.worker_id FOR UPDATE SKIP LOCKED) h;
        RETURN QUERY SELECT l.worker_id FROM @schema@.leases l WHERE l.worker_id = ANY (p_ids)
            AND l.run_id NOT IN (SELECT h.run_id FROM (SELECT l.run_id FROM @schema@.leases l
                WHERE l.worker_id = ANY (p_ids) ORDER BY l.run_id FOR UPDATE SKIP LOCKED) h);
    ELSE
        RETURN QUERY SELECT w.worker_id FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (p_ids)
            EXCEPT SELECT h.worker_id FROM (SELECT w.worker_id FROM @schema@.worker_heartbeats w
                WHERE w.worker_id = ANY (p_ids) ORDER BY w.worker_id FOR NO KEY UPDATE SKIP LOCKED) h;
    END IF;
END $$;

-- Those of these characters, as UTF-8, that the encoding of the database lacks.
CREATE OR REPLACE FUNCTION @schema@.missing_characters(p_characters bytea[]) RETURNS SETOF bytea
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_character bytea;
BEGIN
    FOREACH v_character IN ARRAY p_characters LOOP
        BEGIN
            PERFORM convert_from(v_character, 'UTF8');
        EXCEPTION WHEN data_exception THEN
            RETURN NEXT v_character;
        END;
    END LOOP;
END $$;

-- Records heartbeats that cannot be written to the workers' rows now, because these are locked: see
-- the table deferred_heartbeats. Earlier ones are not needed any more.
CREATE OR REPLACE FUNCTION @schema@.defer_heartbeats(
    p_ids text[], p_incarnations bigint[], p_heartbeat_ages bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM @schema@.deferred_heartbeats d WHERE d.ctid = ANY (ARRAY(
        SELECT d.ctid FROM @schema@.deferred_heartbeats d
        WHERE d.heartbeat_at < now() - interval '1 day' OR EXISTS (
            SELECT FROM unnest(p_ids, p_incarnations, p_heartbeat_ages) AS b (id, incarnation, age)
            WHERE d.worker_id = b.id AND d.incarnation = b.incarnation
                AND d.heartbeat_at <= now() - @schema@.micros(b.age))
        FOR UPDATE SKIP LOCKED));
    INSERT INTO @schema@.deferred_heartbeats (worker_id, incarnation, heartbeat_at)
        SELECT b.id, b.incarnation, now() - @schema@.micros(b.age)
        FROM unnest(p_ids, p_incarnations, p_heartbeat_ages) AS b (id, incarnation, age)
        WHERE b.age IS NOT NULL;
END $$;

-- New values replace old ones of the same name. New names are added up to @max_metadata@ in total,
-- so that metadata from heartbeats does not grow without bound. Anything but an object is no metadata.
CREATE OR REPLACE FUNCTION @schema@.merged(p_old jsonb, p_new jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_room bigint;
BEGIN
    IF jsonb_typeof(p_old) IS DISTINCT FROM 'object' THEN
        p_old := '{}';
    END IF;
    IF jsonb_typeof(p_new) IS DISTINCT FROM 'object' THEN
        RETURN p_old;
    END IF;
    v_room := @max_metadata@ - (SELECT count(*) FROM jsonb_object_keys(p_old));
    RETURN p_old || coalesce((SELECT jsonb_object_agg(n.name, p_new -> n.name) FROM (
        SELECT k.name, p_old ? k.name AS known, count(*) FILTER (WHERE NOT p_old ? k.name)
            OVER (ORDER BY k.ord) AS place
        FROM jsonb_object_keys(p_new) WITH ORDINALITY k (name, ord)) n
        WHERE n.known OR n.place <= v_room), '{}');
END $$;

-- Of versions 1 to 13.
DROP FUNCTION IF EXISTS @schema@.register_workers(text[], boolean[], text[], text[], bigint[], bigint[],
    bigint[], bigint[], boolean[], text[], bigint[], text[], bigint[], bigint[], text[], bigint[],
    boolean[], bigint);

-- p_deaths: the last death of each that its process knows, as JSON. p_refuse: refuse an explicit id that
-- belongs to a living worker of another process.
CREATE OR REPLACE FUNCTION @schema@.register_workers(
    p_ids text[], p_explicit boolean[], p_types text[], p_groups text[], p_intervals bigint[],
    p_stale_after bigint[], p_stall_after bigint[], p_startup_grace bigint[], p_beats_only boolean[],
    p_metadata text[], p_restarts bigint[], p_hostnames text[], p_pids bigint[],
    p_process_started bigint[], p_boot_ids text[], p_pid_namespaces bigint[], p_own boolean[],
    p_session bigint, p_deaths text[] DEFAULT NULL, p_refuse boolean[] DEFAULT NULL,
    p_task_deadline bigint[] DEFAULT NULL, p_progress_after bigint[] DEFAULT NULL
) RETURNS TABLE (ord bigint, worker_id text, incarnation bigint)
LANGUAGE plpgsql
    SET lock_timeout = '100ms' SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    r record;
    v_session bigint := CASE WHEN @schema@.is_session(p_session) THEN p_session END;
    -- The first of each id: another one of the same id supersedes it.
    v_left bigint[] := ARRAY(SELECT DISTINCT ON (u.id COLLATE "C") u.ord
        FROM unnest(p_ids) WITH ORDINALITY u (id, ord) ORDER BY u.id COLLATE "C", u.ord);
    v_done bigint[] := '{}';
    v_taken bigint[] := '{}';
    v_new bigint[];
    v_ids text[];
    v_incarnations bigint[];
    v_known boolean;
    -- Those whose last life died.
    v_back text[];
BEGIN
    PERFORM @schema@.durably();
    -- One statement for all new workers, because each INSERT sets up the constraints of the table.
    -- It locks the rows of those that are known; if all is well with them, it writes these next.
    FOREACH v_known IN ARRAY ARRAY[false, true] LOOP
        WITH written AS (
            INSERT INTO @schema@.worker_heartbeats AS w (worker_id, worker_type, worker_group,
                    incarnation, heartbeat_interval, stale_after, stall_after, startup_grace,
                    beats_only, metadata, restarts, hostname, pid, process_started, boot_id,
                    pid_namespace, session_id, last_death_at, last_death_cause, last_death_detail,
                    last_death_location, last_death_run_id, last_death_task, task_deadline,
                    progress_after)
                SELECT s.id, s.worker_type, s.worker_group, @schema@.next_number(),
                    @schema@.micros(s.every), @schema@.micros(s.stale_after),
                    @schema@.micros(s.stall_after), @schema@.micros(s.startup_grace), s.beats_only,
                    s.metadata::jsonb, s.restarts, s.hostname, s.pid, s.process_started, s.boot_id,
                    s.pid_namespace, CASE WHEN s.own THEN v_session END,
                    now() - @schema@.micros((s.death ->> 'age')::bigint), s.death ->> 'cause',
                    s.death ->> 'detail', s.death ->> 'location', s.death ->> 'run_id',
                    s.death ->> 'task', @schema@.micros(s.task_deadline),
                    @schema@.micros(s.progress_after)
                FROM (SELECT u.*, u.last_death::jsonb AS death
                    FROM unnest(p_ids, p_explicit, p_types, p_groups, p_intervals, p_stale_after,
                        p_stall_after, p_startup_grace, p_beats_only, p_metadata, p_restarts,
                        p_hostnames, p_pids, p_process_started, p_boot_ids, p_pid_namespaces, p_own,
                        p_deaths, p_task_deadline, p_progress_after) WITH ORDINALITY
                        AS u (id, explicit, worker_type, worker_group, every, stale_after, stall_after,
                            startup_grace, beats_only, metadata, restarts, hostname, pid,
                            process_started, boot_id, pid_namespace, own, last_death, task_deadline,
                            progress_after, ord)
                    WHERE u.ord IN (SELECT * FROM unnest(v_left))
                    -- So that two batches cannot deadlock.
                    ORDER BY u.id COLLATE "C") s
                ON CONFLICT ON CONSTRAINT worker_heartbeats_pkey DO UPDATE SET
                    -- The key is among the columns, so the lock is FOR UPDATE.
                    worker_id = excluded.worker_id,
                    -- Drawn after the row is locked: a later registration has a higher number.
                    incarnation = @schema@.next_number(w.incarnation),
                    worker_type = excluded.worker_type, worker_group = excluded.worker_group,
                    status = 'starting', reason = NULL, last_heartbeat_at = NULL,
                    last_progress_at = NULL, started_at = now(), current_run_id = NULL,
                    lease_expires_at = NULL, current_task = NULL, progress_done = NULL,
                    progress_total = NULL, beats = 0, last_location = NULL, restarts = excluded.restarts,
                    heartbeat_interval = excluded.heartbeat_interval,
                    stale_after = excluded.stale_after, stall_after = excluded.stall_after,
                    startup_grace = excluded.startup_grace, beats_only = excluded.beats_only,
                    hostname = excluded.hostname, pid = excluded.pid,
                    process_started = excluded.process_started, boot_id = excluded.boot_id,
                    pid_namespace = excluded.pid_namespace, session_id = excluded.session_id,
                    ended_at = NULL, ended_cause = NULL, ended_detail = NULL, ended_location = NULL,
                    last_status = NULL, metadata = excluded.metadata, withdrawn = NULL,
                    stack = NULL, task_deadline = excluded.task_deadline, progress_after = excluded.progress_after,
                    (last_death_at, last_death_cause, last_death_detail, last_death_location,
                        last_death_run_id, last_death_task) = (
                        -- The latest of the row's end, its earlier death and what the process knows.
                        SELECT d.died_at, d.cause, d.detail, d.location, d.run_id, d.task FROM (VALUES
                            (1, CASE WHEN w.status = 'dead' THEN w.ended_at END, w.ended_cause,
                                w.ended_detail, w.ended_location, w.current_run_id, w.current_task),
                            (2, w.last_death_at, w.last_death_cause, w.last_death_detail,
                                w.last_death_location, w.last_death_run_id, w.last_death_task),
                            (3, excluded.last_death_at, excluded.last_death_cause,
                                excluded.last_death_detail, excluded.last_death_location,
                                excluded.last_death_run_id, excluded.last_death_task))
                            AS d (place, died_at, cause, detail, location, run_id, task)
                        ORDER BY d.died_at DESC NULLS LAST, d.place LIMIT 1)
                -- The rows are locked even if this is false.
                WHERE v_known
                RETURNING w.worker_id, w.incarnation
        )
        SELECT array_agg(f.ord), array_agg(f.worker_id), array_agg(f.incarnation)
            INTO v_new, v_ids, v_incarnations
            FROM (SELECT u.ord, n.worker_id, n.incarnation FROM written n
                JOIN unnest(p_ids) WITH ORDINALITY u (id, ord) ON u.id COLLATE "C" = n.worker_id
                WHERE u.ord IN (SELECT * FROM unnest(v_left))) f;
        RETURN QUERY SELECT * FROM unnest(v_new, v_ids, v_incarnations);
        IF v_known THEN
            PERFORM @schema@.record_events('recovered', 3, v_back, true);
        ELSE
            -- Deaths that this store knows nothing of.
            PERFORM @schema@.record_events('died', 1, ARRAY(SELECT n.id
                FROM unnest(v_new, v_ids) n (ord, id) WHERE p_deaths[n.ord] IS NOT NULL), true, 0);
        END IF;
        v_done := v_done || v_new;
        v_left := ARRAY(SELECT * FROM unnest(v_left) EXCEPT SELECT * FROM unnest(v_new));
        EXIT WHEN v_known OR v_left = '{}';
        FOR r IN
            SELECT u.ord, u.explicit, w.worker_id, w.pid, w.hostname, w.started_at
            FROM unnest(p_ids, p_explicit, p_refuse, p_hostnames, p_pids, p_process_started,
                p_boot_ids, p_pid_namespaces) WITH ORDINALITY
                AS u (id, explicit, refuse, hostname, pid, process_started, boot_id, pid_namespace, ord)
            JOIN @schema@.worker_heartbeats w ON w.worker_id = u.id
            WHERE u.ord IN (SELECT * FROM unnest(v_left))
            -- Of another process.
            AND (u.pid IS NULL OR (w.hostname, w.pid, w.process_started, w.boot_id, w.pid_namespace)
                IS DISTINCT FROM (u.hostname, u.pid, u.process_started, u.boot_id, u.pid_namespace))
            AND (NOT u.explicit OR u.refuse AND w.ended_at IS NULL
                AND NOT @schema@.is_stale(w, @schema@.default_stale_after()))
            ORDER BY u.id COLLATE "C"
        LOOP
            IF r.explicit THEN
                RAISE EXCEPTION 'the id % belongs to a living worker%, registered % s ago', r.worker_id,
                    coalesce(' of process ' || r.pid || ' on ' || r.hostname, ''),
                    floor(extract(epoch FROM now() - r.started_at))
                    USING ERRCODE = 'invalid_parameter_value';
            END IF;
            v_taken := v_taken || r.ord;
        END LOOP;
        v_left := ARRAY(SELECT * FROM unnest(v_left) EXCEPT SELECT * FROM unnest(v_taken));
        -- The earlier life may still be at work, and believe in its leases until then.
        UPDATE @schema@.leases l SET expires_at = @schema@.belief_ends(w)
            FROM @schema@.worker_heartbeats w
            WHERE w.worker_id IN (SELECT u.id FROM unnest(p_ids) WITH ORDINALITY u (id, ord)
                WHERE u.ord IN (SELECT * FROM unnest(v_left)))
            AND l.worker_id = w.worker_id AND l.expires_at > @schema@.belief_ends(w);
        v_back := @schema@.record_replaced(p_ids, p_deaths, p_restarts, p_hostnames, p_pids,
            p_process_started, p_boot_ids, p_pid_namespaces, v_left);
    END LOOP;
    -- Those of an id that the batch has registered by now, and generated ids of other processes.
    IF cardinality(v_done) < cardinality(p_ids) THEN
        FOR r IN
            SELECT u.*, u.ord = ANY (v_taken) AS is_taken
            FROM unnest(p_ids, p_explicit, p_types, p_groups, p_intervals, p_stale_after,
                p_stall_after, p_startup_grace, p_beats_only, p_metadata, p_restarts, p_hostnames,
                p_pids, p_process_started, p_boot_ids, p_pid_namespaces, p_own, p_deaths, p_refuse,
                p_task_deadline, p_progress_after) WITH ORDINALITY
                AS u (id, explicit, worker_type, worker_group, every, stale_after, stall_after,
                    startup_grace, beats_only, metadata, restarts, hostname, pid, process_started,
                    boot_id, pid_namespace, own, death, refuse, task_deadline, progress_after, ord)
            WHERE u.ord NOT IN (SELECT * FROM unnest(v_done))
            ORDER BY u.id COLLATE "C", u.ord
        LOOP
            RETURN QUERY SELECT r.ord, n.worker_id, n.incarnation
                FROM @schema@.register_workers(
                    -- The number makes it unique.
                    ARRAY[CASE WHEN r.is_taken THEN r.id || '-' || @schema@.next_number() ELSE r.id END],
                    ARRAY[r.explicit OR r.is_taken], ARRAY[r.worker_type], ARRAY[r.worker_group],
                    ARRAY[r.every], ARRAY[r.stale_after], ARRAY[r.stall_after], ARRAY[r.startup_grace],
                    ARRAY[r.beats_only], ARRAY[r.metadata], ARRAY[r.restarts], ARRAY[r.hostname],
                    ARRAY[r.pid], ARRAY[r.process_started], ARRAY[r.boot_id], ARRAY[r.pid_namespace],
                    ARRAY[r.own], p_session, ARRAY[r.death], ARRAY[r.refuse], ARRAY[r.task_deadline],
                    ARRAY[r.progress_after]) n;
        END LOOP;
    END IF;
END $$;

-- Why a write for an incarnation is refused; NULL if it is accepted.
CREATE OR REPLACE FUNCTION @schema@.refusal(p_wanted bigint, p_found bigint, p_ended_at timestamptz)
    RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN p_found > p_wanted THEN 'superseded'
        WHEN p_found IS DISTINCT FROM p_wanted THEN 'unknown'
        WHEN p_ended_at IS NOT NULL THEN 'ended'
    END
$$;

-- Of versions 1 to 13.
DROP FUNCTION IF EXISTS @schema@.beat_workers(text[], bigint[], text[], text[], bigint[], bigint[], text[],
    text[], bigint[], bigint[], bigint[], text[], bigint, bigint, bigint, text, bigint);

-- Each worker at most once in a batch. Returns the refused ones.
CREATE OR REPLACE FUNCTION @schema@.beat_workers(
    p_ids text[], p_incarnations bigint[], p_statuses text[], p_reasons text[],
    p_heartbeat_ages bigint[], p_progress_ages bigint[], p_run_ids text[], p_tasks text[],
    p_done bigint[], p_total bigint[], p_beats bigint[], p_metadata text[], p_locations text[],
    p_session bigint,
    p_pid bigint, p_process_started bigint, p_boot_id text, p_pid_namespace bigint,
    p_stacks text[]
) RETURNS TABLE (ord bigint, answer text) LANGUAGE plpgsql
    SET lock_timeout = '100ms' SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    v_session bigint := CASE WHEN @schema@.is_session(p_session) THEN p_session END;
    -- Later than any write that this call waits for.
    v_latest timestamptz := clock_timestamp() + interval '10 seconds';
    v_taken bigint[];
    v_unwell text[];
    v_stacks text[];
    v_recovered text[];
BEGIN
    PERFORM @schema@.durably();
    WITH taken AS (
        UPDATE @schema@.worker_heartbeats w SET
            last_status = w.status,
            status = b.status,
            reason = b.reason,
            -- Never moves back: reports may arrive out of order. A time in the future, which another
            -- program wrote, does not stay.
            last_heartbeat_at = greatest(now() - @schema@.micros(b.heartbeat_age),
                CASE WHEN w.last_heartbeat_at <= v_latest THEN w.last_heartbeat_at END),
            last_progress_at = greatest(now() - @schema@.micros(b.progress_age),
                CASE WHEN w.last_progress_at <= v_latest THEN w.last_progress_at END),
            current_run_id = b.run_id,
            current_task = b.task,
            progress_done = b.done,
            progress_total = b.total,
            beats = b.beats,
            last_location = b.location,
            -- Without a new one, the one before stays until the worker is well.
            stack = CASE WHEN b.stack IS NOT NULL THEN nullif(b.stack, '')
                WHEN NOT @schema@.is_recent(b.status) THEN w.stack END,
            metadata = CASE WHEN b.metadata IS NULL THEN w.metadata
                ELSE @schema@.merged(w.metadata, b.metadata::jsonb) END,
            lease_expires_at = (SELECT max(l.expires_at) FROM @schema@.leases l
                WHERE l.worker_id = b.id AND l.incarnation = b.incarnation AND l.expires_at > now()),
            -- A process that forwards heartbeats of other processes proves nothing about them by
            -- its own end.
            session_id = CASE WHEN w.pid = p_pid AND w.process_started = p_process_started
                AND w.boot_id = p_boot_id AND w.pid_namespace = p_pid_namespace THEN v_session END
        FROM unnest(p_ids, p_incarnations, p_statuses, p_reasons, p_heartbeat_ages, p_progress_ages,
            p_run_ids, p_tasks, p_done, p_total, p_beats, p_metadata, p_locations,
            p_stacks) WITH ORDINALITY
            AS b (id, incarnation, status, reason, heartbeat_age, progress_age, run_id, task, done,
                total, beats, metadata, location, stack, ord)
        WHERE w.worker_id = b.id AND w.incarnation = b.incarnation AND w.ended_at IS NULL
        RETURNING b.ord, b.id, w.status, w.last_status <> w.status AS is_other,
            @schema@.is_unwell(w.status) AS is_unwell, @schema@.is_unwell(w.last_status) AS was_unwell,
            b.stack <> '' AS has_stack
    )
    SELECT array_agg(t.ord), array_agg(t.id) FILTER (WHERE t.is_unwell AND t.is_other),
        array_agg(t.id) FILTER (WHERE t.is_unwell AND NOT t.is_other AND t.has_stack),
        array_agg(t.id) FILTER (WHERE t.was_unwell AND NOT t.is_unwell)
        INTO v_taken, v_unwell, v_stacks, v_recovered FROM taken t;
    PERFORM @schema@.record_events('unwell', 2, v_unwell);
    PERFORM @schema@.record_events('recovered', 3, v_recovered);
    PERFORM @schema@.record_stacks(v_stacks);
    IF EXISTS (SELECT FROM @schema@.deferred_heartbeats) THEN
        DELETE FROM @schema@.deferred_heartbeats d WHERE d.ctid = ANY (ARRAY(
            SELECT d.ctid FROM @schema@.deferred_heartbeats d
            WHERE d.worker_id IN (SELECT p_ids[t.ord] FROM unnest(v_taken) t (ord))
            FOR UPDATE SKIP LOCKED));
    END IF;
    IF cardinality(v_taken) = cardinality(p_ids) THEN
        RETURN;
    END IF;
    RETURN QUERY
        SELECT b.ord, coalesce(@schema@.refusal(b.incarnation, w.incarnation, w.ended_at), 'unknown')
        FROM unnest(p_ids, p_incarnations) WITH ORDINALITY AS b (id, incarnation, ord)
        LEFT JOIN @schema@.worker_heartbeats w ON w.worker_id = b.id
        WHERE NOT EXISTS (SELECT FROM unnest(v_taken) t (ord) WHERE t.ord = b.ord);
END $$;

-- Of versions 1 to 13.
DROP FUNCTION IF EXISTS @schema@.stop_workers(text[], bigint[], boolean[], text[], text[], bigint[]);

-- Each worker at most once in a batch. Returns the refused ones, and as 'busy' those that have ended
-- now and have a lease that is locked: another call releases it.
CREATE OR REPLACE FUNCTION @schema@.stop_workers(
    p_ids text[], p_incarnations bigint[], p_stopped boolean[], p_causes text[], p_details text[],
    p_locations text[], p_agos bigint[]
) RETURNS TABLE (ord bigint, answer text) LANGUAGE plpgsql
    SET lock_timeout = '100ms' SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    v_left text[];
    v_died text[];
    v_stopped text[];
BEGIN
    PERFORM @schema@.durably();
    PERFORM FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (p_ids)
        ORDER BY w.worker_id FOR UPDATE;
    -- The worker itself reports its end, so it no longer believes in its leases.
    DELETE FROM @schema@.leases l WHERE l.run_id = ANY (ARRAY(
        SELECT l.run_id FROM @schema@.leases l
        WHERE (l.worker_id, l.incarnation) IN (SELECT * FROM unnest(p_ids, p_incarnations))
        ORDER BY l.run_id FOR UPDATE SKIP LOCKED))
        AND EXISTS (SELECT FROM @schema@.worker_heartbeats w
            WHERE w.worker_id = l.worker_id AND w.incarnation >= l.incarnation);
    v_left := ARRAY(SELECT l.worker_id FROM @schema@.leases l
        WHERE (l.worker_id, l.incarnation) IN (SELECT * FROM unnest(p_ids, p_incarnations)));
    RETURN QUERY
        SELECT f.ord, f.answer FROM (
            SELECT s.ord, CASE
                WHEN s.id = ANY (v_left) AND w.incarnation >= s.incarnation THEN 'busy'
                ELSE @schema@.refusal(s.incarnation, w.incarnation, w.ended_at) END AS answer
            FROM unnest(p_ids, p_incarnations) WITH ORDINALITY AS s (id, incarnation, ord)
            LEFT JOIN @schema@.worker_heartbeats w ON w.worker_id = s.id
        ) f WHERE f.answer IS NOT NULL;
    WITH ended AS (
        UPDATE @schema@.worker_heartbeats w SET
            last_status = w.status, status = CASE WHEN s.stopped THEN 'stopped' ELSE 'dead' END,
            ended_at = now() - @schema@.micros(s.ago), ended_cause = s.cause,
            ended_detail = s.detail, ended_location = s.location, lease_expires_at = NULL,
            session_id = NULL
            FROM unnest(p_ids, p_incarnations, p_stopped, p_causes, p_details, p_locations, p_agos)
                AS s (id, incarnation, stopped, cause, detail, location, ago)
            WHERE w.worker_id = s.id AND w.incarnation = s.incarnation AND w.ended_at IS NULL
            RETURNING s.id, s.stopped
    )
    SELECT array_agg(e.id) FILTER (WHERE NOT e.stopped), array_agg(e.id) FILTER (WHERE e.stopped)
        INTO v_died, v_stopped FROM ended e;
    PERFORM @schema@.record_events('died', 1, v_died);
    PERFORM @schema@.record_events('stopped', 4, v_stopped);
END $$;
