-- What must never be found: each counts what contradicts the rest. Read whole tables.

-- name: check_file
-- "ok", or what is wrong with the file.
PRAGMA quick_check(1);

-- name: check_derivations_without_step
SELECT count(*) FROM derivations d LEFT JOIN steps s ON s.id = d.step WHERE s.id IS NULL;

-- name: check_derivations_without_queue
SELECT count(*) FROM derivations d LEFT JOIN queues q ON q.id = d.queue WHERE q.id IS NULL;

-- name: check_derivations_without_text
SELECT count(*) FROM derivations d LEFT JOIN drv_texts t ON t.drv = d.id WHERE t.drv IS NULL;

-- name: check_steps_without_derivation
SELECT count(*) FROM steps s LEFT JOIN derivations d ON d.id = s.drv WHERE d.id IS NULL;

-- name: check_outputs_without_step
SELECT count(*) FROM outputs o LEFT JOIN steps s ON s.id = o.step WHERE s.id IS NULL;

-- name: check_done_without_path
SELECT count(*) FROM outputs o JOIN steps s ON s.id = o.step
  LEFT JOIN paths p ON p.hash_part = substr(o.path, 1, 32)
WHERE s.state <> 0 AND p.hash_part IS NULL;

-- name: check_builds_without_derivation
SELECT count(*) FROM builds b LEFT JOIN derivations d ON d.id = b.drv WHERE d.id IS NULL;

-- name: check_builds_half_finished
SELECT count(*) FROM builds WHERE (finished IS NULL) <> (outcome IS NULL);

-- name: check_attempts_without_step
SELECT count(*) FROM attempts a LEFT JOIN steps s ON s.id = a.step WHERE s.id IS NULL;

-- name: check_attempts_without_derivation
SELECT count(*) FROM attempts a LEFT JOIN derivations d ON d.id = a.drv WHERE d.id IS NULL;

-- name: check_attempts_without_agent
SELECT count(*) FROM attempts a LEFT JOIN agents g ON g.id = a.agent WHERE g.id IS NULL;

-- name: check_attempts_half_ended
SELECT count(*) FROM attempts WHERE (ended IS NULL) <> (outcome IS NULL);

-- name: check_passwords_without_account
SELECT count(*) FROM credentials c LEFT JOIN agent_accounts a ON a.id = c.agent
WHERE c.agent IS NOT NULL AND a.id IS NULL;
