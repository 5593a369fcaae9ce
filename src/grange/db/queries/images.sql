-- What is remembered of package sources, layers and images.

-- name: image_resolution
SELECT source, tag, revision, resolved FROM image_resolutions WHERE source = ?1 AND tag = ?2;

-- name: image_resolutions
SELECT source, tag, revision, resolved FROM image_resolutions WHERE source = ?1 ORDER BY tag;

-- name: save_image_resolution
INSERT INTO image_resolutions (source, tag, revision, resolved) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (source, tag) DO UPDATE
SET revision = excluded.revision, resolved = excluded.resolved;

-- name: image_package_set
SELECT id FROM image_package_sets WHERE source = ?1 AND revision = ?2 AND settings = ?3;

-- name: add_image_package_set
INSERT INTO image_package_sets (id, source, revision, settings) VALUES (?1, ?2, ?3, ?4);

-- name: last_image_ids
-- Of package sets, contents, layers and images.
SELECT (SELECT coalesce(max(id), 0) FROM image_package_sets),
  (SELECT coalesce(max(id), 0) FROM image_contents),
  (SELECT coalesce(max(id), 0) FROM image_layers),
  (SELECT coalesce(max(id), 0) FROM images);

-- name: image_names
SELECT n.way, n.names FROM image_package_sets s JOIN image_names n ON n.packages = s.id
WHERE s.source = ?1 AND s.revision = ?2 AND s.settings = ?3 AND n.system = ?4
  AND n.way IN (SELECT value FROM json_each(?5));

-- name: save_image_names
INSERT INTO image_names (packages, system, way, names) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (packages, system, way) DO UPDATE SET names = excluded.names;

-- name: image_answers
SELECT a.attribute, a.drv_path, a.outputs, a.program, a.lack, a.message
FROM image_package_sets s JOIN image_answers a ON a.packages = s.id
WHERE s.source = ?1 AND s.revision = ?2 AND s.settings = ?3 AND a.system = ?4
  AND a.attribute IN (SELECT value FROM json_each(?5));

-- name: save_image_answer
INSERT INTO image_answers (
  packages, system, attribute, drv_path, outputs, program, lack, message
)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
ON CONFLICT (packages, system, attribute) DO UPDATE
SET drv_path = excluded.drv_path, outputs = excluded.outputs, program = excluded.program,
  lack = excluded.lack, message = excluded.message;

-- name: image_layers
SELECT id, key, codec, diff_id, digest, blob_bytes, is_root FROM image_layers
WHERE key IN (SELECT value FROM json_each(?1));

-- name: image_layer_of_digest
SELECT key FROM image_layers WHERE digest = ?1 LIMIT 1;

-- name: image_layer_contents
-- With their segments by the codec of the layer.
SELECT m.layer, c.path, c.nar_hash, g.digest, g.blob_bytes
FROM image_layers l JOIN image_layer_contents m ON m.layer = l.id
  JOIN image_contents c ON c.id = m.content
  LEFT JOIN image_segments g ON g.content = m.content AND g.codec = l.codec
WHERE l.key IN (SELECT value FROM json_each(?1));

-- name: image_contents
SELECT id, path, nar_hash, diff_id FROM image_contents
WHERE path IN (SELECT value FROM json_each(?1));

-- name: image_segments
SELECT c.path, c.nar_hash, g.digest, g.blob_bytes
FROM image_contents c JOIN image_segments g ON g.content = c.id AND g.codec = ?1
WHERE c.path IN (SELECT value FROM json_each(?2));

-- name: add_image_content
INSERT INTO image_contents (id, path, nar_hash) VALUES (?1, ?2, ?3);

-- name: set_image_diff_id
UPDATE image_contents SET diff_id = ?2 WHERE id = ?1 AND diff_id IS NULL;

-- name: add_image_segment
INSERT INTO image_segments (content, codec, digest, blob_bytes) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (content, codec) DO NOTHING;

-- name: add_image_layer
INSERT INTO image_layers (id, key, codec, diff_id, digest, blob_bytes, is_root)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7);

-- name: add_image_layer_content
INSERT INTO image_layer_contents (layer, content) VALUES (?1, ?2);

