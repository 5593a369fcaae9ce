"""The scheduler: a deterministic state machine. Events in, effects out; time arrives in the event."""
