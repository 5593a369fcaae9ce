-- The farm's durable memory on PostgreSQL. The tables mean what they mean on SQLite, where what
-- is in their columns is said.
--
-- A migration only ever adds: tables, indexes, and columns that are nullable or have a default. In
-- a farm of several coordinators the first new one migrates while an older one leads, and that one
-- goes on reading and writing.
--
-- Text that is compared or sorted has collation "C": byte by byte, as on SQLite.

-- The leader lease: one row. The epoch is its key, so that a renewal does not wait for the writes
-- that hold it, and a takeover does.
CREATE TABLE leader (
  epoch bigint PRIMARY KEY,
  url text NOT NULL,
  agents text NOT NULL,
  expires timestamptz NOT NULL,
  is_only boolean NOT NULL DEFAULT true UNIQUE CHECK (is_only)
);
INSERT INTO leader (epoch, url, agents, expires) VALUES (1, '', '', 'epoch');

CREATE TABLE farm (
  clock_s double precision NOT NULL
);
INSERT INTO farm VALUES (0);

CREATE TABLE queues (
  id integer PRIMARY KEY,
  system text NOT NULL,
  features text NOT NULL,
  tags text NOT NULL,
  UNIQUE (system, features, tags)
);

CREATE TABLE steps (
  id integer PRIMARY KEY,
  drv integer NOT NULL,
  outputs text NOT NULL,
  state smallint NOT NULL DEFAULT 0,
  failures integer NOT NULL DEFAULT 0,
  losses integer NOT NULL DEFAULT 0,
  tries integer NOT NULL DEFAULT 0,
  cause_outcome text,
  cause_message text,
  cause_step integer,
  cause_attempt bigint,
  cause_limit bigint
) WITH (fillfactor = 80); -- each is updated a few times, next to where it was
CREATE INDEX steps_publishing ON steps (id) WHERE state = 1;

CREATE TABLE outputs (
  path text COLLATE "C" PRIMARY KEY,
  step integer NOT NULL
);

CREATE TABLE derivations (
  id integer PRIMARY KEY,
  path text COLLATE "C" NOT NULL UNIQUE,
  step integer NOT NULL REFERENCES steps (id),
  name text COLLATE "C" NOT NULL,
  queue integer NOT NULL REFERENCES queues (id),
  inputs bytea NOT NULL,
  limits text NOT NULL DEFAULT ''
);

CREATE TABLE drv_texts (
  drv integer PRIMARY KEY,
  modulo text NOT NULL,
  direct_inputs text NOT NULL,
  basic bytea NOT NULL,
  aterm bytea NOT NULL
);

CREATE TABLE durations (
  name text COLLATE "C" PRIMARY KEY,
  expected_s double precision NOT NULL
);

CREATE TABLE builds (
  id text COLLATE "C" PRIMARY KEY,
  drv integer NOT NULL REFERENCES derivations (id),
  project text NOT NULL,
  priority integer NOT NULL,
  tags text NOT NULL,
  submitted_by text NOT NULL,
  created double precision NOT NULL,
  finished double precision,
  outcome text,
  cause_outcome text,
  cause_message text,
  cause_step integer,
  cause_attempt bigint,
  cause_limit bigint,
  limits text NOT NULL DEFAULT '',
  is_check smallint NOT NULL DEFAULT 0
);
CREATE INDEX builds_created ON builds (created, id);
CREATE INDEX builds_unfinished ON builds (created, id) WHERE finished IS NULL;

CREATE TABLE agents (
  id text COLLATE "C" PRIMARY KEY,
  name text COLLATE "C" NOT NULL,
  spec text NOT NULL,
  joined double precision NOT NULL
);

CREATE TABLE attempts (
  id bigint PRIMARY KEY,
  step integer NOT NULL REFERENCES steps (id),
  drv integer NOT NULL,
  agent text COLLATE "C" NOT NULL REFERENCES agents (id),
  started double precision NOT NULL,
  ended double precision,
  outcome text,
  message text NOT NULL DEFAULT '',
  fetch_s double precision,
  build_s double precision,
  upload_s double precision,
  cpu_user_s double precision,
  cpu_system_s double precision,
  memory_peak_bytes bigint,
  io_read_bytes bigint,
  io_write_bytes bigint,
  is_check smallint NOT NULL DEFAULT 0
);
CREATE INDEX attempts_step ON attempts (step, id);
CREATE INDEX attempts_unended ON attempts (id) WHERE ended IS NULL;
CREATE INDEX attempts_lost ON attempts (id) WHERE outcome = 'agent lost';

CREATE TABLE paths (
  hash_part text COLLATE "C" PRIMARY KEY,
  name text NOT NULL,
  origin text NOT NULL,
  step integer,
  nar_hash text NOT NULL,
  nar_bytes bigint NOT NULL,
  refs text NOT NULL,
  deriver text,
  content_address text,
  signatures text NOT NULL,
  url text NOT NULL,
  compression text NOT NULL,
  file_hash text,
  file_bytes bigint
);

CREATE TABLE supports (
  step integer NOT NULL,
  output text COLLATE "C" NOT NULL,
  support text NOT NULL,
  PRIMARY KEY (step, output)
);

CREATE TABLE upstream_answers (
  url text COLLATE "C" NOT NULL,
  hash_part text COLLATE "C" NOT NULL,
  answer text NOT NULL,
  expires double precision NOT NULL,
  PRIMARY KEY (url, hash_part)
);
CREATE INDEX upstream_answers_expires ON upstream_answers (expires);
