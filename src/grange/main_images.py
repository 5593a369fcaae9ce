"""Builds what images take, for `main`: the catalog, the layers, the maker, an evaluator."""
