-- What is kept of the cache, and for how long.

ALTER TABLE paths ADD COLUMN seen float8; -- when a collection first met it; null: none has yet
CREATE INDEX paths_url ON paths (url); -- paths of equal content share a file

CREATE TABLE pins (
  name text PRIMARY KEY,
  path text, -- a store path, or
  build text, -- the id of a build, whose record is kept as well
  created float8 NOT NULL,
  created_by text NOT NULL
);

-- Sources that were collected: whoever submits what needs them has to send them again.
CREATE TABLE collected_sources (
  path text PRIMARY KEY
);
