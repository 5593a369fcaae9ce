-- Every statement that the journal runs upon many rows: each parameter is one column of them all.

-- name: save_agent
INSERT INTO agents (id, name, spec, joined)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::float8[])
ON CONFLICT (id) DO UPDATE
SET name = excluded.name, spec = excluded.spec, joined = excluded.joined;

-- name: save_attempt
-- The derivation is what the step would build now; null, which is refused, for an unknown step.
INSERT INTO attempts (id, step, drv, agent, started, is_check, limits)
SELECT u.id, u.step, s.drv, u.agent, u.started, u.is_check, u.limits
FROM unnest(?1::int8[], ?2::int4[], ?3::text[], ?4::float8[], ?5::int2[], ?6::text[])
  AS u (id, step, agent, started, is_check, limits) LEFT JOIN steps s ON s.id = u.step
ON CONFLICT (id) DO NOTHING;

-- name: end_attempt
UPDATE attempts a
SET ended = u.ended, outcome = u.outcome, message = u.message, fetch_s = u.fetch_s,
  build_s = u.build_s, upload_s = u.upload_s, cpu_user_s = u.cpu_user_s,
  cpu_system_s = u.cpu_system_s, memory_peak_bytes = u.memory_peak_bytes,
  io_read_bytes = u.io_read_bytes, io_write_bytes = u.io_write_bytes
FROM unnest(?1::int8[], ?2::float8[], ?3::text[], ?4::text[], ?5::float8[], ?6::float8[],
  ?7::float8[], ?8::float8[], ?9::float8[], ?10::int8[], ?11::int8[], ?12::int8[])
  AS u (id, ended, outcome, message, fetch_s, build_s, upload_s, cpu_user_s, cpu_system_s,
    memory_peak_bytes, io_read_bytes, io_write_bytes)
WHERE a.id = u.id;

-- name: set_stored
UPDATE attempts SET is_stored = 1 WHERE id = ANY (?1::int8[]);

-- name: add_build
INSERT INTO builds (
  id, drv, project, priority, tags, submitted_by, created, limits, is_check, not_before
)
SELECT u.id, d.id, u.project, u.priority, u.tags, u.submitted_by, u.created, u.limits, u.is_check,
  u.not_before
FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::int4[], ?5::text[], ?6::text[], ?7::float8[],
  ?8::text[], ?9::int2[], ?10::float8[])
  AS u (id, path, project, priority, tags, submitted_by, created, limits, is_check, not_before)
  JOIN derivations d ON d.path = u.path
ON CONFLICT (id) DO NOTHING;

-- name: builds_of
SELECT b.id, d.path, d.step, b.project, b.priority, b.tags, b.submitted_by, b.created, b.finished,
  b.outcome, b.cause_outcome, b.cause_message, b.cause_step, b.cause_attempt,
  b.cause_limit, b.limits, b.is_check, b.not_before
FROM unnest(?1::text[]) WITH ORDINALITY AS u (id, nth) JOIN builds b ON b.id = u.id
  JOIN derivations d ON d.id = b.drv
ORDER BY u.nth;

-- name: finish_build
UPDATE builds b
SET finished = u.finished, outcome = u.outcome, cause_outcome = u.cause_outcome,
  cause_message = u.cause_message, cause_step = u.cause_step, cause_attempt = u.cause_attempt,
  cause_limit = u.cause_limit
FROM unnest(?1::text[], ?2::float8[], ?3::text[], ?4::text[], ?5::text[], ?6::int4[], ?7::int8[],
  ?8::int8[])
  AS u (id, finished, outcome, cause_outcome, cause_message, cause_step, cause_attempt, cause_limit)
WHERE b.id = u.id;

-- name: reopen_build
UPDATE builds b
SET finished = NULL, outcome = NULL,
  cause_outcome = NULL, cause_message = NULL, cause_step = NULL, cause_attempt = NULL,
  cause_limit = NULL, not_before = u.not_before
FROM unnest(?1::text[], ?2::float8[]) AS u (id, not_before) WHERE b.id = u.id;

-- name: add_queue
INSERT INTO queues (id, system, features, tags)
SELECT * FROM unnest(?1::int4[], ?2::text[], ?3::text[], ?4::text[]);

-- name: add_step
INSERT INTO steps (id, drv, outputs) SELECT * FROM unnest(?1::int4[], ?2::int4[], ?3::text[]);

