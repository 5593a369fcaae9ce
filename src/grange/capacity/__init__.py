"""PURE: pools, slots, reservations, and the plan that brings them to where demand is."""
