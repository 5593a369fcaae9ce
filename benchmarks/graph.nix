# The shape of a distribution: as many derivations, outputs and edges as `graph` has (see
# data/README.md), each of them trivial. What is evaluated to are the nodes that no other needs.
#
# Every output holds its derivation's name and the path of the first input, so that closures are
# real and still no deeper than the longest chain: 86.
{ graph, busybox, salt }:

let
  tools = builtins.path { name = "tools"; path = busybox; };
  inherit (builtins.fromJSON (builtins.readFile graph)) nodes;
  count = builtins.length nodes;

  # `number` keeps apart the few that are alike in name and inputs.
  make = number: let node = builtins.elemAt nodes number; in derivation {
    inherit (node) name outputs;
    inherit number salt;
    system = builtins.currentSystem;
    inputs = map (builtins.elemAt drvs) node.inputs;
    builder = "${tools}/busybox";
    args = [
      "sh"
      "-c"
      ''
        for output in $outputs; do
          eval path=\$$output
          echo "$name $output ''${inputs%% *}" > $path
        done
      ''
    ];
  };
  drvs = builtins.genList make count;

  needed = builtins.listToAttrs (map
    (number: { name = toString number; value = null; })
    (builtins.concatMap (node: node.inputs) nodes));
  roots = builtins.filter (number: ! needed ? ${toString number}) (builtins.genList (n: n) count);
in
map (builtins.elemAt drvs) roots
