"""The binary cache: verified uploads in, signed paths out."""
