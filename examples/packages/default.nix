# A package set to make images of, called as nixpkgs is: a few programs on a static busybox.
#
#   grange serve --config examples/packages.toml      a farm that makes images of it
#   skopeo inspect --tls-verify=false docker://127.0.0.1:7380/shell/hello
#   grange build -f examples/packages -A hello         without images
#
# `config` is the set's own business: what is read of it is named below. `overlays` are functions
# of the final set and of the one before them, the last of which has the last word.
{ system ? builtins.currentSystem
, config ? { }
, overlays ? [ ]
}:

let
  packages = final:
    let
      package = import ./package.nix { inherit system config; inherit (final) busybox; };

      # Programs that are shell scripts: every file of `source` becomes one, with its interpreter
      # in the first line and the attributes it names as @attribute@ filled in.
      programs = { pname, source, ... }@attributes: package (attributes // {
        script = ''
          mkdir -p $out/bin
          for program in $source/*; do
            { echo "#!$busybox/bin/sh"; cat $program; } > $out/bin/''${program##*/}
          done
          chmod +x $out/bin/*
          # Each @name@ is a variable of this script.
          for name in $(grep -oh '@[a-z]*@' $source/* | tr -d @ | sort -u); do
            eval "value=\$$name"
            sed -i "s|@$name@|$value|g" $out/bin/*
          done
        '' + attributes.script or "";
      });

      # Some of busybox' tools under a name of their own. Its shell is told what to link.
      links = { tools, ... }@attributes: package (attributes // {
        script = ''
          mkdir -p $out/bin
          for tool in $tools; do
            test -e $busybox/bin/$tool
            ln -s $busybox/bin/busybox $out/bin/$tool
          done
        '';
      });

      # Files as they are, in a folder of the output.
      files = { source, folder, ... }@attributes: package (attributes // {
        script = ''
          mkdir -p $out/$folder
          cp $source/* $out/$folder
        '';
      });
    in
    {
      # --- What images have: certificates and names, and with `shell` four more packages ---------

      cacert = files {
        pname = "cacert";
        version = "1";
        source = ./cacert;
        folder = "etc/ssl/certs";
        meta.description = "One root certificate that nobody has the key of";
      };

      iana-etc = files {
        pname = "iana-etc";
        version = "1";
        source = ./iana-etc;
        folder = "etc";
        meta.description = "The best-known ports and protocols";
      };

      bashInteractive = programs {
        pname = "bash-interactive";
        version = "1";
        source = ./bash;
        script = "ln -s bash $out/bin/sh";
        meta = { description = "Busybox' shell, under bash's name"; mainProgram = "bash"; };
      };

      coreutils = links {
        pname = "coreutils";
        version = "1";
        tools = [
          "[" "base64" "basename" "cat" "chgrp" "chmod" "chown" "chroot" "cp" "cut" "date" "dd" "df"
          "dirname" "du" "echo" "env" "expand" "expr" "factor" "false" "fold" "head" "hostid" "id"
          "link" "ln" "logname" "ls" "md5sum" "mkdir" "mkfifo" "mknod" "mktemp" "mv" "nl" "nproc"
          "od" "paste" "printf" "pwd" "readlink" "realpath" "rm" "rmdir" "seq" "sha1sum" "sha256sum"
          "sha512sum" "shred" "shuf" "sleep" "sort" "stat" "stty" "sync" "tac" "tail" "tee" "test"
          "timeout" "touch" "tr" "true" "truncate" "tty" "uname" "unexpand" "uniq" "unlink" "uptime"
          "wc" "who" "whoami" "yes"
        ];
        meta.description = "Busybox' tools that the GNU coreutils have, too";
      };

      moreutils = programs {
        pname = "moreutils";
        version = "1";
        source = ./moreutils;
        meta.description = "Small tools that others should have had: sponge, chronic, ifne";
      };

      nano = programs {
        pname = "nano";
        version = "1";
        source = ./nano;
        meta = { description = "An editor that says how to leave it, then is vi"; mainProgram = "nano"; };
      };

      # --- Programs ------------------------------------------------------------------------------

      # Everything runs on it. Its own builder is the file that was found on this machine.
      busybox = import ./busybox.nix { inherit system config; };

      # Data that a program needs, and a manual that it does not.
      greetings = package {
        pname = "greetings";
        version = "1.0";
        outputs = [ "out" "doc" ];
        source = ./greetings;
        script = ''
          mkdir -p $out/share/greetings $doc/share/doc
          cp $source/* $out/share/greetings
          echo "Greetings of $(ls $source | wc -l) languages." > $doc/share/doc/greetings
        '';
        meta.description = "How people greet each other";
      };

      # Two outputs, both of which an image gets.
      hello = programs {
        pname = "hello";
        version = "2.0";
        outputs = [ "out" "man" ];
        source = ./hello;
        greetings = final.greetings;
        script = ''
          mkdir -p $man/share/man/man1
          echo '.TH HELLO 1' > $man/share/man/man1/hello.1
          $out/bin/hello
        '';
        meta = {
          description = "Greets you";
          mainProgram = "hello";
          outputsToInstall = [ "out" "man" ];
        };
      };

      git = programs {
        pname = "git";
        version = "0.1";
        source = ./git;
        meta = { description = "A toy that keeps snapshots of a folder"; mainProgram = "git"; };
      };

      htop = links {
        pname = "htop";
        version = "1";
        tools = [ "top" "ps" ];
        meta = { description = "Busybox' top"; mainProgram = "top"; };
      };

      # A service with its configuration; config.web.port decides where it listens.
      web = programs {
        pname = "web";
        version = "1.0";
        source = ./web/bin;
        site = ./web/site;
        port = toString (config.web.port or 8080);
        script = ''
          mkdir -p $out/etc $out/share
          cp -r $site $out/share/web
          echo "I:index.html" > $out/etc/httpd.conf
        '';
        meta = { description = "A web server with one page"; mainProgram = "web"; };
      };

      # Registries know lower case only, and Nix no names that begin with a digit: in names of images
      # these two are 99bottles and toypackages.cowsay.
      _99bottles = programs { pname = "99bottles"; version = "1"; source = ./toys/99bottles; };

      toyPackages = {
        recurseForDerivations = true;
        cowSay = programs { pname = "cow-say"; version = "1"; source = ./toys/cow-say; };
        rot13 = programs { pname = "rot13"; version = "1"; source = ./toys/rot13; };
      };

      # Refused, unless config.allowUnfree is true.
      secretSauce = package {
        pname = "secret-sauce";
        version = "7";
        script = "echo tomatoes > $out";
        meta.license = { fullName = "Unfree"; shortName = "unfree"; free = false; };
      };
    };

  extend = before: overlay: final:
    let previous = before final; in previous // overlay final previous;
  whole = builtins.foldl' extend packages overlays;
  final = whole final;
in
final
