"""The agent: builds what the coordinator sends it and delivers the results."""
