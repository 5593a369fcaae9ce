-- What runs upon many rows: each parameter is one column of them all.

-- name: add_credential
INSERT INTO credentials (id, kind, name, digest, roles, projects, tags, agent, uses_max, uses,
  created, created_by, expires, last_used, revoked)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::bytea[], ?5::text[], ?6::text[],
  ?7::text[], ?8::text[], ?9::int4[], ?10::int4[], ?11::float8[], ?12::text[], ?13::float8[],
  ?14::float8[], ?15::float8[])
ON CONFLICT (id) DO NOTHING;

-- name: revoke_credential
UPDATE credentials c SET revoked = u.revoked
FROM unnest(?1::text[], ?2::float8[]) AS u (id, revoked)
WHERE c.id = u.id AND c.revoked IS NULL;

-- name: revoke_passwords
UPDATE credentials c SET revoked = u.revoked
FROM unnest(?1::text[], ?2::float8[]) AS u (agent, revoked)
WHERE c.agent = u.agent AND c.revoked IS NULL;

-- name: count_use
UPDATE credentials SET uses = uses + 1
WHERE id = ANY (?1::text[]) AND revoked IS NULL AND (uses_max IS NULL OR uses < uses_max);

-- name: save_last_used
UPDATE credentials c SET last_used = u.last_used
FROM unnest(?1::text[], ?2::float8[]) AS u (id, last_used) WHERE c.id = u.id;

-- name: save_agent_account
INSERT INTO agent_accounts (id, name, created, registered_by, tags, removed)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::float8[], ?4::text[], ?5::text[],
  ?6::float8[])
ON CONFLICT (id) DO UPDATE
SET name = excluded.name, registered_by = excluded.registered_by, tags = excluded.tags,
  removed = excluded.removed;

-- name: add_audit
INSERT INTO audit (id, time, who, address, did)
SELECT (SELECT coalesce(max(id), 0) FROM audit) + u.nth, u.time, u.who, u.address, u.did
FROM unnest(?1::float8[], ?2::text[], ?3::text[], ?4::text[])
  WITH ORDINALITY AS u (time, who, address, did, nth);

-- name: drop_old_audit
DELETE FROM audit
WHERE id <= (SELECT max(id) FROM audit) - (SELECT max(n) FROM unnest(?1::int8[]) AS u (n));
