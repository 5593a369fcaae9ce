-- Statements of capacity that run upon many rows: each parameter is one column of them all.

-- name: save_capacity_slot
INSERT INTO capacity_slots (id, state, instance, body)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::text[])
ON CONFLICT (id) DO UPDATE
SET state = excluded.state, instance = excluded.instance, body = excluded.body;

-- name: save_capacity_reservation
INSERT INTO capacity_reservations (id, number, state, slot, ended, body)
SELECT * FROM unnest(?1::text[], ?2::int8[], ?3::text[], ?4::text[], ?5::float8[], ?6::text[])
ON CONFLICT (id) DO UPDATE
SET state = excluded.state, slot = excluded.slot, body = excluded.body,
  ended = coalesce(capacity_reservations.ended, excluded.ended);

-- name: save_capacity_spending
INSERT INTO capacity_spending (pool, month, dollars, wall)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::float8[], ?4::float8[])
ON CONFLICT (pool, month) DO UPDATE SET dollars = excluded.dollars, wall = excluded.wall;

-- name: save_capacity_pause
INSERT INTO capacity_pauses (pool, reason) SELECT * FROM unnest(?1::text[], ?2::text[])
ON CONFLICT (pool) DO UPDATE SET reason = excluded.reason;

-- name: drop_capacity_pause
DELETE FROM capacity_pauses WHERE pool = ANY (?1::text[]);

-- name: add_capacity_event
INSERT INTO capacity_events (id, at, text, pool, slot, instance, reservation)
SELECT * FROM unnest(?1::int8[], ?2::float8[], ?3::text[], ?4::text[], ?5::text[], ?6::text[],
  ?7::text[]);

-- name: save_capacity_console
INSERT INTO capacity_consoles (slot, instance, at, text)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::float8[], ?4::text[])
ON CONFLICT (slot) DO UPDATE
SET instance = excluded.instance, at = excluded.at, text = excluded.text;
