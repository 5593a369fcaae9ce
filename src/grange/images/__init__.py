"""Images made from the cache: what they are of, their layers, their bytes; kept and collected."""
