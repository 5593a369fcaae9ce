# A set of derivations that shows what a farm does, and needs nothing but a static busybox.
#
#   grange build -f examples             all that is meant to succeed
#   grange build -f examples -A chain    one of the attributes at the end
#   grange build -f examples -A failing  what fails on purpose
#
# `busybox` is a directory that holds a static busybox: what Debian's busybox-static installs.
# `salt` makes the set new to a farm that has built it before: --argstr salt "$(date)".
{ busybox ? /usr/bin
, system ? builtins.currentSystem
, salt ? ""
}:

let
  # Only the one file, so that the source is the same wherever that file is.
  source = builtins.path {
    name = "busybox";
    path = busybox;
    filter = path: type: baseNameOf path == "busybox";
  };

  # A step runs a script with the tools of busybox and writes to $out.
  step = { name, script, ... }@attributes: derivation ({
    inherit system salt;
    builder = "${tools}/bin/sh";
    args = [ "-eu" (builtins.toFile "${name}.sh" script) ];
    PATH = "${tools}/bin";
  } // removeAttrs attributes [ "script" ]);

  # Every tool of busybox under its name. Links to the source, which so becomes a runtime reference.
  tools = derivation {
    name = "tools";
    inherit system salt;
    builder = "${source}/busybox";
    args = [
      "sh"
      "-euc"
      ''
        ${source}/busybox mkdir -p $out/bin
        for tool in $(${source}/busybox --list); do
          ${source}/busybox ln -s ${source}/busybox $out/bin/$tool
        done
        echo "linked $(${source}/busybox ls $out/bin | ${source}/busybox wc -l) tools"
      ''
    ];
  };

  numbers = from: to: if from > to then [ ] else [ from ] ++ numbers (from + 1) to;
  two = number: if number < 10 then "0${toString number}" else toString number;

  # A long chain: each link keeps a reference to the one before, so closures grow and travel.
  link = number: step {
    name = "chain-${two number}";
    previous = if number == 1 then "" else "${link (number - 1)}";
    number = toString number;
    script = ''
      mkdir $out
      echo "link $number" > $out/link
      if [ -n "$previous" ]; then
        ln -s $previous $out/previous
        echo "link $number holds on to $(cat $previous/link)"
      fi
    '';
  };

  # A wide fan-out that sleeps a little, so that there is something to watch.
  leaf = number: step {
    name = "leaf-${two number}";
    number = toString number;
    trunk = link 3;
    script = ''
      echo "leaf $number unfolds"
      for part in stem blade vein; do
        sleep 0.$((number % 5 + 3))
        echo "leaf $number: $part"
      done
      mkdir $out
      echo "leaf $number" > $out/leaf
      ln -s $trunk $out/trunk
    '';
  };

  # Diamonds, one on top of the other: two sides need the same bottom, and the top needs both.
  side = name: below: step {
    inherit name below;
    script = ''
      mkdir $out
      echo "$name stands on $(cat $below/name)" | tee $out/story
      echo $name > $out/name
      ln -s $below $out/below
    '';
  };
  bottom = step {
    name = "bottom";
    script = "mkdir $out; echo bottom > $out/name; echo the ground is laid";
  };
  top = name: below: step {
    inherit name;
    left = side "${name}-left" below;
    right = side "${name}-right" below;
    script = ''
      mkdir $out
      echo $name > $out/name
      cat $left/story $right/story | tee $out/story
      ln -s $left $out/left
      ln -s $right $out/right
    '';
  };
in

rec {
  inherit tools;

  chain = link 12;

  leaves = map leaf (numbers 1 16);

  fan = step {
    name = "fan";
    inherit leaves;
    script = ''
      mkdir $out
      for leaf in $leaves; do cat $leaf/leaf; done | sort -k2 -n | tee $out/leaves
    '';
  };

  diamonds = top "diamond-2" (top "diamond-1" bottom);

  # Several outputs; whoever needs one does not fetch the others.
  library = step {
    name = "library";
    outputs = [ "out" "lib" "doc" ];
    script = ''
      mkdir -p $out/bin $lib/lib $doc/share/doc
      echo 'greeting="Hello from a farm"' > $lib/lib/greeting.sh
      echo "This library has a greeting." > $doc/share/doc/README
      printf '#!%s/sh\n. %s/lib/greeting.sh\necho "$greeting"\n' $PATH $lib > $out/bin/greet
      chmod +x $out/bin/greet
      echo "out refers to lib, and doc to nothing"
    '';
  };

  # A fixed output: its content is known beforehand, so it may come from anywhere.
  poem = derivation {
    name = "poem";
    inherit system;
    builder = "${tools}/bin/sh";
    args = [ "-euc" ''printf 'So much depends\nupon\n' > $out; echo "the poem is written"'' ];
    PATH = "${tools}/bin";
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "So much depends\nupon\n";
  };

  # What a build may tell the farm about itself, in the files that Hydra reads.
  support = step {
    name = "support-1.0";
    inherit poem;
    script = ''
      mkdir -p $out/nix-support $out/share
      cat $poem > $out/share/poem.txt
      echo "support-1.0-demo" > $out/nix-support/hydra-release-name
      echo "doc poem $out/share/poem.txt" > $out/nix-support/hydra-build-products
      echo "poem.lines $(wc -l < $poem) lines" > $out/nix-support/hydra-metrics
      echo "left a product, a metric and a release name in nix-support"
    '';
  };

  # Takes a while, and says so.
  slow = map
    (number: step {
      name = "slow-${toString number}";
      number = toString number;
      script = ''
        for percent in 10 25 50 75 90; do
          echo "slow $number: $percent %"
          sleep 0.4
        done
        echo "slow $number" > $out
      '';
    })
    (numbers 1 3);

  # A program whose runtime closure holds a bit of everything above.
  hello = step {
    name = "hello-1.0";
    inherit chain diamonds fan library slow support;
    libraryLib = library.lib;
    script = ''
      mkdir -p $out/bin
      cat > $out/bin/hello <<END
      #!$PATH/sh
      . $libraryLib/lib/greeting.sh
      echo "\$greeting: \$($PATH/wc -l < $fan/leaves) leaves, \$($PATH/cat $chain/link)."
      $PATH/cat $diamonds/story $support/share/poem.txt
      END
      sed -i 's/^ *//' $out/bin/hello
      chmod +x $out/bin/hello
      $out/bin/hello
    '';
  };

  # In a set of its own, so that only asking for it builds it. `broken` fails with a telling log,
  # and `wanting` cannot be built because of it.
  failing.wanting = step {
    name = "wanting";
    broken = step {
      name = "broken";
      script = ''
        echo "checking for a working heart... yes"
        echo "checking for a compiler... no"
        echo "configure: error: no compiler found in PATH=$PATH" >&2
        exit 77
      '';
    };
    script = "echo this is never reached; cat $broken > $out";
  };
}
