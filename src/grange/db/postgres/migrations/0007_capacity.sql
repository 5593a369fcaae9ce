-- Elastic capacity: what the autoscaler must not forget.

CREATE TABLE capacity_slots (
  id text PRIMARY KEY,
  state text NOT NULL,
  instance text, -- who sits there, if anybody
  body text NOT NULL -- all of it, as JSON
);

CREATE TABLE capacity_reservations (
  id text PRIMARY KEY,
  number int8 NOT NULL, -- in the order of asking
  state text NOT NULL,
  slot text,
  ended float8, -- null while it is open
  body text NOT NULL -- all of it, as JSON
);
CREATE INDEX capacity_reservations_number ON capacity_reservations (number);
CREATE INDEX capacity_reservations_ended ON capacity_reservations (ended);

CREATE TABLE capacity_spending (
  pool text NOT NULL,
  month text NOT NULL, -- "2026-11", UTC
  dollars float8 NOT NULL,
  wall float8 NOT NULL, -- up to when
  PRIMARY KEY (pool, month)
);

CREATE TABLE capacity_pauses (
  pool text PRIMARY KEY, -- empty: all of them
  reason text NOT NULL
);

CREATE TABLE capacity_events (
  id int8 PRIMARY KEY, -- in order
  at float8 NOT NULL,
  text text NOT NULL,
  pool text,
  slot text,
  instance text,
  reservation text
);
CREATE INDEX capacity_events_at ON capacity_events (at);
CREATE INDEX capacity_events_pool ON capacity_events (pool, id);
CREATE INDEX capacity_events_slot ON capacity_events (slot, id) WHERE slot IS NOT NULL;
CREATE INDEX capacity_events_reservation ON capacity_events (reservation, id)
  WHERE reservation IS NOT NULL;

-- What the latest instance of a slot printed that did not come up.
CREATE TABLE capacity_consoles (
  slot text PRIMARY KEY,
  instance text NOT NULL,
  at float8 NOT NULL,
  text text NOT NULL
);
