"""A Buildbot that waits for capacity before it builds: a configurator with a gate and a release."""
