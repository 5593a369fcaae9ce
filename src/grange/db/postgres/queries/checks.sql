-- name: check_file
-- The server keeps its files, and checks pages as it reads them where it was told to.
SELECT 'ok';
