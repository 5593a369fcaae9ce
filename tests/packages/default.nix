# A package set for tests, with the calling convention of nixpkgs and all of its troubles in small.
#
# Everything is built with a static busybox (`busybox` is the directory that holds it: this one if it
# does, else /usr/bin, where Debian's busybox-static installs it), so an agent with an empty store
# builds all of it in seconds, and the same bytes come out everywhere. `salt` makes other derivations
# of the same packages.
{ system ? builtins.currentSystem
, config ? { }
, overlays ? [ ]
, busybox ? if builtins.pathExists ./busybox then ./. else /usr/bin
, salt ? ""
}:

let
  # Only the one file, so that the source is the same wherever that file is.
  source = builtins.path {
    name = "busybox";
    path = busybox;
    filter = path: type: baseNameOf path == "busybox";
  };

  # Why a package may not be had, in the words of nixpkgs; null where it may.
  refusal = name: meta:
    if (meta.unfree or false) && !(config.allowUnfree or false)
    then "has an unfree license (‘unfree’)"
    else if (meta.broken or false) && !(config.allowBroken or false)
    then "is marked as broken"
    else if meta ? knownVulnerabilities && !(builtins.elem name (config.permittedInsecurePackages or [ ]))
    then "is marked as insecure"
    else if meta ? platforms && !(builtins.elem system meta.platforms) && !(config.allowUnsupportedSystem or false)
    then "is not available on the requested hostPlatform (${system})"
    else null;

  # A package: a script of busybox's shell that fills $out and the other outputs.
  package = { name, script, meta ? { }, outputs ? [ "out" ], ... }@attributes:
    let
      drv = derivation ({
        inherit name system salt outputs;
        builder = "${source}/busybox";
        args = [ "sh" "-euc" prelude "${name}.sh" (builtins.toFile "${name}.sh" script) ];
        busybox = "${source}/busybox";
      } // removeAttrs attributes [ "script" "meta" ]);
      why = refusal name meta;
      refused = throw "Package ‘${name}’ in ${toString ./default.nix} ${why}, refusing to evaluate.";
      checked = value: if why == null then value else refused;
      described = one: one // {
        drvPath = checked one.drvPath;
        outPath = checked one.outPath;
        meta = {
          outputsToInstall =
            if builtins.elem "bin" outputs then [ "bin" ] ++ (if builtins.elem "man" outputs then [ "man" ] else [ ])
            else [ "out" ];
          unfree = false;
          broken = false;
          insecure = meta ? knownVulnerabilities;
          unsupported = meta ? platforms && !(builtins.elem system meta.platforms);
          available = why == null;
        } // meta;
      };
      output = name: { inherit name; value = described drv.${name} // { outputSpecified = true; }; };
    in
    described drv // builtins.listToAttrs (map output outputs);

  prelude = ''
    mkdir() { "$busybox" mkdir "$@"; }
    ln() { "$busybox" ln "$@"; }
    chmod() { "$busybox" chmod "$@"; }
    cat() { "$busybox" cat "$@"; }
    seq() { "$busybox" seq "$@"; }
    # program FILE: an executable that the shell reads, from standard input
    program() {
      mkdir -p "''${1%/*}"
      { echo "#!$busybox sh"; cat; } > "$1"
      chmod 555 "$1"
    }
    . "$1"
  '';

  # Tools of busybox under their names.
  tools = name: list: package {
    inherit name;
    list = toString list;
    script = ''
      mkdir -p $out/bin
      for tool in $list; do ln -s $busybox $out/bin/$tool; done
    '';
  };

  # A program that says a line.
  saying = name: line: attributes: package ({
    inherit name line;
    program = name;
    script = ''echo "echo '$line'" | program $out/bin/$program'';
    meta = { mainProgram = name; } // attributes.meta or { };
  } // removeAttrs attributes [ "meta" ]);

  numbers = from: to: if from > to then [ ] else [ from ] ++ numbers (from + 1) to;

  base = self: {
    # What every image has.
    cacert = package {
      name = "cacert-1.0";
      script = ''
        mkdir -p $out/etc/ssl/certs
        echo "no authority is trusted here" > $out/etc/ssl/certs/ca-bundle.crt
      '';
    };
    iana-etc = package {
      name = "iana-etc-1.0";
      script = ''
        mkdir -p $out/etc
        echo "http 80/tcp" > $out/etc/services
        echo "tcp 6 TCP" > $out/etc/protocols
      '';
    };

    # The names of a shell's image.
    bashInteractive = package {
      name = "bash-interactive-5.1";
      script = ''
        echo "exec $busybox sh \"\$@\"" | program $out/bin/bash
        ln -s bash $out/bin/sh
      '';
      meta.mainProgram = "bash";
    };
    coreutils = tools "coreutils-9.1" [
      "basename" "cat" "chmod" "cp" "cut" "date" "dirname" "echo" "env" "false" "head" "id" "ln" "ls"
      "mkdir" "mv" "od" "printf" "pwd" "rm" "rmdir" "sha256sum" "sleep" "sort" "stat" "tail" "touch"
      "true" "uname" "uniq" "wc"
    ];
    moreutils = tools "moreutils-0.67" [ "ts" ];
    nano = tools "nano-7.2" [ "vi" ];

    # Programs, some of which need others at run time.
    hello = saying "hello" "${config.greeting or "Hello"}, world!" { };
    greeting = package {
      name = "greeting-1.0";
      library = self.library.lib;
      hello = self.hello;
      script = ''
        echo ". $library/lib/greeting.sh; $hello/bin/hello; greet" | program $out/bin/greeting
      '';
      meta.mainProgram = "greeting";
    };
    git = package {
      name = "git-2.45.1";
      outputs = [ "out" "doc" ];
      hello = self.hello;
      chain = self.chain;
      script = ''
        echo "echo git version 2.45.1" | program $out/bin/git
        mkdir -p $out/libexec/git $doc/share/doc
        ln -s $hello/bin/hello $out/libexec/git/hello
        ln -s $chain $out/libexec/git/chain
        echo "how to use git" > $doc/share/doc/git
      '';
    };
    htop = saying "htop" "nothing runs here" { };

    # Several outputs: those to install are not always the first.
    library = package {
      name = "library-1.2";
      outputs = [ "out" "lib" "dev" ];
      script = ''
        mkdir -p $out/share $lib/lib $dev/include
        echo "greet() { echo 'Hello from a library'; }" > $lib/lib/greeting.sh
        echo "library of greetings" > $out/share/library
        echo "void greet();" > $dev/include/greeting.h
        ln -s $lib $dev/lib
      '';
      meta.outputsToInstall = [ "out" "lib" ];
    };
    multiple = package {
      name = "multiple-3.0";
      outputs = [ "dev" "bin" "man" "out" ];
      script = ''
        echo "echo several outputs" | program $bin/bin/multiple
        mkdir -p $man/share/man $out $dev/include
        echo "multiple(1)" > $man/share/man/multiple
        echo "$bin" > $dev/include/bin
      '';
      meta.mainProgram = "multiple";
    };
    plain = builtins.removeAttrs self.library [ "meta" ];

    # A chain of references, and a tree of many files, for closures and layers of some size.
    chain = builtins.foldl'
      (previous: number: package {
        name = "chain-${toString number}";
        inherit previous;
        script = ''
          mkdir $out
          echo "link of $name" > $out/link
          [ -z "$previous" ] || ln -s $previous $out/previous
        '';
      }) ""
      (numbers 1 6);
    files = package {
      name = "files-1.0";
      script = ''
        mkdir -p $out/share/files/empty
        for number in $(seq 1 60); do
          mkdir -p $out/share/files/$((number % 7))
          seq 1 $((number * 40)) > $out/share/files/$((number % 7))/$number
        done
        ln -s share/files/1 $out/one
      '';
    };
    service = package {
      name = "service-0.3";
      hello = self.hello;
      script = ''
        mkdir -p $out/etc
        echo "greeter = $hello/bin/hello" > $out/etc/service.conf
        echo "exec $busybox sh -c \"\$($busybox cut -d' ' -f3 $out/etc/service.conf)\"" | program $out/bin/serviced
      '';
      meta.mainProgram = "serviced";
    };

    # Spellings that no registry can write.
    ImageMagick = saying "magick" "an image" { };
    SDL2 = saying "sdl2-config" "2.28" { };
    Twin = saying "twin" "the one that is found" { };
    tWin = saying "twin" "the one that is not" { };
    fox = saying "fox" "in lower case" { };
    Fox = saying "fox" "in upper case" { };
    _1password = saying "op" "one password" { };
    _7zz = saying "7zz" "seven" { };
    "c++filt" = saying "cplusplusfilt" "has a plus" { };
    "a b" = saying "a-b" "has a blank" { };
    "ümlaut" = saying "umlaut" "is not ASCII" { };
    "quote\"d" = saying "quoted" "has a quote" { };
    "\${system}" = saying "interpolated" "is no interpolation" { };

    # Sets in sets.
    python3Packages = {
      recurseForDerivations = true;
      requests = saying "requests" "GET /" { };
      PyYAML = saying "pyyaml" "yaml: true" { };
      _3to2 = saying "3to2" "backwards" { };
      inner.Deep.Est = saying "deepest" "down here" { };
      unfree = self.unfree;
    };
    xorg.libX11 = saying "xlib" "X" { };

    # What cannot be had, by `config` alone or at all.
    unfree = saying "unfree" "costs money" { meta.unfree = true; };
    licensed = saying "licensed" "as nixpkgs says it in `license`" { meta = { unfree = true; license.free = false; }; };
    broken = saying "broken" "does not work" { meta.broken = true; };
    insecure = saying "insecure" "has holes" { meta.knownVulnerabilities = [ "CVE-2014-0160" ]; };
    unsupported = saying "unsupported" "for another machine" { meta.platforms = [ "x86_64-darwin" ]; };
    x86only = saying "x86only" "for this machine" { meta.platforms = [ "x86_64-linux" ]; };
    elsewhere = derivation { name = "elsewhere"; system = "riscv64-linux"; builder = "${source}/busybox"; };

    # No packages.
    function = { hello }: hello;
    number = 42;
    text = "hello";
    list = [ self.hello ];
    null = null;
    set = { hello = self.hello; };
    pretender = { type = "derivation"; name = "pretender"; };
    wordy = { type = "derivation"; name = "wordy"; drvPath = "not a path"; };

    # Evaluations that end badly: the first three can be caught by Nix, the others cannot.
    throwing = throw "throwing was removed from this set; use hello";
    asserting = assert 1 + 1 == 3; self.hello;
    badly-chosen = self.hello // { meta.outputsToInstall = [ "out" "nonsense" ]; };
    aborting = abort "aborting gives up";
    typing = self.hello.name.version;
    misspelled = { }.helo;
    circular = self.circular;
    unending = let more = [ self.hello ] ++ more; in more;
    bottomless = let dig = number: 1 + dig (number + 1); in dig 0;
    importing = import (self.hello + "/expression.nix");

    # Evaluations that do not end, or not soon, or not quietly.
    endless = builtins.foldl' (sum: number: sum + add 100000) 0 (builtins.genList (number: number) 1000000);
    hungry = builtins.length (builtins.concatLists (builtins.genList (number: builtins.genList (n: [ n ]) 1000000) 4000));
    loud = builtins.foldl' (sum: number: builtins.trace (loudly 1024) (sum + number)) 0 (builtins.genList (number: number) 100000);
    wide = builtins.listToAttrs (builtins.genList (number: { name = "${loudly 12}${toString number}"; value = self.hello; }) 90000);

    # Builds that fail, or wait for a test.
    failing = package {
      name = "failing-1.0";
      script = ''
        echo "configure: error: no compiler found" >&2
        exit 77
      '';
    };
    gated = package {
      name = "gated-1.0";
      script = ''
        echo at the gate
        read _ < /gates/image || true
        echo "echo through the gate" | program $out/bin/gated
      '';
    };
  };

  add = to: builtins.foldl' (sum: number: sum + number) 0 (builtins.genList (number: number) to);
  loudly = times: builtins.concatStringsSep "" (builtins.genList (number: "0123456789abcdef") times);

  extended = builtins.foldl'
    (set: overlay: self: let before = set self; in before // overlay self before)
    base
    overlays;
  fix = set: let self = set self; in self;
in
fix extended
