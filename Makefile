# Every target sets up .venv by itself where that is missing or its pins have changed.
.DEFAULT_GOAL := help
.PHONY: help setup demo controls bench-reason bench-store bench-evaluate bench-tune bench-campaign test test-slow test-faults lint clean

INSTALLED := .venv/installed
TRL := .venv/bench
PYTEST := .venv/bin/python -m pytest --durations=10

$(INSTALLED): requirements/cpu.txt requirements/gpu.txt pyproject.toml scripts/install.sh
	@scripts/install.sh

# TRL, in a folder that only the benchmarks' own processes for it see.
$(TRL)/installed: $(INSTALLED) requirements/bench.txt
	@rm -rf $(TRL)
	@.venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps --target $(TRL) --requirement requirements/bench.txt
	@touch $@

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(INSTALLED)  ## .venv with everything in it, at the pinned versions
	@echo "$(INSTALLED:/installed=) is ready"

demo: $(INSTALLED)  ## the whole method on generated questions with the embedded model, into runs/demo
	@.venv/bin/fiat-ray run demo

controls: $(INSTALLED)  ## proof that the effects in reports are real, and would be missed were they not; into runs/controls
	@.venv/bin/python -m benchmarks.controls

bench-reason: $(INSTALLED)  ## how near reasoning comes to the engine's own speed, and to other ways of batch inference (under 30 minutes)
	@.venv/bin/python -m benchmarks.reasoning

bench-store: $(INSTALLED)  ## what reasoning costs beside the engine; nothing is generated twice, nothing lost (under 30 minutes)
	@.venv/bin/python -m benchmarks.store

bench-evaluate: $(INSTALLED)  ## what evaluating many trials in one engine costs beside their predictions (under 40 minutes)
	@.venv/bin/python -m benchmarks.evaluation

bench-tune: $(TRL)/installed  ## how tuning compares with TRL and with a bare PyTorch loop, in speed and in loss (under 40 minutes)
	@.venv/bin/python -m benchmarks.tuning $(TRL)

bench-campaign: $(TRL)/installed  ## what a whole campaign takes beside a script around vLLM and TRL (about 40 minutes)
	@.venv/bin/python -m benchmarks.campaigns $(TRL)

test: $(INSTALLED)  ## the tests
	@$(PYTEST) -m "not slow" --numprocesses=2 --dist=loadfile

test-slow: $(INSTALLED)  ## the tests that take minutes
	@$(PYTEST) -m slow

test-faults: $(INSTALLED)  ## 40 faults in real campaigns, as root (under 30 minutes); FAULTS=200: more of them
	@.venv/bin/python -m benchmarks.faults $(if $(FAULTS),--faults $(FAULTS))

lint: $(INSTALLED)  ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

clean:  ## removes .venv and caches; runs/ and mlruns/ stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info build
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
