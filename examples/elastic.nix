# Work for a farm that grows and shrinks: parts that take some seconds each, and a whole of them.
#
#   grange build -f examples/elastic.nix
#
# `busybox` and `salt` are as in default.nix.
{ busybox ? /usr/bin
, system ? builtins.currentSystem
, salt ? ""
, parts ? 6
, seconds ? 3
}:

let
  source = builtins.path {
    name = "busybox";
    path = busybox;
    filter = path: type: baseNameOf path == "busybox";
  };

  run = name: script: attributes: derivation ({
    inherit name system salt;
    builder = "${source}/busybox";
    args = [ "sh" "-euc" script ];
    busybox = "${source}/busybox";
  } // attributes);

  part = number: run "part-${toString number}" ''
    $busybox sleep $seconds
    echo "part $number, on $($busybox hostname)" > $out
  '' { inherit number seconds; };
in
run "whole" "$busybox cat $parts > $out" {
  parts = builtins.genList (index: part (index + 1)) parts;
}
