# The derivations in refused/, of kinds Grange does not build, printed by Nix 2.8:
#   nix-instantiate --store "$scratch" --experimental-features "ca-derivations impure-derivations" refused.nix
let
  plain = name: extra: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "/bin/sh";
  } // extra);
  floating = plain "floating" {
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
in
{
  inherit floating;
  deferred = plain "deferred" { dep = floating; };
  impure = plain "impure" { __impure = true; };
}
