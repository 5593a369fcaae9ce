# One output of a gigabyte: half of it random, half like text. What repeats is 16 MiB apart, further
# than zstd looks back.
{ busybox, salt }:

let
  tools = builtins.path { name = "tools"; path = busybox; };
in
derivation {
  name = "bulk";
  system = builtins.currentSystem;
  inherit salt;
  builder = "${tools}/busybox";
  args = [
    "sh"
    "-euc"
    ''
      ${tools}/busybox mkdir $out
      ${tools}/busybox dd if=/dev/urandom of=$out/random bs=1M count=512
      ${tools}/busybox seq 1 1000000000 | ${tools}/busybox head -c 16777216 > text
      for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32; do
        ${tools}/busybox cat text
      done > $out/text
    ''
  ];
}
