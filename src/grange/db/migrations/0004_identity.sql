-- Who may do what: credentials, agents' accounts, and a log of who did what.
--
-- Lists are JSON arrays. What a credential's secret is, nobody can learn from here.

CREATE TABLE credentials (
  id TEXT PRIMARY KEY, -- public
  kind TEXT NOT NULL, -- of grange.identity.CredentialKind
  name TEXT NOT NULL,
  digest BLOB NOT NULL, -- SHA-256 of the secret
  roles TEXT NOT NULL,
  projects TEXT, -- null: all
  tags TEXT NOT NULL,
  agent TEXT, -- whose password it is
  uses_max INTEGER,
  uses INTEGER NOT NULL,
  created REAL NOT NULL,
  created_by TEXT NOT NULL,
  expires REAL,
  last_used REAL,
  revoked REAL
) WITHOUT ROWID;
CREATE INDEX credentials_of_agents ON credentials (agent) WHERE agent IS NOT NULL;

CREATE TABLE agent_accounts (
  id TEXT PRIMARY KEY, -- a UUID
  name TEXT NOT NULL,
  tags TEXT NOT NULL,
  created REAL NOT NULL,
  registered_by TEXT NOT NULL,
  removed REAL
) WITHOUT ROWID;

CREATE TABLE audit (
  id INTEGER PRIMARY KEY,
  time REAL NOT NULL,
  who TEXT NOT NULL,
  address TEXT NOT NULL,
  did TEXT NOT NULL
);
