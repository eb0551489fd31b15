# make demo [IMAGES=/my/photos]   the main job: pretrain, convert, fine-tune, report
# make test                       the tests (CI runs them); make test-all adds the long ones
# make lint                       format, lint, types
PYTHON ?= python3
VENV ?= .venv
# Threads that wait without spinning: loader workers and the network share the cores.
export OMP_WAIT_POLICY ?= passive
RUN = PYTHONWARNINGS=ignore $(VENV)/bin/python
# Two processes, each of which takes a file of tests at a time, in their order.
TEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-all lint format

setup:
	@$(PYTHON) tools/setup_env.py --venv $(VENV)

demo: setup
	$(RUN) tools/demo.py $(if $(IMAGES),--images "$(IMAGES)")

test: setup
	$(TEST) -m "not slow" tests

test-all: setup
	FUZZ_EXAMPLES=300 $(TEST) tests

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
