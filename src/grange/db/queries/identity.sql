-- Credentials, agents' accounts, and the audit log.

-- name: credential
SELECT id, kind, name, digest, roles, projects, tags, agent, uses_max, uses, created, created_by,
  expires, last_used, revoked
FROM credentials WHERE id = ?1;

-- name: passwords_of
SELECT id, kind, name, digest, roles, projects, tags, agent, uses_max, uses, created, created_by,
  expires, last_used, revoked
FROM credentials WHERE agent = ?1 AND revoked IS NULL ORDER BY created, id;

-- name: credentials
SELECT id, kind, name, digest, roles, projects, tags, agent, uses_max, uses, created, created_by,
  expires, last_used, revoked
FROM credentials ORDER BY created, id;

-- name: add_credential
INSERT INTO credentials (id, kind, name, digest, roles, projects, tags, agent, uses_max, uses,
  created, created_by, expires, last_used, revoked)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
ON CONFLICT (id) DO NOTHING;

-- name: revoke_credential
UPDATE credentials SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL;

-- name: revoke_passwords
UPDATE credentials SET revoked = ?2 WHERE agent = ?1 AND revoked IS NULL;

-- name: count_use
UPDATE credentials SET uses = uses + 1
WHERE id = ?1 AND revoked IS NULL AND (uses_max IS NULL OR uses < uses_max);

-- name: save_last_used
UPDATE credentials SET last_used = ?2 WHERE id = ?1;

-- name: agent_account
SELECT id, name, created, registered_by, tags, removed
FROM agent_accounts WHERE id = ?1;

-- name: agent_accounts
SELECT id, name, created, registered_by, tags, removed
FROM agent_accounts WHERE removed IS NULL ORDER BY name, id;

-- name: save_agent_account
INSERT INTO agent_accounts (id, name, created, registered_by, tags, removed)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (id) DO UPDATE
SET name = excluded.name, registered_by = excluded.registered_by, tags = excluded.tags,
  removed = excluded.removed;

-- name: add_audit
INSERT INTO audit (time, who, address, did) VALUES (?1, ?2, ?3, ?4);

-- name: drop_old_audit
DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1;

-- name: audit
-- Newest first.
SELECT time, who, address, did, id FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2;

-- name: drop_launched_passwords
DELETE FROM credentials WHERE agent IN (
  SELECT id FROM agent_accounts WHERE removed < ?1 AND registered_by LIKE 'registration slot %'
);

-- name: drop_launched_accounts
DELETE FROM agent_accounts WHERE removed < ?1 AND registered_by LIKE 'registration slot %';

-- name: drop_launch_tokens
DELETE FROM credentials
WHERE kind = 'registration' AND created_by = ?2 AND expires < ?1;
