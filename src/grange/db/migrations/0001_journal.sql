-- The farm's durable memory, as of its first version.
--
-- A migration only ever adds: tables, indexes, and columns that are nullable or have a default. An
-- older Grange that is still running goes on reading and writing.
--
-- Store paths are kept as base names, and lists of them with spaces between. Times are seconds
-- since 1970. Outcomes are the values of grange.scheduler.facts.Outcome.

CREATE TABLE farm (
  clock_s REAL NOT NULL -- the latest time that any write told
);
INSERT INTO farm VALUES (0);

-- What an agent must offer; features and tags are JSON arrays.
CREATE TABLE queues (
  id INTEGER PRIMARY KEY,
  system TEXT NOT NULL,
  features TEXT NOT NULL,
  tags TEXT NOT NULL,
  UNIQUE (system, features, tags)
);

-- A step is its set of output paths. Ids ascend from inputs to dependants, always: walks sort by
-- them, and the graph can have no cycle.
CREATE TABLE steps (
  id INTEGER PRIMARY KEY,
  drv INTEGER NOT NULL, -- the derivation to build, where several name this step
  outputs TEXT NOT NULL, -- "dev <path> out <path>"
  state INTEGER NOT NULL DEFAULT 0, -- 0 known, 1 publishing, 2 done
  failures INTEGER NOT NULL DEFAULT 0,
  losses INTEGER NOT NULL DEFAULT 0,
  -- A remembered failure, or all null.
  cause_outcome TEXT,
  cause_message TEXT,
  cause_step INTEGER,
  cause_attempt INTEGER
);
CREATE INDEX steps_publishing ON steps (id) WHERE state = 1;

CREATE TABLE outputs (
  path TEXT PRIMARY KEY,
  step INTEGER NOT NULL
) WITHOUT ROWID;

-- Narrow, because walks of large graphs read it; what is read one at a time is in drv_texts.
CREATE TABLE derivations (
  id INTEGER PRIMARY KEY,
  path TEXT NOT NULL UNIQUE,
  step INTEGER NOT NULL REFERENCES steps (id),
  name TEXT NOT NULL,
  queue INTEGER NOT NULL REFERENCES queues (id),
  inputs BLOB NOT NULL -- the steps it needs, ascending, as little-endian 32-bit integers
);

CREATE TABLE drv_texts (
  drv INTEGER PRIMARY KEY,
  modulo TEXT NOT NULL,
  direct_inputs TEXT NOT NULL,
  basic BLOB NOT NULL,
  aterm BLOB NOT NULL
);

CREATE TABLE durations (
  name TEXT PRIMARY KEY, -- of derivations
  expected_s REAL NOT NULL -- exponentially weighted mean of how long builds took
) WITHOUT ROWID;

CREATE TABLE builds (
  id TEXT PRIMARY KEY,
  drv INTEGER NOT NULL REFERENCES derivations (id),
  project TEXT NOT NULL,
  priority INTEGER NOT NULL,
  tags TEXT NOT NULL, -- JSON array
  submitted_by TEXT NOT NULL,
  created REAL NOT NULL,
  finished REAL,
  outcome TEXT,
  cause_outcome TEXT,
  cause_message TEXT,
  cause_step INTEGER,
  cause_attempt INTEGER
);
CREATE INDEX builds_created ON builds (created);
CREATE INDEX builds_unfinished ON builds (created) WHERE finished IS NULL;

CREATE TABLE agents (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  spec TEXT NOT NULL, -- JSON
  joined REAL NOT NULL
);

CREATE TABLE attempts (
  id INTEGER PRIMARY KEY,
  step INTEGER NOT NULL REFERENCES steps (id),
  drv INTEGER NOT NULL, -- what was built
  agent TEXT NOT NULL REFERENCES agents (id),
  started REAL NOT NULL,
  ended REAL,
  outcome TEXT,
  message TEXT NOT NULL DEFAULT '',
  fetch_s REAL,
  build_s REAL,
  upload_s REAL,
  cpu_user_s REAL,
  cpu_system_s REAL,
  memory_peak_bytes INTEGER,
  io_read_bytes INTEGER,
  io_write_bytes INTEGER
);
CREATE INDEX attempts_step ON attempts (step);
CREATE INDEX attempts_unended ON attempts (id) WHERE ended IS NULL;

-- The first to be committed under a hash part stays.
CREATE TABLE paths (
  hash_part TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  origin TEXT NOT NULL, -- "source", an upstream's URL, or "" for a step's output
  step INTEGER, -- whose output it is, and valid once that step is done; null for the others
  nar_hash TEXT NOT NULL, -- algorithm:base 16, as all hashes here
  nar_bytes INTEGER NOT NULL,
  refs TEXT NOT NULL,
  deriver TEXT,
  content_address TEXT,
  signatures TEXT NOT NULL, -- with spaces between
  url TEXT NOT NULL,
  compression TEXT NOT NULL,
  file_hash TEXT,
  file_bytes INTEGER
);

CREATE TABLE supports (
  step INTEGER NOT NULL,
  output TEXT NOT NULL,
  support TEXT NOT NULL, -- nix-support as JSON
  PRIMARY KEY (step, output)
) WITHOUT ROWID;

CREATE TABLE upstream_answers (
  url TEXT NOT NULL,
  hash_part TEXT NOT NULL,
  answer TEXT NOT NULL, -- the narinfo, or "" for a miss
  expires REAL NOT NULL,
  PRIMARY KEY (url, hash_part)
) WITHOUT ROWID;
CREATE INDEX upstream_answers_expires ON upstream_answers (expires);
