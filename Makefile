# Every target stands alone: it installs what is missing into .venv first.
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS := ignore::SyntaxWarning

.PHONY: help install debian quickstart check test seeds modes bench algorithms staleness peers bench-replay plan chaos scaling netns telemetry-cost screenshots clean

help:
	@sed -n 's/^## //p' Makefile

## make install      the environment in .venv, for a machine without a GPU
install:
	@scripts/install.sh

# Debian's packages that some tests use, where they can be installed; those are skipped elsewhere.
debian:
	@scripts/debian.sh

## make quickstart   train the bundled model for a few minutes; ends with a table
quickstart: install
	slipstream launch examples/arithmetic/buffered.yaml --overwrite

## make check        format, lint, types, import rules, pure-core tests, the wheel; under 2 minutes
check: install
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	pytest tests/unit tests/packaging

## make test         `make check`, then every test; the cheap ones first
test: debian check
	pytest -x tests/contract tests/integration

## make seeds        the quickstart on three seeds, time and memory; writes docs/results/quickstart.md
seeds: install
	python scripts/seeds.py

## make modes        the four modes side by side; writes docs/results/modes.md
modes: install
	python scripts/modes.py

## make bench        rollout, learner and pipeline speed, beside TRL; writes docs/results/bench.md
bench: install
	PYTHONPATH=scripts python scripts/bench/bench.py

## make algorithms   every algorithm on the arithmetic example; writes docs/results/algorithms.md
algorithms: install
	python scripts/algorithms.py

## make staleness    what old samples cost; writes docs/results/staleness.md
staleness: install
	python scripts/staleness.py

## make peers        our formulas beside TRL's and verl's; writes docs/results/peers.md
peers: install
	scripts/environment.sh .venv-peers scripts/peers/requirements.txt scripts/peers/overrides.txt
	PYTHONPATH=.:scripts .venv-peers/bin/python scripts/peers/compare.py

## make bench-replay groups a second through replay, beside Ray's queue; writes docs/results/bench_replay.md
bench-replay: install
	PYTHONPATH=.:scripts python scripts/bench_replay.py

## make plan         predicted beside measured step time; writes docs/results/plan.md
plan: install
	PYTHONPATH=.:scripts python scripts/plan_check.py

## make chaos        every role killed at random moments; writes docs/results/chaos.md
chaos: install
	PYTHONPATH=.:scripts python -m chaos

## make scaling      workers and ranks added and taken away while a job trains; writes docs/results/scaling.md
scaling: install
	PYTHONPATH=.:scripts python scripts/scaling.py

## make netns        a network of three hosts that breaks; needs root; writes docs/results/netns.md
netns: install
	PYTHONPATH=.:scripts python scripts/netns.py

## make telemetry-cost  throughput with all telemetry and with none; writes docs/results/telemetry.md
telemetry-cost: install
	PYTHONPATH=.:scripts python scripts/telemetry_cost.py

## make screenshots  pictures of the dashboard, of Prometheus and of a report; writes docs/images
screenshots: install
	scripts/debian.sh chromium chromium-driver
	scripts/environment.sh .venv-browser scripts/screenshots/requirements.txt
	PYTHONPATH=.:scripts .venv-browser/bin/python -m screenshots

## make clean        remove the environment and what runs left behind
clean:
	rm -rf .venv .venv-trl .venv-peers .venv-browser runs
