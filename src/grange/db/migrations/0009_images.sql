-- Container images: package sources as they were, what layers are made of, images that are served.
--
-- Digests are "sha256:" and 64 of 0-9 and a-f.

CREATE TABLE image_resolutions (
  source TEXT NOT NULL,
  tag TEXT NOT NULL,
  revision TEXT NOT NULL, -- the commit that it stood for
  resolved REAL NOT NULL, -- when that was last looked up
  PRIMARY KEY (source, tag)
) WITHOUT ROWID;

-- Sources at one commit, as the farm's settings have them; ids ascend with time.
CREATE TABLE image_package_sets (
  id INTEGER PRIMARY KEY,
  source TEXT NOT NULL,
  revision TEXT NOT NULL,
  settings TEXT NOT NULL,
  UNIQUE (source, revision, settings)
);

-- The attributes of attribute sets; ways to them are JSON arrays.
CREATE TABLE image_names (
  packages INTEGER NOT NULL REFERENCES image_package_sets (id),
  system TEXT NOT NULL,
  way TEXT NOT NULL,
  names BLOB NOT NULL, -- a JSON array, compressed by zlib
  PRIMARY KEY (packages, system, way)
);

-- What evaluations said of attributes, which are JSON arrays.
CREATE TABLE image_answers (
  packages INTEGER NOT NULL REFERENCES image_package_sets (id),
  system TEXT NOT NULL,
  attribute TEXT NOT NULL,
  drv_path TEXT, -- null: it cannot be had, and the last two say why
  outputs TEXT NOT NULL, -- "bin <path> man <path>"
  program TEXT NOT NULL,
  lack TEXT, -- of grange.ports.images.Lack
  message TEXT NOT NULL,
  PRIMARY KEY (packages, system, attribute)
) WITHOUT ROWID;

-- Store paths as layers have them.
CREATE TABLE image_contents (
  id INTEGER PRIMARY KEY,
  path TEXT NOT NULL,
  nar_hash TEXT NOT NULL,
  diff_id TEXT, -- of a layer of this alone; null: not known
  UNIQUE (path, nar_hash)
);

-- Compressed entries of one path: objects that layers are put together of.
CREATE TABLE image_segments (
  content INTEGER NOT NULL REFERENCES image_contents (id),
  codec TEXT NOT NULL,
  digest TEXT NOT NULL,
  blob_bytes INTEGER NOT NULL,
  PRIMARY KEY (content, codec)
) WITHOUT ROWID;

-- The descriptor table.
CREATE TABLE image_layers (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE, -- of grange.oci.descriptor
  codec TEXT NOT NULL,
  diff_id TEXT NOT NULL,
  digest TEXT NOT NULL,
  blob_bytes INTEGER NOT NULL,
  is_root INTEGER NOT NULL -- it links to its contents, and has none of their bytes
);
CREATE INDEX image_layers_digest ON image_layers (digest);

CREATE TABLE image_layer_contents (
  layer INTEGER NOT NULL REFERENCES image_layers (id),
  content INTEGER NOT NULL REFERENCES image_contents (id),
  PRIMARY KEY (layer, content)
) WITHOUT ROWID;
CREATE INDEX image_layer_contents_content ON image_layer_contents (content);

-- Manifests, configs and indexes, byte for byte.
CREATE TABLE image_documents (
  digest TEXT PRIMARY KEY,
  media_type TEXT NOT NULL,
  body BLOB NOT NULL
);

-- The manifests that indexes name.
CREATE TABLE image_index_parts (
  part TEXT NOT NULL,
  document TEXT NOT NULL REFERENCES image_documents (digest),
  PRIMARY KEY (part, document)
) WITHOUT ROWID;
CREATE INDEX image_index_parts_document ON image_index_parts (document);

CREATE TABLE images (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE, -- SHA-256 of whatever decides what it is
  packages INTEGER NOT NULL REFERENCES image_package_sets (id),
  name TEXT NOT NULL,
  family TEXT NOT NULL,
  compression TEXT NOT NULL,
  wish TEXT NOT NULL, -- JSON: entrypoint, command, user
  manifest TEXT NOT NULL REFERENCES image_documents (digest),
  config TEXT NOT NULL REFERENCES image_documents (digest),
  roots TEXT NOT NULL, -- store paths
  created REAL NOT NULL,
  used REAL NOT NULL -- to the hour
);
CREATE INDEX images_packages ON images (packages);
CREATE INDEX images_manifest ON images (manifest);
CREATE INDEX images_config ON images (config);
CREATE INDEX images_created ON images (created);

CREATE TABLE image_uses (
  image INTEGER NOT NULL REFERENCES images (id),
  nth INTEGER NOT NULL, -- 0 is the lowest
  layer INTEGER NOT NULL REFERENCES image_layers (id),
  PRIMARY KEY (image, nth)
) WITHOUT ROWID;
CREATE INDEX image_uses_layer ON image_uses (layer);
