-- Attempts and the agents that make them.

-- name: save_agent
INSERT INTO agents (id, name, spec, joined) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (id) DO UPDATE
SET name = excluded.name, spec = excluded.spec, joined = excluded.joined;

-- name: agents
SELECT spec, joined FROM agents ORDER BY name, id;

-- name: save_attempt
-- The derivation is what the step would build now.
INSERT INTO attempts (id, step, drv, agent, started, is_check, limits)
VALUES (?1, ?2, (SELECT drv FROM steps WHERE id = ?2), ?3, ?4, ?5, ?6)
ON CONFLICT (id) DO NOTHING;

-- name: end_attempt
UPDATE attempts
SET ended = ?2, outcome = ?3, message = ?4, fetch_s = ?5, build_s = ?6, upload_s = ?7,
  cpu_user_s = ?8, cpu_system_s = ?9, memory_peak_bytes = ?10, io_read_bytes = ?11,
  io_write_bytes = ?12
WHERE id = ?1;

-- name: set_stored
UPDATE attempts SET is_stored = 1 WHERE id = ?1;

-- name: attempt
SELECT a.id, a.step, d.path, a.agent, g.name, a.started, a.ended, a.outcome, a.message, a.fetch_s,
  a.build_s, a.upload_s, a.cpu_user_s, a.cpu_system_s, a.memory_peak_bytes, a.io_read_bytes,
  a.io_write_bytes, a.is_check
FROM attempts a JOIN derivations d ON d.id = a.drv JOIN agents g ON g.id = a.agent
WHERE a.id = ?1;

-- name: attempts_of
-- Oldest first.
SELECT a.id, a.step, d.path, a.agent, g.name, a.started, a.ended, a.outcome, a.message, a.fetch_s,
  a.build_s, a.upload_s, a.cpu_user_s, a.cpu_system_s, a.memory_peak_bytes, a.io_read_bytes,
  a.io_write_bytes, a.is_check
FROM attempts a JOIN derivations d ON d.id = a.drv JOIN agents g ON g.id = a.agent
WHERE a.step = ?1 ORDER BY a.id;

-- name: latest_attempts
-- The latest attempt of each of these steps that has any.
SELECT a.id, a.step, d.path, a.agent, g.name, a.started, a.ended, a.outcome, a.message, a.fetch_s,
  a.build_s, a.upload_s, a.cpu_user_s, a.cpu_system_s, a.memory_peak_bytes, a.io_read_bytes,
  a.io_write_bytes, a.is_check
FROM attempts a JOIN derivations d ON d.id = a.drv JOIN agents g ON g.id = a.agent
WHERE a.id IN (
  SELECT max(id) FROM attempts WHERE step IN (SELECT value FROM json_each(?1)) GROUP BY step
);

-- name: unended_attempts
-- Without those whose work is done; a check's step is the negative of the one it compares with.
SELECT a.id, CASE a.is_check WHEN 1 THEN -a.step ELSE a.step END, g.id, g.spec, a.limits
FROM attempts a JOIN agents g ON g.id = a.agent
WHERE a.ended IS NULL AND a.is_stored = 0 ORDER BY g.name, g.id, a.id;

-- name: given_up_attempts
-- The newest that ended with the loss of their agents, of steps that are not done.
SELECT a.id, CASE a.is_check WHEN 1 THEN -a.step ELSE a.step END, a.agent, a.limits
FROM attempts a JOIN steps s ON s.id = a.step
WHERE a.outcome = 'agent lost' AND s.state <> 2 ORDER BY a.id DESC LIMIT ?1;

-- name: next_attempt
SELECT coalesce(max(id), 0) + 1 FROM attempts;

-- name: clock
SELECT clock_s FROM farm;

-- name: advance_clock
UPDATE farm SET clock_s = ?1 WHERE clock_s < ?1;
