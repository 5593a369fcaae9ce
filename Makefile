# What a person runs. Everything happens in this checkout: .venv, and .demo for the demo.

ARGS ?=
BENCH ?= all
DEMO_ARGS = $(ARGS) $(if $(KEEP),--keep)

.PHONY: help setup demo demo-elastic demo-image clean-demo test check soak bench clean

help:
	@echo "make demo         a farm of two agents on this machine (KEEP=1 leaves it running)"
	@echo "make demo-elastic a farm without agents: they come with a build and go when it is done"
	@echo "make demo-image   a farm makes container images of packages, and stock tools run them"
	@echo "make test         all tests"
	@echo "make check        format, lint, types, layers and quick tests, in under a minute"
	@echo "make soak         simulate farms by the thousand (ARGS=\"--minutes 60\")"
	@echo "make bench        all benchmarks, or one with BENCH=name"
	@echo "make setup        install what is missing and make .venv, as all of the above do"
	@echo "make clean-demo   stop and remove the demo's farm"
	@echo "make clean        remove all that was made here"

setup:
	@tools/bootstrap

demo-elastic: setup
	@.venv/bin/python tools/demo_elastic.py

demo-image: setup
	@.venv/bin/python tools/demo_image.py $(DEMO_ARGS)

demo: setup
	@.venv/bin/python tools/demo.py $(DEMO_ARGS)

clean-demo:
	@if [ -d .demo ]; then .venv/bin/python tools/demo.py --clean; fi

test: setup
	.venv/bin/pytest $(ARGS)

check: setup
	./check

soak: setup
	.venv/bin/python -m tests.simulation.soak $(ARGS)

bench: setup
	.venv/bin/python -m benchmarks $(BENCH) $(ARGS)

clean: clean-demo
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	rm -rf benchmarks/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
