-- What is kept of the cache, and what goes.

-- name: keep_nodes
-- As a walk for what builds need sees a step.
SELECT s.id, s.state, d.inputs, s.outputs, t.direct_inputs
FROM steps s JOIN derivations d ON d.id = s.drv JOIN drv_texts t ON t.drv = d.id
WHERE s.id IN (SELECT value FROM json_each(?1));

-- name: keep_references
-- References, and the outputs of the step that makes it, if any does.
SELECT p.hash_part, p.name, p.refs, s.outputs
FROM paths p LEFT JOIN outputs o ON o.path = p.hash_part || '-' || p.name
  LEFT JOIN steps s ON s.id = o.step
WHERE p.hash_part IN (SELECT value FROM json_each(?1));

-- name: wanted_derivations
-- Of unfinished builds, of attempts that go on, and of steps that are being published; whether it
-- is to be built again though its outputs are there.
SELECT d.path, b.is_check FROM builds b JOIN derivations d ON d.id = b.drv WHERE b.finished IS NULL
UNION
SELECT d.path, 1 FROM attempts a JOIN derivations d ON d.id = a.drv WHERE a.ended IS NULL
UNION
SELECT d.path, 0 FROM steps s JOIN derivations d ON d.id = s.drv WHERE s.state = 1;

-- name: ended_builds
SELECT b.id, b.project, d.path, d.name, b.finished, b.outcome
FROM builds b JOIN derivations d ON d.id = b.drv WHERE b.finished IS NOT NULL;

-- name: stored_paths
SELECT hash_part, name, origin, nar_bytes, url, file_bytes, seen FROM paths;

-- name: stamp_paths
UPDATE paths SET seen = ?1 WHERE seen IS NULL;

-- name: collected_step_paths
-- Of those that some derivation makes.
SELECT path FROM outputs WHERE path IN (SELECT value FROM json_each(?1));

-- name: path_urls
SELECT hash_part, url FROM paths WHERE hash_part IN (SELECT value FROM json_each(?1));

-- name: used_urls
SELECT DISTINCT url FROM paths WHERE url IN (SELECT value FROM json_each(?1));

-- name: spent_logs
SELECT d.path FROM derivations d JOIN steps s ON s.id = d.step
WHERE d.path IN (SELECT value FROM json_each(?1)) AND s.state = 0
  AND NOT EXISTS (
    SELECT 1 FROM attempts a
    WHERE a.step = s.id AND (a.outcome IS NULL OR a.outcome <> 'succeeded')
  );

-- name: add_collected_source
INSERT INTO collected_sources (path) VALUES (?1) ON CONFLICT (path) DO NOTHING;

-- name: collected_sources
SELECT path FROM collected_sources;

-- name: drop_collected_source
DELETE FROM collected_sources WHERE path = ?1;

-- name: pins
SELECT name, path, build, created, created_by FROM pins ORDER BY name;

-- name: add_pin
INSERT INTO pins (name, path, build, created, created_by) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (name) DO UPDATE SET path = excluded.path, build = excluded.build,
  created = excluded.created, created_by = excluded.created_by;

-- name: drop_pin
DELETE FROM pins WHERE name = ?1;

-- name: drop_build
DELETE FROM builds WHERE id = ?1 AND finished IS NOT NULL;

-- name: old_attempts
-- But for the last of all, from which new ones are numbered, and those that tell of a failure that
-- is remembered.
SELECT id FROM attempts
WHERE ended < ?1 AND id < (SELECT max(id) FROM attempts)
  AND id NOT IN (SELECT cause_attempt FROM steps WHERE cause_attempt IS NOT NULL)
  AND id NOT IN (SELECT cause_attempt FROM builds WHERE cause_attempt IS NOT NULL)
ORDER BY id LIMIT ?2;

-- name: drop_attempt
DELETE FROM attempts WHERE id = ?1;

-- name: check_pins_without_build
SELECT count(*) FROM pins p LEFT JOIN builds b ON b.id = p.build
WHERE p.build IS NOT NULL AND b.id IS NULL;
