"""Grange: an elastic build farm for Nix and Guix."""

__version__ = "0.1.0"
