-- Each statement can be run again: it also brings files of older versions up to date.
-- What happened to the workers, by numbers that also incarnations and fences are drawn from.
CREATE TABLE IF NOT EXISTS events (
    seq           INTEGER PRIMARY KEY,
    -- When it happened.
    at            INTEGER NOT NULL,
    -- 1: error, 2: warning, 3: info, 4: debug. Each level has room of its own.
    level         INTEGER NOT NULL,
    kind          TEXT NOT NULL,
    worker_id     TEXT,
    incarnation   INTEGER,
    worker_type   TEXT,
    worker_group  TEXT,
    hostname      TEXT,
    pid           INTEGER,
    state         TEXT,
    -- How the worker ended.
    stopped       INTEGER,
    cause         TEXT,
    detail        TEXT,
    location      TEXT,
    reason        TEXT,
    last_location TEXT,
    run_id        TEXT,
    task          TEXT,
    stack         TEXT,
    restarts      INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS events_by_level ON events (level, seq);
CREATE INDEX IF NOT EXISTS events_of_groups ON events (worker_group, seq)
    WHERE kind IN ('group_offline', 'group_online');

-- How many workers of each type have ended in which way.
CREATE TABLE IF NOT EXISTS endings (
    worker_type TEXT NOT NULL,
    how         TEXT NOT NULL,
    total       INTEGER NOT NULL,
    PRIMARY KEY (worker_type, how)
) WITHOUT ROWID;
