-- What hooks are told of, and what became of it. A delivery's state: 0 waits, 1 given up, 2 done.

-- name: last_event
SELECT last_event FROM farm;

-- name: set_last_event
UPDATE farm SET last_event = ?1;

-- name: add_event
INSERT INTO events (id, kind, at, lane, project, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6);

-- name: events_after
SELECT id, kind, at, lane, project, body FROM events
WHERE id > ?1 AND kind IN (SELECT value FROM json_each(?2)) ORDER BY id LIMIT ?3;

-- name: events_by_id
SELECT id, kind, at, lane, project, body FROM events
WHERE id IN (SELECT value FROM json_each(?1)) ORDER BY id;

-- name: first_event
SELECT min(id) FROM events;

-- name: event_builds
SELECT b.id, d.path, s.outputs, b.project, b.priority, b.tags, b.submitted_by, b.created, b.is_check
FROM builds b JOIN derivations d ON d.id = b.drv JOIN steps s ON s.id = d.step
WHERE b.id IN (SELECT value FROM json_each(?1));

-- name: event_steps
SELECT s.id, d.path, d.name, q.system, s.outputs
FROM steps s JOIN derivations d ON d.id = s.drv JOIN queues q ON q.id = d.queue
WHERE s.id IN (SELECT value FROM json_each(?1));

-- name: event_agents
SELECT id, spec FROM agents WHERE id IN (SELECT value FROM json_each(?1));

-- name: hooks
SELECT name, cursor FROM hooks WHERE name IN (SELECT value FROM json_each(?1));

-- name: save_hook
INSERT INTO hooks (name, cursor, seen) VALUES (?1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor, seen = excluded.seen;

-- name: forget_hooks
DELETE FROM hooks WHERE seen < ?1;

-- name: forget_lost_deliveries
-- Of hooks that are forgotten.
DELETE FROM hook_deliveries WHERE hook NOT IN (SELECT name FROM hooks);

-- name: save_delivery
INSERT INTO hook_deliveries (hook, event, state, tries, next_at, error)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (hook, event) DO UPDATE SET state = excluded.state, tries = excluded.tries,
  next_at = excluded.next_at, error = excluded.error;

-- name: drop_delivery
DELETE FROM hook_deliveries WHERE hook = ?1 AND event = ?2;

-- name: open_deliveries
-- What waits, and all beyond the cursor.
SELECT event, state, tries, next_at, error FROM hook_deliveries
WHERE hook = ?1 AND event > ?2
  AND (state <> 1 OR event > (SELECT cursor FROM hooks WHERE name = ?1))
ORDER BY event LIMIT ?3;

-- name: given_up
SELECT d.hook, d.tries, d.error, e.id, e.kind, e.at, e.lane, e.project, e.body
FROM hook_deliveries d JOIN events e ON e.id = d.event
WHERE d.state = 1 AND d.hook IN (SELECT value FROM json_each(?1))
ORDER BY d.event DESC LIMIT ?2;

-- name: given_up_counts
SELECT hook, count(*) FROM hook_deliveries WHERE state = 1 GROUP BY hook;

-- name: given_up_ids
SELECT event FROM hook_deliveries WHERE hook = ?1 AND state = 1 ORDER BY event LIMIT ?2;

-- name: given_up_among
SELECT event FROM hook_deliveries
WHERE hook = ?1 AND state = 1 AND event IN (SELECT value FROM json_each(?2)) ORDER BY event;

-- name: event_time
-- Of this event, or the next that is there.
SELECT at FROM events WHERE id >= ?1 ORDER BY id LIMIT 1;

-- name: passed_events
-- Up to ?1, and waiting for no hook.
SELECT id FROM events WHERE id <= ?1 AND NOT EXISTS (
  SELECT 1 FROM hook_deliveries WHERE event = events.id AND state = 0
) ORDER BY id LIMIT ?2;

-- name: events_up_to
SELECT id FROM events WHERE id <= ?1 ORDER BY id LIMIT ?2;

-- name: drop_event
DELETE FROM events WHERE id = ?1;

-- name: forget_old_deliveries
-- Of events that are dropped.
DELETE FROM hook_deliveries
WHERE NOT EXISTS (SELECT 1 FROM events WHERE id = hook_deliveries.event);
