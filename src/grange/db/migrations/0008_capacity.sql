-- Elastic capacity: what the autoscaler must not forget.

CREATE TABLE capacity_slots (
  id TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  instance TEXT, -- who sits there, if anybody
  body TEXT NOT NULL -- all of it, as JSON
) WITHOUT ROWID;

CREATE TABLE capacity_reservations (
  id TEXT PRIMARY KEY,
  number INTEGER NOT NULL, -- in the order of asking
  state TEXT NOT NULL,
  slot TEXT,
  ended REAL, -- null while it is open
  body TEXT NOT NULL -- all of it, as JSON
) WITHOUT ROWID;
CREATE INDEX capacity_reservations_number ON capacity_reservations (number);
CREATE INDEX capacity_reservations_ended ON capacity_reservations (ended);

CREATE TABLE capacity_spending (
  pool TEXT NOT NULL,
  month TEXT NOT NULL, -- "2026-11", UTC
  dollars REAL NOT NULL,
  wall REAL NOT NULL, -- up to when
  PRIMARY KEY (pool, month)
) WITHOUT ROWID;

CREATE TABLE capacity_pauses (
  pool TEXT PRIMARY KEY, -- empty: all of them
  reason TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE capacity_events (
  id INTEGER PRIMARY KEY, -- in order
  at REAL NOT NULL,
  text TEXT NOT NULL,
  pool TEXT,
  slot TEXT,
  instance TEXT,
  reservation TEXT
);
CREATE INDEX capacity_events_at ON capacity_events (at);
CREATE INDEX capacity_events_pool ON capacity_events (pool, id);
CREATE INDEX capacity_events_slot ON capacity_events (slot, id) WHERE slot IS NOT NULL;
CREATE INDEX capacity_events_reservation ON capacity_events (reservation, id)
  WHERE reservation IS NOT NULL;

-- What the latest instance of a slot printed that did not come up.
CREATE TABLE capacity_consoles (
  slot TEXT PRIMARY KEY,
  instance TEXT NOT NULL,
  at REAL NOT NULL,
  text TEXT NOT NULL
) WITHOUT ROWID;
