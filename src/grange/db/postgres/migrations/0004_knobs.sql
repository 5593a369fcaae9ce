-- What operators rule, and what projects have used of late: see SQLite's migration of this name.

ALTER TABLE builds ADD COLUMN not_before double precision NOT NULL DEFAULT 0;

CREATE TABLE agent_rules (
  agent text COLLATE "C" PRIMARY KEY,
  tags text NOT NULL,
  is_paused smallint NOT NULL,
  reason text NOT NULL
);

CREATE TABLE pauses (
  subject text COLLATE "C" PRIMARY KEY,
  reason text,
  since double precision NOT NULL
);

CREATE TABLE uses (
  project text COLLATE "C" PRIMARY KEY,
  agent_s double precision NOT NULL,
  at double precision NOT NULL
);