-- name: add_output
INSERT INTO outputs (path, step) SELECT * FROM unnest(?1::text[], ?2::int4[]);

-- name: add_derivation
INSERT INTO derivations (id, path, step, name, queue, inputs, limits)
SELECT * FROM unnest(?1::int4[], ?2::text[], ?3::int4[], ?4::text[], ?5::int4[], ?6::bytea[],
  ?7::text[]);

-- name: add_drv_text
INSERT INTO drv_texts (drv, modulo, direct_inputs, basic, aterm)
SELECT * FROM unnest(?1::int4[], ?2::text[], ?3::text[], ?4::bytea[], ?5::bytea[]);

-- name: replace_failed_drv
UPDATE steps s
SET drv = u.drv, failures = 0, losses = 0, tries = 0,
  cause_outcome = NULL, cause_message = NULL, cause_step = NULL, cause_attempt = NULL,
  cause_limit = NULL
FROM unnest(?1::int4[], ?2::int4[]) AS u (id, drv)
WHERE s.id = u.id AND s.state <> 2 AND s.cause_outcome IS NOT NULL;

-- name: set_publishing
UPDATE steps SET state = greatest(state, 1::int2) WHERE id = ANY (?1::int4[]);

-- name: set_done
UPDATE steps SET state = 2 WHERE id = ANY (?1::int4[]);

-- name: set_lost
UPDATE steps SET state = 0 WHERE id = ANY (?1::int4[]);

-- name: set_failed
UPDATE steps s
SET cause_outcome = u.outcome, cause_message = u.message, cause_step = u.step,
  cause_attempt = u.attempt, cause_limit = u.exceeded
FROM unnest(?1::int4[], ?2::text[], ?3::text[], ?4::int4[], ?5::int8[], ?6::int8[])
  AS u (id, outcome, message, step, attempt, exceeded)
WHERE s.id = u.id;

-- name: set_troubled
UPDATE steps s SET failures = u.failures, losses = u.losses, tries = u.tries
FROM unnest(?1::int4[], ?2::int4[], ?3::int4[], ?4::int4[]) AS u (id, failures, losses, tries)
WHERE s.id = u.id;

-- name: forget_failure
UPDATE steps
SET failures = 0, losses = 0, tries = 0,
  cause_outcome = NULL, cause_message = NULL, cause_step = NULL, cause_attempt = NULL,
  cause_limit = NULL
WHERE id = ANY (?1::int4[]);

-- name: learn_duration
-- As on SQLite, but that several builds of one name in one commit count as one.
INSERT INTO durations (name, expected_s)
SELECT d.name, avg(u.build_s)
FROM unnest(?1::int4[], ?2::float8[]) AS u (step, build_s)
  JOIN steps s ON s.id = u.step JOIN derivations d ON d.id = s.drv
WHERE s.state <> 2 GROUP BY d.name
ON CONFLICT (name) DO UPDATE
SET expected_s = 0.75 * durations.expected_s + 0.25 * excluded.expected_s;

-- name: add_path
INSERT INTO paths (hash_part, name, origin, step, nar_hash, nar_bytes, refs, deriver,
  content_address, signatures, url, compression, file_hash, file_bytes)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::int4[], ?5::text[], ?6::int8[],
  ?7::text[], ?8::text[], ?9::text[], ?10::text[], ?11::text[], ?12::text[], ?13::text[],
  ?14::int8[])
ON CONFLICT (hash_part) DO NOTHING;

-- name: set_mirrored
UPDATE paths p
SET signatures = u.signatures, url = u.url, compression = u.compression, file_hash = u.file_hash,
  file_bytes = u.file_bytes, seen = NULL
FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::text[], ?5::text[], ?6::text[], ?7::int8[])
  AS u (hash_part, nar_hash, signatures, url, compression, file_hash, file_bytes)
WHERE p.hash_part = u.hash_part AND p.nar_hash = u.nar_hash AND p.url LIKE '%://%';

-- name: forget_path
DELETE FROM paths WHERE hash_part = ANY (?1::text[]);

-- name: save_support
INSERT INTO supports (step, output, support)
SELECT * FROM unnest(?1::int4[], ?2::text[], ?3::text[])
ON CONFLICT (step, output) DO NOTHING;

-- name: save_upstream_answer
INSERT INTO upstream_answers (url, hash_part, answer, expires)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::float8[])
ON CONFLICT (url, hash_part) DO UPDATE SET answer = excluded.answer, expires = excluded.expires;
