-- With what limits an attempt was sent: as elsewhere, or null where an older release sent it. And
-- which attempts brought what was published.

ALTER TABLE attempts ADD COLUMN limits text;
ALTER TABLE attempts ADD COLUMN is_stored int2 NOT NULL DEFAULT 0;
