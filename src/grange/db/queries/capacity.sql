-- What the autoscaler must not forget.

-- name: save_capacity_slot
INSERT INTO capacity_slots (id, state, instance, body) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (id) DO UPDATE
SET state = excluded.state, instance = excluded.instance, body = excluded.body;

-- name: save_capacity_reservation
INSERT INTO capacity_reservations (id, number, state, slot, ended, body)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (id) DO UPDATE
SET state = excluded.state, slot = excluded.slot, body = excluded.body,
  ended = coalesce(capacity_reservations.ended, excluded.ended);

-- name: save_capacity_spending
INSERT INTO capacity_spending (pool, month, dollars, wall) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (pool, month) DO UPDATE SET dollars = excluded.dollars, wall = excluded.wall;

-- name: save_capacity_pause
INSERT INTO capacity_pauses (pool, reason) VALUES (?1, ?2)
ON CONFLICT (pool) DO UPDATE SET reason = excluded.reason;

-- name: drop_capacity_pause
DELETE FROM capacity_pauses WHERE pool = ?1;

-- name: add_capacity_event
INSERT INTO capacity_events (id, at, text, pool, slot, instance, reservation)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7);

-- name: save_capacity_console
INSERT INTO capacity_consoles (slot, instance, at, text) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (slot) DO UPDATE
SET instance = excluded.instance, at = excluded.at, text = excluded.text;

-- name: capacity_numbers
-- The highest of reservations and of events.
SELECT (SELECT coalesce(max(number), 0) FROM capacity_reservations),
  (SELECT coalesce(max(id), 0) FROM capacity_events);

-- name: capacity_slots
SELECT body FROM capacity_slots ORDER BY id;

-- name: capacity_reservations
-- That are open, or ended after a time; in the order of asking, by which they are not found.
SELECT body FROM capacity_reservations WHERE ended IS NULL OR ended > ?1 ORDER BY +number;

-- name: capacity_spending
SELECT pool, month, dollars, wall FROM capacity_spending WHERE month = ?1 ORDER BY pool;

-- name: capacity_pauses
SELECT pool, reason FROM capacity_pauses ORDER BY pool;

-- name: capacity_console
SELECT text FROM capacity_consoles WHERE slot = ?1;

-- name: capacity_events
-- The newest first, of before an id.
SELECT id, at, text, pool, slot, instance, reservation FROM capacity_events
WHERE id < ?1 ORDER BY id DESC LIMIT ?2;

-- name: capacity_events_of_pool
SELECT id, at, text, pool, slot, instance, reservation FROM capacity_events
WHERE pool = ?3 AND id < ?1 ORDER BY id DESC LIMIT ?2;

-- name: capacity_events_of_slot
SELECT id, at, text, pool, slot, instance, reservation FROM capacity_events
WHERE slot = ?3 AND id < ?1 ORDER BY id DESC LIMIT ?2;

-- name: capacity_events_of_reservation
SELECT id, at, text, pool, slot, instance, reservation FROM capacity_events
WHERE reservation = ?3 AND id < ?1 ORDER BY id DESC LIMIT ?2;

-- name: drop_capacity_events
-- The newest stays, so that ids grow for ever.
DELETE FROM capacity_events WHERE at < ?1 AND id < (SELECT max(id) FROM capacity_events);

-- name: drop_capacity_reservations
DELETE FROM capacity_reservations WHERE ended < ?1;

-- name: drop_capacity_spending
DELETE FROM capacity_spending WHERE month < ?1;

-- name: drop_capacity_consoles
DELETE FROM capacity_consoles WHERE at < ?1;

-- name: check_capacity_leases
SELECT count(*) FROM capacity_reservations r LEFT JOIN capacity_slots s ON s.id = r.slot
WHERE r.state = 'ready' AND s.id IS NULL;

-- name: check_capacity_ends
SELECT count(*) FROM capacity_reservations
WHERE (ended IS NULL) <> (state IN ('pending', 'ready'));

-- name: check_capacity_seats
SELECT count(*) - count(DISTINCT instance) FROM capacity_slots WHERE instance IS NOT NULL;
