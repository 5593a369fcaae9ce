"""The scheduler: a deterministic state machine. Events in, effects out; time is in the call."""
