-- Statements of images that run upon many rows: each parameter is one column of them all. And what
-- aggregates in an order.

-- name: image
SELECT i.name, s.source, s.settings, s.revision, i.family, i.compression, i.wish,
  m.media_type, m.body, c.media_type, c.body, i.roots, i.created, i.used,
  (
    SELECT string_agg(l.key, ' ' ORDER BY u.nth)
    FROM image_uses u JOIN image_layers l ON l.id = u.layer WHERE u.image = i.id
  ), i.manifest
FROM images i JOIN image_package_sets s ON s.id = i.packages
  JOIN image_documents m ON m.digest = i.manifest
  JOIN image_documents c ON c.digest = i.config
WHERE i.key = ?1;

-- name: images
SELECT i.name, s.source, s.settings, s.revision, i.family, i.compression, i.wish,
  m.media_type, m.body, c.media_type, c.body, i.roots, i.created, i.used,
  (
    SELECT string_agg(l.key, ' ' ORDER BY u.nth)
    FROM image_uses u JOIN image_layers l ON l.id = u.layer WHERE u.image = i.id
  ), i.manifest
FROM images i JOIN image_package_sets s ON s.id = i.packages
  JOIN image_documents m ON m.digest = i.manifest
  JOIN image_documents c ON c.digest = i.config
WHERE i.created < ?1 ORDER BY i.created DESC LIMIT ?2;

-- name: save_image_resolution
INSERT INTO image_resolutions (source, tag, revision, resolved)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::text[], ?4::float8[])
ON CONFLICT (source, tag) DO UPDATE
SET revision = excluded.revision, resolved = excluded.resolved;

-- name: add_image_package_set
INSERT INTO image_package_sets (id, source, revision, settings)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::text[], ?4::text[]);

-- name: save_image_names
INSERT INTO image_names (packages, system, way, names)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::text[], ?4::bytea[])
ON CONFLICT (packages, system, way) DO UPDATE SET names = excluded.names;

-- name: save_image_answer
INSERT INTO image_answers (
  packages, system, attribute, drv_path, outputs, program, lack, message
)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::text[], ?4::text[], ?5::text[], ?6::text[],
  ?7::text[], ?8::text[])
ON CONFLICT (packages, system, attribute) DO UPDATE
SET drv_path = excluded.drv_path, outputs = excluded.outputs, program = excluded.program,
  lack = excluded.lack, message = excluded.message;

-- name: add_image_content
INSERT INTO image_contents (id, path, nar_hash)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::text[]);

-- name: set_image_diff_id
UPDATE image_contents c SET diff_id = u.diff_id
FROM unnest(?1::int8[], ?2::text[]) AS u (id, diff_id) WHERE c.id = u.id AND c.diff_id IS NULL;

-- name: add_image_segment
INSERT INTO image_segments (content, codec, digest, blob_bytes)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::text[], ?4::int8[])
ON CONFLICT (content, codec) DO NOTHING;

-- name: add_image_layer
INSERT INTO image_layers (id, key, codec, diff_id, digest, blob_bytes, is_root)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::text[], ?4::text[], ?5::text[], ?6::int8[],
  ?7::int2[]);

-- name: add_image_layer_content
INSERT INTO image_layer_contents (layer, content) SELECT * FROM unnest(?1::int8[], ?2::int8[]);

-- name: add_image
INSERT INTO images (
  id, key, packages, name, family, compression, wish, manifest, config, roots, created, used
)
SELECT * FROM unnest(?1::int8[], ?2::text[], ?3::int8[], ?4::text[], ?5::text[], ?6::text[],
  ?7::text[], ?8::text[], ?9::text[], ?10::text[], ?11::float8[], ?12::float8[]);

-- name: add_image_use
-- The layer is null, which is refused, for an unknown key.
INSERT INTO image_uses (image, nth, layer)
SELECT u.image, u.nth, l.id FROM unnest(?1::int8[], ?2::int4[], ?3::text[]) AS u (image, nth, key)
  LEFT JOIN image_layers l ON l.key = u.key;

-- name: add_image_document
INSERT INTO image_documents (digest, media_type, body)
SELECT * FROM unnest(?1::text[], ?2::text[], ?3::bytea[])
ON CONFLICT (digest) DO NOTHING;

-- name: add_image_index_part
INSERT INTO image_index_parts (part, document) SELECT * FROM unnest(?1::text[], ?2::text[])
ON CONFLICT (part, document) DO NOTHING;

-- name: touch_image
UPDATE images i SET used = u.used FROM unnest(?1::int8[], ?2::float8[]) AS u (id, used)
WHERE i.id = u.id AND i.used < u.used;

-- name: drop_image_uses
DELETE FROM image_uses WHERE image = ANY (?1::int8[]);

-- name: drop_image
DELETE FROM images WHERE id = ANY (?1::int8[]);

-- name: drop_image_index_parts
DELETE FROM image_index_parts WHERE document = ANY (?1::text[]);

-- name: drop_image_document
-- Unless another image has it.
DELETE FROM image_documents d
WHERE d.digest = ANY (?1::text[]) AND NOT EXISTS (SELECT FROM images i WHERE i.manifest = d.digest)
  AND NOT EXISTS (SELECT FROM images i WHERE i.config = d.digest);

-- name: drop_image_names
DELETE FROM image_names WHERE packages = ANY (?1::int8[]);

-- name: drop_image_answers
DELETE FROM image_answers WHERE packages = ANY (?1::int8[]);

-- name: drop_image_package_set
DELETE FROM image_package_sets WHERE id = ANY (?1::int8[]);

-- name: drop_image_layer_contents
DELETE FROM image_layer_contents WHERE layer = ANY (?1::int8[]);

-- name: drop_image_layer
DELETE FROM image_layers WHERE id = ANY (?1::int8[]);
