-- What is kept of the cache, and for how long.

ALTER TABLE paths ADD COLUMN seen REAL; -- when a collection first met it; null: none has yet
CREATE INDEX paths_url ON paths (url); -- paths of equal content share a file

CREATE TABLE pins (
  name TEXT PRIMARY KEY,
  path TEXT, -- a store path, or
  build TEXT, -- the id of a build, whose record is kept as well
  created REAL NOT NULL,
  created_by TEXT NOT NULL
) WITHOUT ROWID;

-- Sources that were collected: whoever submits what needs them has to send them again.
CREATE TABLE collected_sources (
  path TEXT PRIMARY KEY
) WITHOUT ROWID;
