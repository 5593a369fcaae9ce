-- Limits, checks and tries: whose fault a failure is, and what may still succeed.
--
-- Limits are "silent_s build_s log_bytes output_bytes", or "" for none.

ALTER TABLE steps ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE steps ADD COLUMN cause_limit INTEGER; -- that was overrun
ALTER TABLE derivations ADD COLUMN limits TEXT NOT NULL DEFAULT ''; -- that it sets itself
ALTER TABLE builds ADD COLUMN cause_limit INTEGER;
ALTER TABLE builds ADD COLUMN limits TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN is_check INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN is_check INTEGER NOT NULL DEFAULT 0; -- built again, to compare

-- An agent that was given up may come back with its attempt.
CREATE INDEX attempts_lost ON attempts (id) WHERE outcome = 'agent lost';
