-- Events: what happened to the workers, to be read later. Each is recorded by the transaction of
-- the change that it records. It is a record only: if it cannot be kept, the change is made all the
-- same, and the server's log has a warning.
CREATE TABLE IF NOT EXISTS @schema@.fleet_events (
    -- From the same numbers as incarnations and fences, so that it never goes back.
    seq bigint PRIMARY KEY,
    -- When it happened.
    at timestamptz NOT NULL,
    -- 1: error, 2: warning, 3: info, 4: debug. Each level has room of its own.
    level smallint NOT NULL,
    kind text NOT NULL,
    worker_id text COLLATE "C",
    incarnation bigint,
    worker_type text,
    worker_group text,
    hostname text,
    pid bigint,
    state text,
    -- How the worker ended.
    cause text,
    detail text,
    location text,
    reason text,
    last_location text,
    run_id text,
    task text,
    -- The call stack of its thread, a line a call.
    stack text,
    restarts bigint NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS fleet_events_level ON @schema@.fleet_events (level, seq);
CREATE INDEX IF NOT EXISTS fleet_events_worker ON @schema@.fleet_events (worker_id, seq);
CREATE INDEX IF NOT EXISTS fleet_events_groups ON @schema@.fleet_events (worker_group, seq)
    WHERE kind IN ('group_offline', 'group_online');

-- Transactions commit in another order than that of their numbers. So each one that records events says
-- before it draws a number, by a lock that excludes no other, which number was the last one then. A reader
-- reads up to the lowest of these, and a later one of its calls the rest.
CREATE OR REPLACE FUNCTION @schema@.events_class() RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtext('worker_heartbeat events @schema@')
$$;
CREATE OR REPLACE FUNCTION @schema@.announce_events() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(@schema@.events_class(),
        (coalesce(pg_sequence_last_value('@schema@.numbers'), 0) & 2147483647)::integer);
END $$;

-- Whether a process that reports this state says that the worker is not well: State::is_unwell in Rust.
CREATE OR REPLACE FUNCTION @schema@.is_unwell(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(p_state IN ('never_started', 'stalled', 'overdue', 'stale', 'dead'), false)
$$;

-- How a worker ended: event_rules::how_ended in Rust.
CREATE OR REPLACE FUNCTION @schema@.how_ended(worker @schema@.worker_heartbeats) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN worker.last_status = 'stopping'
            AND worker.ended_cause IN ('killed', 'gone', 'lost', 'process_exit') THEN 'timed_out'
        WHEN worker.status = 'stopped' THEN 'graceful'
        WHEN worker.ended_cause IN ('killed', 'gone', 'lost') THEN 'gone'
        ELSE 'failed'
    END
$$;

-- Records an event of this kind for each of these workers, as their rows are now. p_of_death: about the
-- death of an earlier life, instead of the end of this one. p_incarnation: instead of that of the row.
CREATE OR REPLACE FUNCTION @schema@.record_events(
    p_kind text, p_level integer, p_ids text[], p_of_death boolean DEFAULT false,
    p_incarnation bigint DEFAULT NULL
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(cardinality(p_ids), 0) = 0 THEN
        RETURN;
    END IF;
    BEGIN
        PERFORM @schema@.announce_events();
        INSERT INTO @schema@.fleet_events (seq, at, level, kind, worker_id, incarnation, worker_type,
                worker_group, hostname, pid, state, cause, detail, location, reason, last_location,
                run_id, task, stack, restarts)
            SELECT @schema@.next_number(),
                CASE WHEN p_kind = 'died' AND p_of_death THEN w.last_death_at
                    ELSE coalesce(w.ended_at, now()) END,
                p_level, p_kind, w.worker_id, coalesce(p_incarnation, w.incarnation), w.worker_type,
                w.worker_group, w.hostname, w.pid,
                CASE WHEN p_kind = 'died' THEN 'dead' ELSE w.status END,
                CASE WHEN p_of_death THEN w.last_death_cause ELSE w.ended_cause END,
                left(CASE WHEN p_of_death THEN w.last_death_detail ELSE w.ended_detail END, @longest_event@),
                left(CASE WHEN p_of_death THEN w.last_death_location ELSE w.ended_location END,
                    @longest_event@),
                left(CASE WHEN p_kind <> 'recovered' THEN w.reason
                    -- That of the state that has ended.
                    WHEN NOT p_of_death THEN (SELECT 'was ' || e.state || coalesce(': ' || e.reason, '')
                        FROM @schema@.fleet_events e
                        WHERE e.worker_id = w.worker_id AND e.kind = 'unwell'
                        ORDER BY e.seq DESC LIMIT 1) END, @longest_event@),
                left(w.last_location, @longest_event@),
                left(CASE WHEN p_kind = 'died' AND p_of_death THEN w.last_death_run_id
                    ELSE w.current_run_id END, @longest_event@),
                left(CASE WHEN p_kind = 'died' AND p_of_death THEN w.last_death_task
                    ELSE w.current_task END, @longest_event@),
                CASE WHEN NOT @schema@.is_recent(CASE WHEN w.ended_at IS NULL THEN w.status
                    ELSE coalesce(w.last_status, w.status) END) THEN left(w.stack, @longest_stack@) END,
                w.restarts
            FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (p_ids);
        IF p_kind IN ('died', 'stopped') THEN
            INSERT INTO @schema@.endings (worker_type, how, total)
                SELECT w.worker_type, CASE WHEN p_of_death THEN 'failed' ELSE @schema@.how_ended(w) END,
                    count(*)
                FROM @schema@.worker_heartbeats w WHERE w.worker_id = ANY (p_ids) GROUP BY 1, 2;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'worker_heartbeat: % events are not kept: %', p_kind, SQLERRM;
    END;
END $$;

-- Records that these unwell workers have a call stack now, if no event has it yet: the verdict of some
-- does not wait for it.
CREATE OR REPLACE FUNCTION @schema@.record_stacks(p_ids text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_first text[];
BEGIN
    IF p_ids IS NULL THEN
        RETURN;
    END IF;
    v_first := ARRAY(SELECT s.id FROM unnest(p_ids) s (id)
        WHERE (SELECT e.stack IS NULL FROM @schema@.fleet_events e
            WHERE e.worker_id = s.id ORDER BY e.seq DESC LIMIT 1));
    PERFORM @schema@.record_events('stack_captured', 3, v_first);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'worker_heartbeat: events of call stacks are not kept: %', SQLERRM;
END $$;

-- Before these registrations replace the lives in the rows: records deaths that are not known yet
-- because the process restarted the worker before its end was stored, and lives that other processes
-- replace while they had not ended. p_deaths: as for register_workers. Returns the workers whose death
-- is known: they come back.
CREATE OR REPLACE FUNCTION @schema@.record_replaced(
    p_ids text[], p_deaths text[], p_restarts bigint[], p_hostnames text[], p_pids bigint[],
    p_process_started bigint[], p_boot_ids text[], p_pid_namespaces bigint[], p_left bigint[]
) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    v_back text[];
BEGIN
    BEGIN
        PERFORM @schema@.announce_events();
        WITH reported AS (
            SELECT w.*, u.new_hostname, u.new_pid, u.death,
                now() - @schema@.micros((u.death ->> 'age')::bigint) AS died_at,
                coalesce((w.hostname, w.pid, w.process_started, w.boot_id, w.pid_namespace)
                    = (u.new_hostname, u.new_pid, u.new_started, u.new_boot_id, u.new_namespace), false)
                    AS is_own,
                u.new_restarts,
                CASE WHEN w.status = 'dead' THEN w.ended_at ELSE w.last_death_at END AS known_at,
                CASE WHEN w.status = 'dead' THEN w.ended_cause ELSE w.last_death_cause END AS known_cause,
                CASE WHEN w.status = 'dead' THEN w.ended_detail ELSE w.last_death_detail END
                    AS known_detail
            FROM (SELECT i.*, i.last_death::jsonb AS death FROM unnest(p_ids, p_deaths, p_restarts,
                    p_hostnames, p_pids, p_process_started, p_boot_ids, p_pid_namespaces)
                    WITH ORDINALITY AS i (id, last_death, new_restarts, new_hostname, new_pid,
                        new_started, new_boot_id, new_namespace, ord)
                WHERE i.ord IN (SELECT * FROM unnest(p_left))) u
            JOIN @schema@.worker_heartbeats w ON w.worker_id = u.id
        ), judged AS (
            SELECT r.*, r.death IS NOT NULL AND (
                r.ended_at IS NULL AND r.is_own AND r.new_restarts > r.restarts
                    AND r.died_at >= r.started_at
                OR r.known_at IS NULL
                -- Two reports of one death have different ages, because each takes time on its way.
                OR r.died_at > r.known_at + CASE WHEN (r.known_cause, r.known_detail)
                    IS NOT DISTINCT FROM (r.death ->> 'cause', r.death ->> 'detail')
                    THEN interval '2 seconds' ELSE interval '0' END) AS is_new
            FROM reported r
        ), kept AS (
            INSERT INTO @schema@.fleet_events (seq, at, level, kind, worker_id, incarnation, worker_type,
                    worker_group, hostname, pid, state, cause, detail, location, reason, last_location,
                    run_id, task, stack, restarts)
                SELECT @schema@.next_number(), CASE WHEN j.is_new THEN j.died_at ELSE now() END,
                    CASE WHEN j.is_new THEN 1 ELSE 2 END,
                    CASE WHEN j.is_new THEN 'died' ELSE 'superseded' END, j.worker_id, j.incarnation,
                    j.worker_type, j.worker_group, j.hostname, j.pid,
                    CASE WHEN j.is_new THEN 'dead' ELSE j.status END,
                    CASE WHEN j.is_new THEN j.death ->> 'cause' END,
                    CASE WHEN j.is_new THEN left(j.death ->> 'detail', @longest_event@) END,
                    CASE WHEN j.is_new THEN left(j.death ->> 'location', @longest_event@) END,
                    left(CASE WHEN j.is_new THEN j.reason
                        ELSE coalesce('process ' || j.new_pid || ' on ' || j.new_hostname,
                            'another process') || ' registered its id' END, @longest_event@),
                    left(j.last_location, @longest_event@),
                    left(CASE WHEN j.is_new THEN j.death ->> 'run_id' ELSE j.current_run_id END,
                        @longest_event@),
                    left(CASE WHEN j.is_new THEN j.death ->> 'task' ELSE j.current_task END,
                        @longest_event@),
                    CASE WHEN NOT @schema@.is_recent(j.status) THEN left(j.stack, @longest_stack@) END,
                    j.restarts
                FROM judged j WHERE j.is_new OR j.ended_at IS NULL AND NOT j.is_own
        ), counted AS (
            INSERT INTO @schema@.endings (worker_type, how, total)
                SELECT j.worker_type, 'failed', count(*) FROM judged j WHERE j.is_new GROUP BY 1
        )
        SELECT array_agg(j.worker_id) INTO v_back FROM judged j WHERE j.is_new OR j.status = 'dead';
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'worker_heartbeat: events of registrations are not kept: %', SQLERRM;
    END;
    RETURN v_back;
END $$;

-- Records what a sweep did, and the groups that are offline or online since then; each once.
CREATE OR REPLACE FUNCTION @schema@.record_sweep(
    p_marked bigint, p_released bigint, p_offline text[], p_threshold interval, p_watched_for interval
) RETURNS void LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('worker_heartbeat groups @schema@', 0));
    IF (SELECT count(*) > 100 AND count(*) > 2 * count(DISTINCT (e.worker_type, e.how))
            FROM @schema@.endings e) THEN
        WITH summed AS (
            DELETE FROM @schema@.endings e WHERE e.ctid = ANY (ARRAY(
                SELECT l.ctid FROM @schema@.endings l FOR UPDATE SKIP LOCKED))
            RETURNING e.worker_type, e.how, e.total
        )
        INSERT INTO @schema@.endings (worker_type, how, total)
            SELECT s.worker_type, s.how, sum(s.total) FROM summed s GROUP BY 1, 2;
    END IF;
    PERFORM @schema@.announce_events();
    IF p_marked + p_released > 0 THEN
        INSERT INTO @schema@.fleet_events (seq, at, level, kind, reason)
            VALUES (@schema@.next_number(), now(), 3, 'swept', format(
                'workers marked offline: %s, leases released: %s', p_marked, p_released));
    END IF;
    WITH told AS MATERIALIZED (
        SELECT DISTINCT ON (e.worker_group) e.worker_group, e.kind FROM @schema@.fleet_events e
            WHERE e.kind IN ('group_offline', 'group_online') ORDER BY e.worker_group, e.seq DESC
    )
    INSERT INTO @schema@.fleet_events (seq, at, level, kind, worker_group)
        SELECT @schema@.next_number(), now(), 1, 'group_offline', o.name FROM unnest(p_offline) o (name)
            WHERE NOT EXISTS (SELECT FROM told t
                WHERE t.worker_group = o.name AND t.kind = 'group_offline')
        UNION ALL
        SELECT @schema@.next_number(), now(), 3, 'group_online', t.worker_group FROM told t
            WHERE t.kind = 'group_offline' AND t.worker_group <> ALL (p_offline)
            AND EXISTS (SELECT FROM @schema@.worker_heartbeats w
                WHERE w.worker_group = t.worker_group AND w.ended_at IS NULL
                AND NOT @schema@.is_stale(w, p_threshold, p_watched_for));
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'worker_heartbeat: events of a sweep are not kept: %', SQLERRM;
END $$;

-- Removes events that are not kept any longer: older than p_age, and of each level all but the latest
-- p_most. NULL: never. At most p_limit at a time, so that a table that has grown for long is trimmed too.
-- Returns the most that it removed for one reason.
CREATE OR REPLACE FUNCTION @schema@.trim_events(p_age interval, p_most bigint, p_limit bigint)
    RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_over bigint[];
    v_most bigint := 0;
BEGIN
    -- 0: by age. Numbers grow with time, so the first ones are the oldest.
    FOR v_level IN 0..5 LOOP
        IF v_level = 0 THEN
            v_over := ARRAY(SELECT e.seq FROM @schema@.fleet_events e WHERE e.at <= now() - p_age
                ORDER BY e.seq LIMIT p_limit FOR UPDATE SKIP LOCKED);
        ELSIF p_most IS NOT NULL THEN
            v_over := ARRAY(SELECT e.seq FROM @schema@.fleet_events e
                WHERE e.level = v_level AND e.seq <= (SELECT l.seq FROM @schema@.fleet_events l
                    WHERE l.level = v_level ORDER BY l.seq DESC LIMIT 1 OFFSET p_most)
                ORDER BY e.seq LIMIT p_limit FOR UPDATE SKIP LOCKED);
        ELSE
            EXIT;
        END IF;
        DELETE FROM @schema@.fleet_events e WHERE e.seq = ANY (v_over);
        v_most := greatest(v_most, cardinality(v_over));
    END LOOP;
    RETURN v_most;
END $$;

-- The first p_limit events after a number, or the latest ones before one. The first row has in seq the
-- number up to which all events can be read, and nothing else.
CREATE OR REPLACE FUNCTION @schema@.read_events(
    p_after bigint DEFAULT NULL, p_before bigint DEFAULT NULL, p_limit bigint DEFAULT 100,
    p_level integer DEFAULT NULL, p_worker_id text DEFAULT NULL, p_worker_type text DEFAULT NULL,
    p_worker_group text DEFAULT NULL
) RETURNS SETOF @schema@.fleet_events LANGUAGE plpgsql AS $$
DECLARE
    -- In this order, and each with a view of its own of what was committed.
    v_last bigint := coalesce(pg_sequence_last_value('@schema@.numbers'), 0);
    v_behind bigint := (SELECT max((v_last - l.objid::bigint) & 2147483647) FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.classid = (@schema@.events_class()::bigint & 4294967295)::oid
        AND l.objsubid = 2
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        -- Others began later.
        AND (v_last - l.objid::bigint) & 2147483647 < 1073741824);
    v_row @schema@.fleet_events;
BEGIN
    v_last := v_last - coalesce(v_behind, 0);
    v_row.seq := v_last;
    RETURN NEXT v_row;
    IF p_after IS NULL THEN
        RETURN QUERY SELECT e.* FROM @schema@.fleet_events e
            WHERE e.seq <= v_last AND (p_before IS NULL OR e.seq < p_before)
            AND (p_level IS NULL OR e.level <= p_level)
            AND (p_worker_id IS NULL OR e.worker_id = p_worker_id)
            AND (p_worker_type IS NULL OR e.worker_type = p_worker_type)
            AND (p_worker_group IS NULL OR e.worker_group = p_worker_group)
            ORDER BY e.seq DESC LIMIT p_limit;
    ELSE
        RETURN QUERY SELECT e.* FROM @schema@.fleet_events e
            WHERE e.seq > p_after AND e.seq <= v_last AND (p_before IS NULL OR e.seq < p_before)
            AND (p_level IS NULL OR e.level <= p_level)
            AND (p_worker_id IS NULL OR e.worker_id = p_worker_id)
            AND (p_worker_type IS NULL OR e.worker_type = p_worker_type)
            AND (p_worker_group IS NULL OR e.worker_group = p_worker_group)
            ORDER BY e.seq LIMIT p_limit;
    END IF;
END $$;
