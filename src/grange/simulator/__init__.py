"""The production planner on virtual time, against a virtual cloud, for what a trace would cost."""
