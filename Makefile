# Two commands: `make run` and `make test`. Each prepares its own environment on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help run test lint types train gpu clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 8

run: $(READY)  ## export, build and measure the shipped models, then export FasterViT-0
	$(BIN)/python -m fastervit_trt.cli.demo

# Most tests keep one core busy. Processes take file by file, in the order of tests/conftest.py, so that what a file sets
# up is set up once. A thread of OpenMP that waits must not keep a core from the others.
PROCESSES ?= 2
SHARED := -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
test: lint types  ## lint, types and every test that this machine can run; PROCESSES=4 with more cores
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(SHARED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows no editable import hook, so it checks an ordinary installation of the package.
types: $(READY)
	rm -rf build/types build/python && $(BIN)/python -m pip install --quiet --no-deps --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p fastervit_trt

train: $(READY)  ## train the models that ship again
	$(BIN)/python -m fastervit_trt.models.digits.train
	$(BIN)/python -m fastervit_trt.models.scenes.train

# With the Python that has PyTorch for the GPU, and without network: the package is the checkout itself, under its name.
SITE := $(CURDIR)/build/gpu/site
gpu:  ## build, check and time the kernels on this machine's GPU; options in GPU="--stages core"
	rm -rf $(SITE) && mkdir -p $(SITE)/fastervit_trt
	ln -s $(CURDIR)/src/fastervit_trt/* $(patsubst %,$(CURDIR)/%,models export plugins engines benchmarks deploy) $(SITE)/fastervit_trt
	PYTHONPATH=$(SITE)$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m fastervit_trt.benchmarks.gpu $(GPU)

$(READY): pyproject.toml requirements/constraints.txt
	@echo "preparing $(VENV) (first time, or after a change of requirements)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off -q -c requirements/constraints.txt -e '.[export,tasks,cpu,serve,demo,dev]'
	@touch $@

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build
