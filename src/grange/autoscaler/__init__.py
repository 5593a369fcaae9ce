"""Observe, plan, act, repeat: the shell around the capacity core."""
