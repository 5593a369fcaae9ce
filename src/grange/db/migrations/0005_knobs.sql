-- What operators rule, and what projects have used of late.

ALTER TABLE builds ADD COLUMN not_before REAL NOT NULL DEFAULT 0; -- nothing is begun for it alone

CREATE TABLE agent_rules (
  agent TEXT PRIMARY KEY, -- need not have been here yet
  tags TEXT NOT NULL, -- JSON array: beside those it says of itself
  is_paused INTEGER NOT NULL,
  reason TEXT NOT NULL -- of the pause
) WITHOUT ROWID;

CREATE TABLE pauses (
  subject TEXT PRIMARY KEY, -- "farm", or "project " and its name
  reason TEXT, -- null: not paused any more
  since REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE uses (
  project TEXT PRIMARY KEY,
  agent_s REAL NOT NULL, -- decayed agent-seconds
  at REAL NOT NULL -- as of when
) WITHOUT ROWID;
