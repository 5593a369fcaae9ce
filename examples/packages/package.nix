# How packages of this set are made: a derivation that runs `script` with the tools of busybox, and
# what is said of it. Every other attribute is a variable of the script.
{ system, config, busybox }:

{ pname, version, script, meta ? { }, ... }@attributes:

let
  drv = derivation (removeAttrs attributes [ "meta" ] // {
    name = "${pname}-${version}";
    inherit system busybox;
    builder = "${busybox}/bin/sh";
    args = [ "-euc" script ];
    PATH = "${busybox}/bin";
  });

  # Whoever asks for it hears why not; what is said of it can be read all the same.
  isFree = meta.license.free or true;
  allowed = isFree || config.allowUnfree or false || throw
    "Package ‘${drv.name}’ has an unfree license (‘${meta.license.shortName}’), refusing to evaluate.";
in
drv // {
  inherit pname version;
  drvPath = assert allowed; drv.drvPath;
  outPath = assert allowed; drv.outPath;
  meta = { name = drv.name; outputsToInstall = [ drv.outputName ]; unfree = !isFree; } // meta;
}
