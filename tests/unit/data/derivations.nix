# The derivations in derivations/, printed by Nix 2.8:
#   nix-instantiate --store "$scratch" derivations.nix
# and the .drv files copied from "$scratch"/nix/store. Nothing here is ever built.
let
  plain = name: extra: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" "echo hi > $out" ];
  } // extra);

  fixed = name: mode: algo: hash: plain name {
    outputHashMode = mode;
    outputHashAlgo = algo;
    outputHash = hash;
  };

  digest = algo: builtins.hashString algo "grange";

  flat-sha256 = fixed "flat-sha256" "flat" "sha256" (digest "sha256");
  # The same output by another road: equal modulo fixed outputs.
  flat-sha256-mirror = derivation {
    name = "flat-sha256";
    system = "aarch64-linux";
    builder = "/bin/mirror";
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = digest "sha256";
  };
  recursive-sha256 = fixed "recursive-sha256" "recursive" "sha256" (digest "sha256");

  source = builtins.toFile "source.txt" "a source\n";
  tree = builtins.path { name = "tree"; path = ./latin1.txt; };

  multiple-of = url: plain "multiple-1.0" {
    outputs = [ "out" "dev" "lib" "doc" ];
    inherit source url;
  };
  multiple = multiple-of flat-sha256;
  multiple-mirror = multiple-of flat-sha256-mirror;
  left = plain "left" { dep = multiple.dev; fetched = flat-sha256; };
  right = plain "right" { dep = multiple.lib; other = multiple.out; fetched = recursive-sha256; };
in
{
  inherit flat-sha256 flat-sha256-mirror recursive-sha256 multiple left right;
  flat-sha1 = fixed "flat-sha1" "flat" "sha1" (digest "sha1");
  flat-sha512 = fixed "flat-sha512" "flat" "sha512" (digest "sha512");
  flat-md5 = fixed "flat-md5" "flat" "md5" (digest "md5");
  recursive-sha1 = fixed "recursive-sha1" "recursive" "sha1" (digest "sha1");
  recursive-sha512 = fixed "recursive-sha512" "recursive" "sha512" (digest "sha512");
  recursive-md5 = fixed "recursive-md5" "recursive" "md5" (digest "md5");

  fetchurl = import <nix/fetchurl.nix> {
    url = "https://example.org/hello-2.12.tar.gz";
    sha256 = digest "sha256";
  };
  fetchurl-unpack = import <nix/fetchurl.nix> {
    url = "https://example.org/hello-2.12.nar.xz";
    sha256 = digest "sha256";
    unpack = true;
  };

  structured = plain "structured" {
    __structuredAttrs = true;
    outputs = [ "out" "bin" ];
    nested = { list = [ 1 2 "three" ]; "quoted \"key\"" = null; };
    dep = left;
  };
  escapes = plain "escapes" {
    args = [ "-c" "printf '%s\n' \"$x\"\t\\\\n \\" "" "(" "]),(" ];
    quotes = "\"\\\n\r\t\\n\\\\\"";
    looks-like = "\"),(\"out\",\"x\")],[\"";
    "key \"quoted\"" = "k";
  };
  unicode = plain "unicode" {
    args = [ "grüße" "日本" ];
    greeting = "Grüß Gott, 世界 🌾";
    "clé" = "é";
  };
  latin1 = plain "latin1" { text = builtins.readFile ./latin1.txt; };
  empty = plain "empty" { args = [ ]; nothing = ""; no = false; null = null; yes = true; };
  placeholders = plain "placeholders" {
    outputs = [ "dev" "out" ];
    flags = "--prefix=${builtins.placeholder "out"} --dev=${builtins.placeholder "dev"}";
  };
  sources = plain "sources-2.0" { srcs = [ source tree ]; };
  diamond = plain "diamond" { inherit left right; url = flat-sha256; };
  diamond-mirror = plain "diamond" { inherit left right; url = flat-sha256-mirror; };
  merged = plain "merged" { a = flat-sha256; b = flat-sha256-mirror; };
  merged-outputs = plain "merged-outputs" {
    a = multiple.dev;
    b = multiple-mirror.lib;
    c = multiple.doc;
  };
  deep = plain "deep" { closure = left.drvPath; };
}
