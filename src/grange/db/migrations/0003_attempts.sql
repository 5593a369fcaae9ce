-- With what limits an attempt was sent: as elsewhere, or null where an older release sent it. And
-- which attempts brought what was published.

ALTER TABLE attempts ADD COLUMN limits TEXT;
ALTER TABLE attempts ADD COLUMN is_stored INTEGER NOT NULL DEFAULT 0;
