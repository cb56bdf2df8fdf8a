-- Sessions: the end of a process's session proves that the process is gone.

-- Changes when the server is started, crashes or is promoted: these end sessions, too, and prove
-- nothing about processes. 'unknown' if this role may not see it.
CREATE OR REPLACE FUNCTION @schema@.server_epoch() RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN concat_ws('/', extract(epoch FROM pg_postmaster_start_time()),
        (SELECT extract(epoch FROM b.stats_reset) FROM pg_stat_bgwriter b));
EXCEPTION WHEN insufficient_privilege THEN
    RETURN 'unknown';
END $$;

-- When the server was started last, if the schema was there before. NULL also if this role may not see it.
CREATE OR REPLACE FUNCTION @schema@.last_restart() RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT pg_postmaster_start_time() FROM @schema@.schema_migrations m
        HAVING min(m.applied_at) < pg_postmaster_start_time());
EXCEPTION WHEN insufficient_privilege THEN
    RETURN NULL;
END $$;

-- NULL if the server does not show the start of this session.
CREATE OR REPLACE FUNCTION @schema@.open_session() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_session bigint := @schema@.next_number();
    v_epoch text := @schema@.server_epoch();
    v_start timestamptz;
BEGIN
    BEGIN
        SELECT a.backend_start INTO v_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid();
    EXCEPTION WHEN insufficient_privilege THEN
        RETURN NULL;
    END;
    IF v_start IS NULL OR v_epoch = 'unknown' THEN
        RETURN NULL;
    END IF;
    INSERT INTO @schema@.sessions (session_id, backend_pid, backend_start, server_epoch)
        VALUES (v_session, pg_backend_pid(), v_start, v_epoch);
    PERFORM set_config('worker_heartbeat.session', v_session::text, false);
    RETURN v_session;
END $$;

-- Whether this is still the session that was opened. Behind a proxy that pools transactions, each
-- statement may run in another session.
CREATE OR REPLACE FUNCTION @schema@.is_session(p_session bigint) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT coalesce(current_setting('worker_heartbeat.session', true) = p_session::text, false)
        AND EXISTS (SELECT FROM @schema@.sessions s
            WHERE s.session_id = p_session AND s.backend_pid = pg_backend_pid())
$$;

-- How much of the time between two sweeps counts as the absence of a session. None while the server, the
-- database or the role has no free connection: processes that lost theirs cannot come back.
CREATE OR REPLACE FUNCTION @schema@.longest_absence(p_grace interval) RETURNS interval
    LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN (SELECT sum(d.numbackends) FROM pg_stat_database d) >= (
            SELECT sum(CASE s.name WHEN 'max_connections' THEN 1 ELSE -1 END * s.setting::integer)
            FROM pg_settings s WHERE s.name IN ('max_connections', 'superuser_reserved_connections',
                'reserved_connections'))
        OR EXISTS (SELECT FROM pg_database d JOIN pg_stat_database a ON a.datid = d.oid
            WHERE d.datname = current_database() AND d.datconnlimit >= 0
            AND a.numbackends >= d.datconnlimit)
        OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = session_user AND r.rolconnlimit >= 0
            AND r.rolconnlimit <= (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid))
        THEN interval '0'
        ELSE p_grace / 2
    END
$$;

-- The sessions that are missing for longer than the grace. A process whose connection broke comes
-- back through another session within that time. None if this role may not see the sessions of the
-- server: then they prove nothing. p_dry_run: only reads. Rows that others lock are skipped.
CREATE OR REPLACE FUNCTION @schema@.look_for_sessions(p_grace interval, p_dry_run boolean)
    RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    v_epoch text := @schema@.server_epoch();
    v_missing bigint[];
BEGIN
    IF NOT p_dry_run THEN
        BEGIN
            SELECT array_agg(s.session_id) INTO v_missing FROM @schema@.sessions s
                WHERE s.server_epoch = v_epoch
                AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = s.backend_pid
                    -- backend_start is NULL if this role may not see it: that proves nothing.
                    AND (a.backend_start = s.backend_start OR a.backend_start IS NULL));
        EXCEPTION WHEN insufficient_privilege THEN
            RETURN '{}';
        END;
        -- A long gap between two sweeps is not charged in full: if the server itself was suspended,
        -- no process could come back.
        UPDATE @schema@.sessions s SET
            lost_for = CASE WHEN s.lost_at IS NULL THEN interval '0'
                ELSE s.lost_for + least(now() - s.looked_at, (SELECT @schema@.longest_absence(p_grace)))
            END,
            lost_at = coalesce(s.lost_at, now()),
            looked_at = now()
        WHERE s.session_id IN (SELECT l.session_id FROM @schema@.sessions l
            WHERE l.session_id = ANY (v_missing) AND (l.looked_at IS NULL OR l.looked_at < now())
            FOR UPDATE SKIP LOCKED);
        -- Ended sessions that no living worker refers to.
        DELETE FROM @schema@.sessions s WHERE s.session_id IN (SELECT l.session_id
            FROM @schema@.sessions l
            WHERE (l.lost_at IS NOT NULL OR l.server_epoch <> v_epoch)
            AND NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w
                WHERE w.session_id = l.session_id AND w.ended_at IS NULL)
            FOR UPDATE SKIP LOCKED);
    END IF;
    RETURN coalesce((SELECT array_agg(s.session_id) FROM @schema@.sessions s
        WHERE s.server_epoch = v_epoch AND s.lost_at IS NOT NULL AND s.lost_for >= p_grace
        -- The process is there: it came back through another session, and found the row of a worker
        -- locked, which therefore names the earlier one.
        AND NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w JOIN @schema@.deferred_heartbeats d
            ON d.worker_id = w.worker_id AND d.incarnation = w.incarnation
            WHERE w.session_id = s.session_id AND w.ended_at IS NULL AND d.heartbeat_at > s.lost_at)),
        '{}');
END $$;
