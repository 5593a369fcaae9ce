-- Adds nothing yet.
SELECT 1;