-- name: paths_without_segments
-- Valid, and with a NAR in this farm's cache.
SELECT p.hash_part, p.name FROM paths p LEFT JOIN steps s ON s.id = p.step
WHERE p.url NOT LIKE '%://%' AND (p.step IS NULL OR s.state = 2)
  AND NOT EXISTS (
    SELECT 1 FROM image_contents c JOIN image_segments g ON g.content = c.id AND g.codec = ?1
    WHERE c.path = p.hash_part || '-' || p.name AND c.nar_hash = p.nar_hash
  )
ORDER BY p.hash_part LIMIT ?2;

-- name: image
-- Its layers' keys have spaces between; the lowest is the first, because the table is read so.
SELECT i.name, s.source, s.settings, s.revision, i.family, i.compression, i.wish,
  m.media_type, m.body, c.media_type, c.body, i.roots, i.created, i.used,
  (
    SELECT group_concat(key, ' ') FROM (
      SELECT l.key FROM image_uses u JOIN image_layers l ON l.id = u.layer
      WHERE u.image = i.id ORDER BY u.nth
    )
  ), i.manifest
FROM images i JOIN image_package_sets s ON s.id = i.packages
  JOIN image_documents m ON m.digest = i.manifest
  JOIN image_documents c ON c.digest = i.config
WHERE i.key = ?1;

-- name: images
SELECT i.name, s.source, s.settings, s.revision, i.family, i.compression, i.wish,
  m.media_type, m.body, c.media_type, c.body, i.roots, i.created, i.used,
  (
    SELECT group_concat(key, ' ') FROM (
      SELECT l.key FROM image_uses u JOIN image_layers l ON l.id = u.layer
      WHERE u.image = i.id ORDER BY u.nth
    )
  ), i.manifest
FROM images i JOIN image_package_sets s ON s.id = i.packages
  JOIN image_documents m ON m.digest = i.manifest
  JOIN image_documents c ON c.digest = i.config
WHERE i.created < ?1 ORDER BY i.created DESC LIMIT ?2;

-- name: is_image
SELECT 1 FROM images WHERE key = ?1;

-- name: add_image
INSERT INTO images (
  id, key, packages, name, family, compression, wish, manifest, config, roots, created, used
)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12);

-- name: add_image_use
-- The layer is null, which is refused, for an unknown key.
INSERT INTO image_uses (image, nth, layer)
VALUES (?1, ?2, (SELECT id FROM image_layers WHERE key = ?3));

-- name: image_document
SELECT media_type, body FROM image_documents WHERE digest = ?1;

-- name: add_image_document
INSERT INTO image_documents (digest, media_type, body) VALUES (?1, ?2, ?3)
ON CONFLICT (digest) DO NOTHING;

-- name: add_image_index_part
INSERT INTO image_index_parts (part, document) VALUES (?1, ?2)
ON CONFLICT (part, document) DO NOTHING;

-- name: images_of_manifests
SELECT id, manifest, config, used FROM images
WHERE manifest IN (SELECT value FROM json_each(?1));

-- name: touch_image
UPDATE images SET used = ?2 WHERE id = ?1 AND used < ?2;

-- name: image_indexes_of
SELECT DISTINCT document FROM image_index_parts
WHERE part IN (SELECT value FROM json_each(?1));

-- name: drop_image_uses
DELETE FROM image_uses WHERE image = ?1;

-- name: drop_image
DELETE FROM images WHERE id = ?1;

-- name: drop_image_index_parts
DELETE FROM image_index_parts WHERE document = ?1;

-- name: drop_image_document
-- Unless another image has it.
DELETE FROM image_documents
WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM images WHERE manifest = ?1)
  AND NOT EXISTS (SELECT 1 FROM images WHERE config = ?1);

-- name: spent_package_sets
-- Neither an image nor a tag is of them, and they are not among the latest.
SELECT s.id FROM image_package_sets s
WHERE s.id <= (SELECT max(id) FROM image_package_sets) - ?1
  AND NOT EXISTS (SELECT 1 FROM images i WHERE i.packages = s.id)
  AND NOT EXISTS (
    SELECT 1 FROM image_resolutions r WHERE r.source = s.source AND r.revision = s.revision
  );

-- name: drop_image_names
DELETE FROM image_names WHERE packages = ?1;

