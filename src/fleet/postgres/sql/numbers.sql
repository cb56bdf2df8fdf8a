-- Incarnations and fences: numbers that are higher than all that were given before, by any server that
-- had this data. They grow by one from a starting point, which is at least the wall clock in
-- microseconds. A server that takes over begins at a new one. So they stay below 2^53, and a data loss
-- cannot bring earlier ones back, unless the clock is also set back beyond the last starting point.
CREATE SEQUENCE IF NOT EXISTS @schema@.numbers AS bigint;

-- The source and the cluster that the numbers come from, as hashes, and when claims begin again, in
-- microseconds since 1970. In sequences, because setval takes effect at once, and for good: a
-- transaction that stays open does not hold up others.
CREATE SEQUENCE IF NOT EXISTS @schema@.numbers_source AS bigint MINVALUE 0;
CREATE SEQUENCE IF NOT EXISTS @schema@.numbers_cluster AS bigint MINVALUE 0;
CREATE SEQUENCE IF NOT EXISTS @schema@.claims_from AS bigint MINVALUE 0;

-- These are single expressions, and STABLE as what they call, so that they are inlined.
CREATE OR REPLACE FUNCTION @schema@.unix_micros(p_time timestamptz) RETURNS bigint
    LANGUAGE sql STABLE AS $$ SELECT (extract(epoch FROM p_time) * 1000000)::bigint $$;

-- What the numbers come from: this start of this server, and this file of the sequence. Another server
-- of the cluster, a restored backup or snapshot, a copy and a sequence that was reset differ in one of
-- them.
CREATE OR REPLACE FUNCTION @schema@.current_source() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT hashtextextended(concat(@schema@.unix_micros(pg_postmaster_start_time()), '/',
        pg_relation_filepath('@schema@.numbers')), 0) & 9223372036854775807
$$;

CREATE OR REPLACE FUNCTION @schema@.is_current_source() RETURNS boolean LANGUAGE sql AS $$
    SELECT coalesce(pg_sequence_last_value('@schema@.numbers_source') = @schema@.current_source(), false)
$$;

-- The same for all starts of a server, and another one after a promotion: that raises the timeline.
CREATE OR REPLACE FUNCTION @schema@.current_cluster() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN hashtextextended(concat_ws('/', (SELECT c.system_identifier FROM pg_control_system() c),
        left(pg_walfile_name(pg_current_wal_lsn()), 8),
        (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())), 0)
        & 9223372036854775807;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_function THEN
    RETURN @schema@.current_source();
END $$;

-- A row or a clock that is far off must not use up the numbers: beyond this, it does not count.
CREATE OR REPLACE FUNCTION @schema@.highest_number() RETURNS bigint
    LANGUAGE sql IMMUTABLE AS $$ SELECT 8000000000000000 $$;

-- A number higher than all that were given before, and higher than p_above, which the data has.
CREATE OR REPLACE FUNCTION @schema@.next_number(p_above bigint DEFAULT 0) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    v_next bigint;
    v_above bigint := CASE WHEN p_above < @schema@.highest_number() THEN p_above ELSE 0 END;
BEGIN
    IF @schema@.is_current_source() THEN
        v_next := nextval('@schema@.numbers');
        IF v_next > v_above THEN
            RETURN v_next;
        END IF;
    END IF;
    RETURN @schema@.renumber(v_above);
END $$;

-- The same, for a server that has just taken over, and for a sequence that is behind the data: sets a
-- new starting point.
CREATE OR REPLACE FUNCTION @schema@.renumber(p_above bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    -- More numbers than a standby can have missed.
    v_margin constant bigint := 100000000;
    v_most constant bigint := @schema@.highest_number();
    -- First: a standby refuses it.
    v_next bigint := nextval('@schema@.numbers');
    v_known bigint;
    v_is_same boolean;
BEGIN
    WHILE NOT pg_try_advisory_xact_lock(hashtextextended('worker_heartbeat numbers @schema@', 0)) LOOP
        PERFORM pg_sleep(0.005);
        -- Another transaction has done it, and may still be open.
        IF @schema@.is_current_source() THEN
            v_next := nextval('@schema@.numbers');
            IF v_next > p_above THEN
                RETURN v_next;
            END IF;
        END IF;
    END LOOP;
    v_next := nextval('@schema@.numbers');
    IF v_next > p_above AND @schema@.is_current_source() THEN
        RETURN v_next;
    END IF;
    v_known := coalesce(pg_sequence_last_value('@schema@.numbers_cluster'), 0);
    v_is_same := v_known = @schema@.current_cluster();
    PERFORM setval('@schema@.numbers', greatest(
        -- Two standbys that are both promoted go on differently.
        v_next + CASE WHEN v_is_same THEN 0 ELSE v_margin + @schema@.current_source() % v_margin END,
        least(v_most, greatest(p_above + v_margin, @schema@.unix_micros(clock_timestamp()),
            v_margin + (SELECT max(w.incarnation) FROM @schema@.worker_heartbeats w
                WHERE w.incarnation < v_most),
            v_margin + (SELECT max(l.fence) FROM @schema@.leases l WHERE l.fence < v_most)))));
    IF NOT v_is_same THEN
        -- Not in a new schema. A copy without its sequences has leases.
        IF v_known > 0 OR EXISTS (SELECT FROM @schema@.leases) THEN
            PERFORM setval('@schema@.claims_from', @schema@.unix_micros(
                clock_timestamp() + interval '10 seconds'));
        END IF;
        PERFORM setval('@schema@.numbers_cluster', @schema@.current_cluster());
    END IF;
    -- Last: from now on, other transactions draw numbers.
    PERFORM setval('@schema@.numbers_source', @schema@.current_source());
    RETURN nextval('@schema@.numbers');
END $$;

-- Whether runs that seem to be free may not be claimed yet, because a server took over that may have
-- lost leases. Meanwhile the processes that hold them come to this server, and learn that.
CREATE OR REPLACE FUNCTION @schema@.claims_wait() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT @schema@.is_current_source() THEN
        PERFORM @schema@.renumber(0);
    END IF;
    RETURN coalesce(@schema@.unix_micros(now()) < pg_sequence_last_value('@schema@.claims_from'), false);
END $$;
