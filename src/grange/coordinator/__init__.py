"""The coordinator: decides through the scheduler, remembers in the journal, acts on agents."""
