-- What hooks and the event stream are told of, and how far each hook has come.

ALTER TABLE farm ADD COLUMN last_event INTEGER NOT NULL DEFAULT 0; -- the highest id ever given

-- Written in the transaction that makes it true; dropped once all hooks have it and it is old.
CREATE TABLE events (
  id INTEGER PRIMARY KEY, -- without gaps, in the order of commits
  kind TEXT NOT NULL, -- a value of grange.scheduler.facts.EventKind
  at REAL NOT NULL,
  lane TEXT NOT NULL, -- events with the same one are told in order
  project TEXT NOT NULL, -- "" for agents
  body TEXT NOT NULL -- JSON, with store paths as base names
);

CREATE TABLE hooks (
  name TEXT PRIMARY KEY,
  cursor INTEGER NOT NULL, -- no event up to this one is to be told but those in hook_deliveries
  seen REAL NOT NULL -- when it was last in the farm's file
) WITHOUT ROWID;

CREATE TABLE hook_deliveries (
  hook TEXT NOT NULL,
  event INTEGER NOT NULL,
  state INTEGER NOT NULL, -- 0 waits, 1 given up, 2 done and beyond the cursor
  tries INTEGER NOT NULL,
  next_at REAL NOT NULL, -- of one that waits: not before
  error TEXT NOT NULL, -- of the latest try
  PRIMARY KEY (hook, event)
) WITHOUT ROWID;
