PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a test process: several processes with PyTorch's threads each would only wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2
KERNELS := $(wildcard src/regrow/csrc/*.h src/regrow/csrc/*.cpp)

# Bytecode is written when a module is first imported, not for all that is installed; hundreds of processes of the tests share it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow sanitize sanitize-threads docs lint format clean

demo: $(VENV)/.demo ## train a dense and a sparse LeNet on Fashion-MNIST and compare them, then time steps of a wide network (minutes)
	$(BIN)/regrow demo

test: $(VENV)/.dev lint ## style, types and every test but the slow ones
	$(TEST) -m "not slow"

test-slow: $(VENV)/.dev ## the tests that take minutes, and more examples for the properties of the core
	$(TEST) -m slow
	REGROW_TEST_EXAMPLES=300 $(TEST) tests/core -m "not slow"

sanitize: $(VENV)/.dev ## the kernels' tests with a build that checks addresses and undefined behaviour
	.ci/sanitize $(BIN)/python address

sanitize-threads: $(VENV)/.dev ## the same with a build that finds what two threads do to each other (minutes)
	.ci/sanitize $(BIN)/python thread

docs: $(VENV)/.dev ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests examples .ci
	$(BIN)/ruff format --check src tests examples .ci
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests examples .ci
	$(BIN)/ruff format src tests examples .ci
	$(BIN)/clang-format -i $(KERNELS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package first, so that the demo needs nothing of the development tools.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[experiments]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	REGROW_REQUIRE_KERNELS=1 $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist runs site
