"""Hooks: programs, URLs and Python functions that are told what happens in the farm.

The journal keeps each event in the transaction that makes it true. Whoever leads takes them to each
hook from where it stands: at least once, in order within a lane, in parallel across lanes.
"""
