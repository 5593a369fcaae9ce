"""Package sources evaluated with Nix, in bounded processes, for a farm that needs to know."""
