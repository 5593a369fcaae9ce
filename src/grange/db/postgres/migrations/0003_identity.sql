-- Who may do what: credentials, agents' accounts, and a log of who did what.

CREATE TABLE credentials (
  id text COLLATE "C" PRIMARY KEY,
  kind text NOT NULL,
  name text NOT NULL,
  digest bytea NOT NULL,
  roles text NOT NULL,
  projects text,
  tags text NOT NULL,
  agent text COLLATE "C",
  uses_max integer,
  uses integer NOT NULL,
  created double precision NOT NULL,
  created_by text NOT NULL,
  expires double precision,
  last_used double precision,
  revoked double precision
);
CREATE INDEX credentials_of_agents ON credentials (agent) WHERE agent IS NOT NULL;

CREATE TABLE agent_accounts (
  id text COLLATE "C" PRIMARY KEY,
  name text NOT NULL,
  tags text NOT NULL,
  created double precision NOT NULL,
  registered_by text NOT NULL,
  removed double precision
);

CREATE TABLE audit (
  id bigint PRIMARY KEY,
  time double precision NOT NULL,
  who text NOT NULL,
  address text NOT NULL,
  did text NOT NULL
);
