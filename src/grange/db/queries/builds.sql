-- name: build
SELECT b.id, d.path, d.step, b.project, b.priority, b.tags, b.submitted_by, b.created, b.finished,
  b.outcome, b.cause_outcome, b.cause_message, b.cause_step, b.cause_attempt,
  b.cause_limit, b.limits, b.is_check, b.not_before
FROM builds b JOIN derivations d ON d.id = b.drv WHERE b.id = ?1;

-- name: builds_of
SELECT b.id, d.path, d.step, b.project, b.priority, b.tags, b.submitted_by, b.created, b.finished,
  b.outcome, b.cause_outcome, b.cause_message, b.cause_step, b.cause_attempt,
  b.cause_limit, b.limits, b.is_check, b.not_before
FROM json_each(?1) JOIN builds b ON b.id = json_each.value
  JOIN derivations d ON d.id = b.drv
ORDER BY json_each.key;

-- name: builds
-- Newest first.
SELECT b.id, d.path, d.step, b.project, b.priority, b.tags, b.submitted_by, b.created, b.finished,
  b.outcome, b.cause_outcome, b.cause_message, b.cause_step, b.cause_attempt,
  b.cause_limit, b.limits, b.is_check, b.not_before
FROM builds b JOIN derivations d ON d.id = b.drv
WHERE b.created < ?1 ORDER BY b.created DESC, b.id DESC LIMIT ?2;

-- name: unfinished_builds
-- Newest first.
SELECT b.id, d.path, d.step, b.project, b.priority, b.tags, b.submitted_by, b.created, b.finished,
  b.outcome, b.cause_outcome, b.cause_message, b.cause_step, b.cause_attempt,
  b.cause_limit, b.limits, b.is_check, b.not_before
FROM builds b JOIN derivations d ON d.id = b.drv
WHERE b.finished IS NULL AND b.created < ?1 ORDER BY b.created DESC, b.id DESC LIMIT ?2;

-- name: add_build
INSERT INTO builds (
  id, drv, project, priority, tags, submitted_by, created, limits, is_check, not_before
)
SELECT ?1, d.id, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 FROM derivations d WHERE d.path = ?2
ON CONFLICT (id) DO NOTHING;

-- name: finish_build
UPDATE builds
SET finished = ?2, outcome = ?3,
  cause_outcome = ?4, cause_message = ?5, cause_step = ?6, cause_attempt = ?7,
  cause_limit = ?8
WHERE id = ?1;

-- name: reopen_build
UPDATE builds
SET finished = NULL, outcome = NULL,
  cause_outcome = NULL, cause_message = NULL, cause_step = NULL, cause_attempt = NULL,
  cause_limit = NULL, not_before = ?2
WHERE id = ?1;
