-- With what limits an attempt was sent: as elsewhere, or null where an older release sent it.

ALTER TABLE attempts ADD COLUMN limits text;
