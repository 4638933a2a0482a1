# Two commands: `make demo` and `make test`. Both prepare .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint clean gpu-bench gpu-wheels

setup: .venv/.ready

# everything is pinned by constraints.txt; BFCL's data and checker come without their dependencies
.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/rcgrpo bfcl install
	touch $@

demo: setup
	$(BIN)/rcgrpo run recipes/demo.toml

test: setup lint
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# on one GPU; any python3 that holds torch will do, .wheels fills in what it lacks (docs/gpu.md)
gpu-bench:
	PYTHON=$(PYTHON) benchmarks/gpu.sh

# pure and compiled wheels for a machine without a network
gpu-wheels:
	benchmarks/gpu_wheels.sh

clean:
	rm -rf .venv runs build dist src/*.egg-info
