-- What hooks and the event stream are told of, and how far each hook has come.

ALTER TABLE farm ADD COLUMN last_event bigint NOT NULL DEFAULT 0;

CREATE TABLE events (
  id bigint PRIMARY KEY,
  kind text NOT NULL,
  at double precision NOT NULL,
  lane text NOT NULL,
  project text NOT NULL,
  body text NOT NULL
);

CREATE TABLE hooks (
  name text COLLATE "C" PRIMARY KEY,
  cursor bigint NOT NULL,
  seen double precision NOT NULL
);

CREATE TABLE hook_deliveries (
  hook text COLLATE "C" NOT NULL,
  event bigint NOT NULL,
  state smallint NOT NULL,
  tries integer NOT NULL,
  next_at double precision NOT NULL,
  error text NOT NULL,
  PRIMARY KEY (hook, event)
);
