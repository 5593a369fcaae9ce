"""The command line: what a person types, sees and gets as an exit code."""
