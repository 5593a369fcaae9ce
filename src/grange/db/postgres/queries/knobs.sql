-- name: save_agent_rule
INSERT INTO agent_rules (agent, tags, is_paused, reason)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::int2[], ?4::text[])
ON CONFLICT (agent) DO UPDATE
SET tags = excluded.tags, is_paused = excluded.is_paused, reason = excluded.reason;

-- name: save_pause
INSERT INTO pauses (subject, reason, since)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::float8[])
ON CONFLICT (subject) DO UPDATE
SET since = CASE WHEN pauses.reason IS NULL OR excluded.reason IS NULL
    THEN excluded.since ELSE pauses.since END,
  reason = excluded.reason;

-- name: save_use
INSERT INTO uses (project, agent_s, at)
SELECT * FROM unnest(?1::text[], ?2::float8[], ?3::float8[]);

-- name: set_priority
UPDATE builds b SET priority = u.priority
FROM unnest(?1::text[], ?2::int4[]) AS u (id, priority) WHERE b.id = u.id;