-- name: drop_image_answers
DELETE FROM image_answers WHERE packages = ?1;

-- name: drop_image_package_set
DELETE FROM image_package_sets WHERE id = ?1;

-- name: image_roots
SELECT roots FROM images;

-- name: image_blobs
-- Of all images: the segments of layers of paths, and root layers.
SELECT g.digest
FROM image_layers l JOIN image_layer_contents m ON m.layer = l.id
  JOIN image_segments g ON g.content = m.content AND g.codec = l.codec
WHERE l.is_root = 0 AND EXISTS (SELECT 1 FROM image_uses u WHERE u.layer = l.id)
UNION
SELECT l.digest FROM image_layers l
WHERE l.is_root = 1 AND EXISTS (SELECT 1 FROM image_uses u WHERE u.layer = l.id);

-- name: spent_image_layers
-- Those that no image has, with a content whose NAR is not in the cache any more.
SELECT DISTINCT m.layer
FROM image_contents c JOIN image_layer_contents m ON m.content = c.id
  LEFT JOIN paths p ON p.hash_part = substr(c.path, 1, 32) AND p.nar_hash = c.nar_hash
    AND p.url NOT LIKE '%://%'
WHERE p.hash_part IS NULL AND NOT EXISTS (SELECT 1 FROM image_uses u WHERE u.layer = m.layer);

-- name: drop_image_layer_contents
DELETE FROM image_layer_contents WHERE layer = ?1;

-- name: drop_image_layer
DELETE FROM image_layers WHERE id = ?1;

-- name: drop_spent_image_segments
-- Once spent layers are gone: those that no layer has any more.
DELETE FROM image_segments
WHERE content IN (
    SELECT c.id FROM image_contents c
      LEFT JOIN paths p ON p.hash_part = substr(c.path, 1, 32) AND p.nar_hash = c.nar_hash
        AND p.url NOT LIKE '%://%'
    WHERE p.hash_part IS NULL
  )
  AND NOT EXISTS (
    SELECT 1 FROM image_layer_contents m JOIN image_layers l ON l.id = m.layer
    WHERE m.content = image_segments.content AND l.codec = image_segments.codec
      AND l.is_root = 0
  );

-- name: drop_spent_image_contents
-- Once spent segments are gone.
DELETE FROM image_contents
WHERE id IN (
    SELECT c.id FROM image_contents c
      LEFT JOIN paths p ON p.hash_part = substr(c.path, 1, 32) AND p.nar_hash = c.nar_hash
        AND p.url NOT LIKE '%://%'
    WHERE p.hash_part IS NULL
  )
  AND NOT EXISTS (SELECT 1 FROM image_layer_contents m WHERE m.content = image_contents.id)
  AND NOT EXISTS (SELECT 1 FROM image_segments g WHERE g.content = image_contents.id);

-- name: check_image_segments
SELECT count(*)
FROM image_layers l JOIN image_layer_contents m ON m.layer = l.id
  LEFT JOIN image_segments g ON g.content = m.content AND g.codec = l.codec
WHERE l.is_root = 0 AND g.content IS NULL;

-- name: check_image_uses
SELECT count(*) FROM image_uses u LEFT JOIN image_layers l ON l.id = u.layer
  LEFT JOIN images i ON i.id = u.image
WHERE l.id IS NULL OR i.id IS NULL;

-- name: check_image_documents
SELECT count(*) FROM images i LEFT JOIN image_documents m ON m.digest = i.manifest
  LEFT JOIN image_documents c ON c.digest = i.config
WHERE m.digest IS NULL OR c.digest IS NULL;

-- name: check_image_orders
-- Images whose layers are not numbered from zero without a gap.
SELECT count(*) FROM images i
WHERE (SELECT count(*) FROM image_uses u WHERE u.image = i.id)
  <> (SELECT coalesce(max(u.nth), -1) + 1 FROM image_uses u WHERE u.image = i.id);

-- name: images_of_path
SELECT DISTINCT i.manifest
FROM image_contents c JOIN image_layer_contents m ON m.content = c.id
  JOIN image_uses u ON u.layer = m.layer JOIN images i ON i.id = u.image
WHERE c.path = ?1;
