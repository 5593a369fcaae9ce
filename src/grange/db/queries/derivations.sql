-- Derivations and the queues they wait in. `json_each` turns one JSON array into rows.

-- name: queues
SELECT id, system, features, tags FROM queues;

-- name: add_queue
INSERT INTO queues (id, system, features, tags) VALUES (?1, ?2, ?3, ?4);

-- name: last_ids
-- The highest id of a step and of a derivation.
SELECT coalesce((SELECT max(id) FROM steps), 0), coalesce((SELECT max(id) FROM derivations), 0);

-- name: derivation_steps
SELECT path, step FROM derivations WHERE path IN (SELECT value FROM json_each(?1));

-- name: add_derivation
INSERT INTO derivations (id, path, step, name, queue, inputs, limits)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7);

-- name: add_drv_text
INSERT INTO drv_texts (drv, modulo, direct_inputs, basic, aterm) VALUES (?1, ?2, ?3, ?4, ?5);

-- name: derivation_facts
-- What dependants of these derivations are checked against.
SELECT d.path, s.outputs, t.modulo
FROM derivations d JOIN steps s ON s.id = d.step JOIN drv_texts t ON t.drv = d.id
WHERE d.path IN (SELECT value FROM json_each(?1));

-- name: step_of
SELECT step FROM derivations WHERE path = ?1;

-- name: derivation_path
-- By hash part: from "<hash part>-" up to "<hash part>.", the next character.
SELECT path FROM derivations WHERE path >= ?1 AND path < ?2;

-- name: aterm
SELECT t.aterm FROM derivations d JOIN drv_texts t ON t.drv = d.id WHERE d.path = ?1;
