-- Path infos by hash part, and what upstream caches said.

-- name: add_path
INSERT INTO paths (hash_part, name, origin, step, nar_hash, nar_bytes, refs, deriver,
  content_address, signatures, url, compression, file_hash, file_bytes)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
ON CONFLICT (hash_part) DO NOTHING;

-- name: paths
SELECT hash_part, name, nar_hash, nar_bytes, refs, deriver, content_address, signatures, url,
  compression, file_hash, file_bytes
FROM paths WHERE hash_part IN (SELECT value FROM json_each(?1));

-- name: path
SELECT hash_part, name, nar_hash, nar_bytes, refs, deriver, content_address, signatures, url,
  compression, file_hash, file_bytes
FROM paths WHERE hash_part = ?1;

-- name: valid_paths
-- An output is valid only once its step is done: before, its narinfo may not be in place.
SELECT p.hash_part, p.name FROM paths p LEFT JOIN steps s ON s.id = p.step
WHERE p.hash_part IN (SELECT value FROM json_each(?1)) AND (p.step IS NULL OR s.state = 2);

-- name: references
SELECT hash_part, name, refs FROM paths WHERE hash_part IN (SELECT value FROM json_each(?1));

-- name: set_mirrored
UPDATE paths
SET signatures = ?3, url = ?4, compression = ?5, file_hash = ?6, file_bytes = ?7, seen = NULL
WHERE hash_part = ?1 AND nar_hash = ?2 AND url LIKE '%://%';

-- name: forget_path
DELETE FROM paths WHERE hash_part = ?1;

-- name: upstream_answer
SELECT answer FROM upstream_answers WHERE url = ?1 AND hash_part = ?2 AND expires > ?3;

-- name: save_upstream_answer
INSERT INTO upstream_answers (url, hash_part, answer, expires) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (url, hash_part) DO UPDATE SET answer = excluded.answer, expires = excluded.expires;

-- name: drop_expired_answers
-- By the time of the farm's latest write, so a little late at worst.
DELETE FROM upstream_answers WHERE expires < (SELECT clock_s FROM farm);
