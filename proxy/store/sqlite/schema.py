"""The tables. A change is one more migration at the end; a file's `user_version` says how many it has had.

`jobs` has what changes, in small rows: a take or an end rewrites its row, so what can be large lies in tables of its
own. Statuses are written and compared as parameters; no statement spells one.
"""

APPLICATION_ID = 0x764C4C4D  # in the file's header: it is ours

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        number            INTEGER PRIMARY KEY,
        id                TEXT NOT NULL UNIQUE,
        endpoint          TEXT NOT NULL,
        owner             TEXT NOT NULL,
        method            TEXT,  -- NULL: the work is an input, not a request
        path              TEXT,
        content_type      TEXT,
        light             INTEGER NOT NULL,
        low_priority      INTEGER NOT NULL,
        queued_until      INTEGER,
        expires_at        INTEGER,
        execution_timeout INTEGER NOT NULL,
        retention         INTEGER NOT NULL,
        webhook           TEXT,
        sequence          INTEGER NOT NULL,
        status            TEXT NOT NULL,
        created_at        INTEGER NOT NULL,
        attempt           INTEGER NOT NULL,
        failures          INTEGER NOT NULL,
        retries           INTEGER NOT NULL,
        worker            TEXT,
        taken_at          INTEGER,
        finished_at       INTEGER,
        error_code        TEXT,
        error_message     TEXT,
        drained           INTEGER NOT NULL,
        last_event        TEXT,
        deliver_at        INTEGER,  -- when its delivery is due; NULL: it has none
        tries             INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX jobs_recent ON jobs (endpoint, owner, sequence);
    CREATE INDEX jobs_recent_by_status ON jobs (endpoint, owner, status, sequence);
    CREATE INDEX jobs_over ON jobs (finished_at + retention) WHERE finished_at IS NOT NULL AND deliver_at IS NULL;
    CREATE INDEX jobs_to_deliver ON jobs (deliver_at) WHERE deliver_at IS NOT NULL;

    CREATE TABLE works (  -- what the client sent, as long as anybody can ask for it
        job       INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        body      BLOB NOT NULL,
        s3_config BLOB
    ) STRICT;

    CREATE TABLE results (  -- the output of a finished job, where it is one value
        job    INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        output BLOB NOT NULL
    ) STRICT;

    CREATE TABLE outputs (  -- the log of the current attempt
        job    INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
        cursor INTEGER NOT NULL,
        output BLOB NOT NULL,
        PRIMARY KEY (job, cursor)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE ended (  -- how many jobs have ended how, and how many were retried, since the file was made
        endpoint TEXT NOT NULL,
        name     TEXT NOT NULL,
        number   INTEGER NOT NULL,
        PRIMARY KEY (endpoint, name)
    ) STRICT, WITHOUT ROWID;
    """,
)
