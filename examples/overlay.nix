# An overlay of examples/packages: what a farm adds to a set that others keep, or has in place of
# what is there. `overlays` of a package source names files like this.
final: previous: {
  welcome = derivation {
    name = "welcome";
    inherit (final.hello) system;
    builder = "${final.busybox}/bin/sh";
    args = [
      "-euc"
      ''
        mkdir -p $out/bin
        echo "#!$busybox/bin/sh" > $out/bin/welcome
        echo "exec $hello/bin/hello \"and welcome to this farm\"" >> $out/bin/welcome
        chmod +x $out/bin/welcome
      ''
    ];
    PATH = "${final.busybox}/bin";
    inherit (final) busybox hello;
  };
}
