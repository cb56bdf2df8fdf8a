-- Sessions: the end of a process's session proves that the process is gone.

-- Changes when the server is started, crashes or is promoted: these end sessions, too, and prove
-- nothing about processes.
CREATE OR REPLACE FUNCTION @schema@.server_epoch() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT concat_ws('/', extract(epoch FROM pg_postmaster_start_time()),
        (SELECT extract(epoch FROM b.stats_reset) FROM pg_stat_bgwriter b))
$$;

-- NULL if the server does not show the start of this session.
CREATE OR REPLACE FUNCTION @schema@.open_session() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_session bigint := @schema@.next_number();
BEGIN
    INSERT INTO @schema@.sessions (session_id, backend_pid, backend_start, server_epoch)
        SELECT v_session, a.pid, a.backend_start, @schema@.server_epoch()
        FROM pg_stat_activity a WHERE a.pid = pg_backend_pid() AND a.backend_start IS NOT NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
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
-- back through another session within that time.
CREATE OR REPLACE FUNCTION @schema@.look_for_sessions(p_grace interval, p_dry_run boolean)
    RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    v_epoch text := @schema@.server_epoch();
    v_lost bigint[];
BEGIN
    IF NOT p_dry_run THEN
        -- A long gap between two sweeps is not charged in full: if the server itself was suspended,
        -- no process could come back.
        UPDATE @schema@.sessions s SET
            lost_for = CASE WHEN s.lost_at IS NULL THEN interval '0'
                ELSE s.lost_for + least(now() - s.looked_at, (SELECT @schema@.longest_absence(p_grace)))
            END,
            lost_at = coalesce(s.lost_at, now()),
            looked_at = now()
        -- A row that another transaction locks is looked at by a later sweep.
        WHERE s.session_id = ANY (ARRAY(SELECT s.session_id FROM @schema@.sessions s
            WHERE s.server_epoch = v_epoch AND (s.looked_at IS NULL OR s.looked_at < now())
            AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = s.backend_pid
                -- backend_start is NULL if this role may not see it: that proves nothing.
                AND (a.backend_start = s.backend_start OR a.backend_start IS NULL))
            FOR UPDATE SKIP LOCKED));
        -- Ended sessions that no living worker refers to.
        DELETE FROM @schema@.sessions s
            WHERE s.session_id = ANY (ARRAY(SELECT s.session_id FROM @schema@.sessions s
            WHERE (s.lost_at IS NOT NULL OR s.server_epoch <> v_epoch)
            AND NOT EXISTS (SELECT FROM @schema@.worker_heartbeats w
                WHERE w.session_id = s.session_id AND w.ended_at IS NULL)
            FOR UPDATE SKIP LOCKED));
    END IF;
    SELECT array_agg(s.session_id) INTO v_lost FROM @schema@.sessions s
        WHERE s.server_epoch = v_epoch AND s.lost_at IS NOT NULL AND s.lost_for >= p_grace;
    RETURN coalesce(v_lost, '{}');
END $$;
