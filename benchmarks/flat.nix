# Many derivations that need nothing of each other. `busybox` is a folder with a static busybox;
# `salt` makes them new to a store or farm that has built them before.
{ busybox, salt, count ? "1000" }:

let
  tools = builtins.path { name = "tools"; path = busybox; };
in
builtins.genList
  (number: derivation {
    name = "flat-${toString number}";
    system = builtins.currentSystem;
    inherit salt;
    builder = "${tools}/busybox";
    args = [ "sh" "-c" "echo $name $salt > $out" ];
  })
  (builtins.fromJSON count)
