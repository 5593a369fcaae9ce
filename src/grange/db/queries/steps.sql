-- Steps: state 0 is known, 1 publishing, 2 done.

-- name: add_step
INSERT INTO steps (id, drv, outputs) VALUES (?1, ?2, ?3);

-- name: add_output
INSERT INTO outputs (path, step) VALUES (?1, ?2);

-- name: output_steps
SELECT path, step FROM outputs WHERE path IN (SELECT value FROM json_each(?1));

-- name: known_step_outputs
-- Of steps that are neither done nor publishing.
SELECT id, outputs FROM steps WHERE state = 0 AND id IN (SELECT value FROM json_each(?1));

-- name: replace_failed_drv
-- Another derivation may yet make the outputs that the first failed to make.
UPDATE steps
SET drv = ?2, failures = 0, losses = 0, tries = 0,
  cause_outcome = NULL, cause_message = NULL, cause_step = NULL, cause_attempt = NULL,
  cause_limit = NULL
WHERE id = ?1 AND state <> 2 AND cause_outcome IS NOT NULL;

-- name: set_publishing
UPDATE steps SET state = max(state, 1) WHERE id = ?1;

-- name: set_done
UPDATE steps SET state = 2 WHERE id = ?1;

-- name: set_lost
-- An output is gone: to build again.
UPDATE steps SET state = 0 WHERE id = ?1;

-- name: set_failed
UPDATE steps
SET cause_outcome = ?2, cause_message = ?3, cause_step = ?4, cause_attempt = ?5, cause_limit = ?6
WHERE id = ?1;

-- name: set_troubled
UPDATE steps SET failures = ?2, losses = ?3, tries = ?4 WHERE id = ?1;

-- name: forget_failure
UPDATE steps
SET failures = 0, losses = 0, tries = 0,
  cause_outcome = NULL, cause_message = NULL, cause_step = NULL, cause_attempt = NULL,
  cause_limit = NULL
WHERE id = ?1;

-- name: learn_duration
-- A step that is done already has been learnt from. One in four: follows a change within a few
-- builds, and one odd build does not spoil it.
INSERT INTO durations (name, expected_s)
SELECT d.name, ?2 FROM steps s JOIN derivations d ON d.id = s.drv WHERE s.id = ?1 AND s.state <> 2
ON CONFLICT (name) DO UPDATE SET expected_s = 0.75 * expected_s + 0.25 * excluded.expected_s;

-- name: graph_nodes
SELECT s.id, d.path, d.queue, d.inputs, s.outputs, u.expected_s, s.failures, s.losses,
  s.tries, d.limits,
  s.cause_outcome, s.cause_message, s.cause_step, s.cause_attempt, s.cause_limit
FROM steps s JOIN derivations d ON d.id = s.drv LEFT JOIN durations u ON u.name = d.name
WHERE s.state <> 2 AND s.id IN (SELECT value FROM json_each(?1));

-- name: step_records
SELECT s.id, d.path, s.outputs, t.direct_inputs, t.basic, d.name, q.system, s.state, q.features,
  d.limits
FROM steps s JOIN derivations d ON d.id = s.drv JOIN drv_texts t ON t.drv = d.id
  JOIN queues q ON q.id = d.queue
WHERE s.id IN (SELECT value FROM json_each(?1));

-- name: step_summaries
SELECT s.id, d.path, d.name, q.system, s.outputs, s.state, d.inputs,
  s.cause_outcome, s.cause_message, s.cause_step, s.cause_attempt, s.cause_limit
FROM steps s JOIN derivations d ON d.id = s.drv JOIN queues q ON q.id = d.queue
WHERE s.id IN (SELECT value FROM json_each(?1));

-- name: unpublished
-- Every step that is publishing, and the attempt that brought its outputs where that is known.
SELECT steps.id, steps.outputs, max(a.id)
FROM steps LEFT JOIN attempts a ON a.step = steps.id AND a.is_stored = 1 AND a.ended IS NULL
WHERE steps.state = 1 GROUP BY steps.id, steps.outputs ORDER BY steps.id;

-- name: supports
SELECT output, support FROM supports WHERE step = ?1 ORDER BY output;

-- name: supports_of
SELECT step, output, support FROM supports
WHERE step IN (SELECT value FROM json_each(?1));

-- name: save_support
INSERT INTO supports (step, output, support) VALUES (?1, ?2, ?3)
ON CONFLICT (step, output) DO NOTHING;
