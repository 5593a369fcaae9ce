"""What Nix and Guix wrote down: names, hashes and formats, without I/O."""
