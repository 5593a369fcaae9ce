# The one program that this set is not told how to build: a static busybox, with a link for each of
# its tools. It is the file `busybox` beside this one, if there is one, as there should be where the
# set is in a repository (its evaluation sees nothing else), or else that of the machine where the
# set is evaluated.
#
# config.busybox is the folder it is in; Debian's busybox-static puts it into /usr/bin.
{ system, config }:

let
  # Only the one file, so that the source is the same wherever that file is.
  source = builtins.path {
    name = "busybox-source";
    path = /. + (config.busybox or (if isBeside then toString ./. else "/usr/bin"));
    filter = path: type: baseNameOf path == "busybox";
  };

  isBeside = builtins.pathExists ./busybox;
  runsHere = config ? busybox || isBeside || system == builtins.currentSystem;
  allowed = runsHere || throw
    "Package ‘busybox’ is not available on the requested hostPlatform ‘${system}’: say with config.busybox where one of that kind is. Refusing to evaluate.";

  drv = derivation {
    name = "busybox";
    inherit system source;
    builder = "${source}/busybox";
    args = [
      "sh"
      "-euc"
      ''
        $source/busybox mkdir -p $out/bin
        $source/busybox cp $source/busybox $out/bin/busybox
        for tool in $($source/busybox --list); do
          test $tool = busybox || $source/busybox ln -s busybox $out/bin/$tool
        done
      ''
    ];
  };
in
drv // {
  drvPath = assert allowed; drv.drvPath;
  outPath = assert allowed; drv.outPath;
  meta = {
    name = "busybox";
    outputsToInstall = [ "out" ];
    mainProgram = "busybox";
    unsupported = !runsHere;
  };
}
