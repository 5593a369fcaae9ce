# An overlay of the test set: changes one package, adds another, and leaves the rest alone.
final: prev: {
  hello = prev.hello // { meta = prev.hello.meta // { overlaid = true; }; };
  overlaid = derivation {
    name = "overlaid-1.0";
    inherit (prev.hello) system builder;
    args = [ "sh" "-euc" ''"$busybox" mkdir -p $out/bin; "$busybox" ln -s $hello/bin/hello $out/bin/overlaid'' ];
    busybox = prev.hello.builder;
    hello = final.hello;
  };
}
