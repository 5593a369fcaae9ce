-- name: save_agent_rule
INSERT INTO agent_rules (agent, tags, is_paused, reason) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (agent) DO UPDATE
SET tags = excluded.tags, is_paused = excluded.is_paused, reason = excluded.reason;

-- name: save_pause
-- Said again it began when it was said first.
INSERT INTO pauses (subject, reason, since) VALUES (?1, ?2, ?3)
ON CONFLICT (subject) DO UPDATE
SET since = CASE WHEN pauses.reason IS NULL OR excluded.reason IS NULL
    THEN excluded.since ELSE pauses.since END,
  reason = excluded.reason;

-- name: drop_uses
DELETE FROM uses;

-- name: save_use
INSERT INTO uses (project, agent_s, at) VALUES (?1, ?2, ?3);

-- name: set_priority
UPDATE builds SET priority = ?2 WHERE id = ?1;

-- name: agent_rules
SELECT agent, tags, is_paused, reason FROM agent_rules ORDER BY agent;

-- name: pauses
SELECT subject, reason, since FROM pauses WHERE reason IS NOT NULL ORDER BY subject;

-- name: uses
SELECT project, agent_s, at FROM uses ORDER BY project;
