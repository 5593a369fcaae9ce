-- Events and hooks, upon many rows.

-- name: add_event
INSERT INTO events (id, kind, at, lane, project, body)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::float8[], ?4::text[], ?5::text[], ?6::text[]);

-- name: save_hook
INSERT INTO hooks (name, cursor, seen)
SELECT * FROM unnest(?1::text[], ?2::int8[], ?3::float8[])
ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor, seen = excluded.seen;

-- name: save_delivery
INSERT INTO hook_deliveries (hook, event, state, tries, next_at, error)
SELECT * FROM unnest(?1::text[], ?2::int8[], ?3::int2[], ?4::int4[], ?5::float8[], ?6::text[])
ON CONFLICT (hook, event) DO UPDATE SET state = excluded.state, tries = excluded.tries,
  next_at = excluded.next_at, error = excluded.error;

-- name: drop_delivery
DELETE FROM hook_deliveries d USING unnest(?1::text[], ?2::int8[]) AS u (hook, event)
WHERE d.hook = u.hook AND d.event = u.event;

-- name: drop_event
DELETE FROM events WHERE id = ANY (?1::int8[]);
