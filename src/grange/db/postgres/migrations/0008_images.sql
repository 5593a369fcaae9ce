-- Container images: package sources as they were, what layers are made of, images that are served.

CREATE TABLE image_resolutions (
  source text COLLATE "C" NOT NULL,
  tag text COLLATE "C" NOT NULL,
  revision text COLLATE "C" NOT NULL, -- the commit that it stood for
  resolved float8 NOT NULL, -- when that was last looked up
  PRIMARY KEY (source, tag)
);

-- Sources at one commit, as the farm's settings have them; ids ascend with time.
CREATE TABLE image_package_sets (
  id int8 PRIMARY KEY,
  source text COLLATE "C" NOT NULL,
  revision text COLLATE "C" NOT NULL,
  settings text COLLATE "C" NOT NULL,
  UNIQUE (source, revision, settings)
);

-- The attributes of attribute sets; ways to them are JSON arrays.
CREATE TABLE image_names (
  packages int8 NOT NULL REFERENCES image_package_sets (id),
  system text COLLATE "C" NOT NULL,
  way text COLLATE "C" NOT NULL,
  names bytea NOT NULL, -- a JSON array, compressed by zlib
  PRIMARY KEY (packages, system, way)
);
ALTER TABLE image_names ALTER COLUMN names SET STORAGE EXTERNAL; -- it is compressed already

-- What evaluations said of attributes, which are JSON arrays.
CREATE TABLE image_answers (
  packages int8 NOT NULL REFERENCES image_package_sets (id),
  system text COLLATE "C" NOT NULL,
  attribute text COLLATE "C" NOT NULL,
  drv_path text, -- null: it cannot be had, and the last two say why
  outputs text NOT NULL, -- "bin <path> man <path>"
  program text NOT NULL,
  lack text, -- of grange.ports.images.Lack
  message text NOT NULL,
  PRIMARY KEY (packages, system, attribute)
);

-- Store paths as layers have them.
CREATE TABLE image_contents (
  id int8 PRIMARY KEY,
  path text COLLATE "C" NOT NULL,
  nar_hash text COLLATE "C" NOT NULL,
  diff_id text, -- of a layer of this alone; null: not known
  UNIQUE (path, nar_hash)
);

-- Compressed entries of one path: objects that layers are put together of.
CREATE TABLE image_segments (
  content int8 NOT NULL REFERENCES image_contents (id),
  codec text COLLATE "C" NOT NULL,
  digest text NOT NULL,
  blob_bytes int8 NOT NULL,
  PRIMARY KEY (content, codec)
);

-- The descriptor table.
CREATE TABLE image_layers (
  id int8 PRIMARY KEY,
  key text COLLATE "C" NOT NULL UNIQUE, -- of grange.oci.descriptor
  codec text COLLATE "C" NOT NULL,
  diff_id text NOT NULL,
  digest text COLLATE "C" NOT NULL,
  blob_bytes int8 NOT NULL,
  is_root int2 NOT NULL -- it links to its contents, and has none of their bytes
);
CREATE INDEX image_layers_digest ON image_layers (digest);

CREATE TABLE image_layer_contents (
  layer int8 NOT NULL REFERENCES image_layers (id),
  content int8 NOT NULL REFERENCES image_contents (id),
  PRIMARY KEY (layer, content)
);
CREATE INDEX image_layer_contents_content ON image_layer_contents (content);

-- Manifests, configs and indexes, byte for byte.
CREATE TABLE image_documents (
  digest text COLLATE "C" PRIMARY KEY,
  media_type text NOT NULL,
  body bytea NOT NULL
);

-- The manifests that indexes name.
CREATE TABLE image_index_parts (
  part text COLLATE "C" NOT NULL,
  document text COLLATE "C" NOT NULL REFERENCES image_documents (digest),
  PRIMARY KEY (part, document)
);
CREATE INDEX image_index_parts_document ON image_index_parts (document);

CREATE TABLE images (
  id int8 PRIMARY KEY,
  key text COLLATE "C" NOT NULL UNIQUE, -- SHA-256 of whatever decides what it is
  packages int8 NOT NULL REFERENCES image_package_sets (id),
  name text NOT NULL,
  family text NOT NULL,
  compression text NOT NULL,
  wish text NOT NULL, -- JSON: entrypoint, command, user
  manifest text COLLATE "C" NOT NULL REFERENCES image_documents (digest),
  config text COLLATE "C" NOT NULL REFERENCES image_documents (digest),
  roots text NOT NULL, -- store paths
  created float8 NOT NULL,
  used float8 NOT NULL -- to the hour
);
CREATE INDEX images_packages ON images (packages);
CREATE INDEX images_manifest ON images (manifest);
CREATE INDEX images_config ON images (config);
CREATE INDEX images_created ON images (created);

CREATE TABLE image_uses (
  image int8 NOT NULL REFERENCES images (id),
  nth int4 NOT NULL, -- 0 is the lowest
  layer int8 NOT NULL REFERENCES image_layers (id),
  PRIMARY KEY (image, nth)
);
CREATE INDEX image_uses_layer ON image_uses (layer);
