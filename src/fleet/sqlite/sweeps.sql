-- Each statement can be run again: it also brings files of older versions up to date.
CREATE INDEX IF NOT EXISTS workers_ended ON workers (ended_at) WHERE ended_at IS NOT NULL;

-- The last sweep of a sweeper, so that those of other processes need not do the same.
CREATE TABLE IF NOT EXISTS last_sweep (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    swept_at      INTEGER NOT NULL,
    watched_since INTEGER NOT NULL,
    threshold_ns  INTEGER NOT NULL
);
