-- Statements of retention that run upon many rows: each parameter is one column of them all.

-- name: add_collected_source
INSERT INTO collected_sources (path) SELECT * FROM unnest(?1::text[])
ON CONFLICT (path) DO NOTHING;

-- name: drop_collected_source
DELETE FROM collected_sources WHERE path = ANY (?1::text[]);

-- name: add_pin
INSERT INTO pins (name, path, build, created, created_by)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::float8[], ?5::text[])
ON CONFLICT (name) DO UPDATE SET path = excluded.path, build = excluded.build,
  created = excluded.created, created_by = excluded.created_by;

-- name: drop_pin
DELETE FROM pins WHERE name = ANY (?1::text[]);

-- name: stamp_paths
UPDATE paths SET seen = u.seen FROM unnest(?1::float8[]) AS u (seen) WHERE paths.seen IS NULL;

-- name: drop_build
DELETE FROM builds WHERE id = ANY (?1::text[]) AND finished IS NOT NULL;

-- name: drop_attempt
DELETE FROM attempts WHERE id = ANY (?1::int8[]);
