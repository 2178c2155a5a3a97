# Every target makes .venv first when it is missing or older than what it is made from: the lock as it stands, with the hash of
# every file. torch is the one without CUDA where pip finds it (in a folder of PIP_FIND_LINKS, say), else PyPI's with what that
# needs. What few tests need goes into folders of its own: PEFT imports torchao where it finds it, which prints warnings, and
# DeepSpeed is built, which does not work everywhere.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(if $(shell command -v uv 2> /dev/null),uv pip install --python $(BIN)/python,$(BIN)/pip install --no-compile) --quiet --no-deps
APART = $(BIN)/pip install --quiet --no-compile --upgrade --no-deps --require-hashes --target $(@D) --requirement $<
# Without what Python compiled before, every process of the tests takes 15 s to import PEFT and diffusers, not 5.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help demo test test-studio test-latest lint docs readme models bases experiments experiments-quick

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml hashes.txt hashes-cpu.txt hashes-cuda.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --require-hashes --requirement hashes-cpu.txt 2> /dev/null || true
	$(INSTALL) --require-hashes --requirement hashes.txt
	if $(BIN)/pip show torch | grep -q cuda; then $(INSTALL) --require-hashes --requirement hashes-cuda.txt; fi
	$(INSTALL) --no-build-isolation --editable .
	touch $@

.venv/quantize/installed: hashes-quantize.txt .venv/installed
	$(APART)
	touch $@

.venv/deepspeed/installed: hashes-deepspeed.txt .venv/installed
	mkdir -p $(@D)
	DS_BUILD_OPS=0 $(APART) --no-build-isolation || echo "DeepSpeed cannot be built here: its tests are skipped"
	touch $@

demo: .venv/installed  ## learn a teapot from five images and draw it elsewhere (runs/demo)
	$(BIN)/atomtune demo

test: .venv/quantize/installed .venv/deepspeed/installed  ## the whole test suite, in two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-studio: .venv/installed  ## all tests of the studio in a browser, with half an hour of three users, and its pictures
	$(BIN)/python -m pytest tests/studio --studio -v
	cp .cache/studio/*-1280-light.png docs/studio/
	$(BIN)/python -m tests.studio.latency

test-latest:  ## the test suite with the newest PEFT instead of the pinned one
	$(PYTHON) -m venv .venv-latest
	grep -v '^peft==' constraints.txt > .venv-latest/constraints.txt
	.venv-latest/bin/pip install --quiet --upgrade --constraint .venv-latest/constraints.txt --editable '.[dev,eval]' peft
	.venv-latest/bin/pip install --quiet --upgrade --target .venv-latest/quantize --requirement hashes-quantize.txt --no-deps
	.venv-latest/bin/pip list | grep '^peft '
	.venv-latest/bin/python -m pytest

lint: .venv/installed  ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	@if $(PYTHON) -c "import socket; socket.create_connection(('pypi.org', 443), 5)" 2> /dev/null; then \
	  $(BIN)/pip-audit $(foreach file,$(filter-out hashes-cpu.txt,$(wildcard hashes*.txt)),--requirement $(file)) --require-hashes --disable-pip \
	    --progress-spinner off; \
	else echo "pip-audit is skipped: it asks pypi.org for known vulnerabilities, and there is no network here"; fi

docs: .venv/installed  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

readme: .venv/installed  ## run the demo with LoRA beside it, copy its grid into the docs, inspect its adapter
	$(BIN)/atomtune demo --compare
	$(BIN)/atomtune prune runs/demo --keep 800 --by energy --out runs/demo-small
	cp runs/demo-small/adapter/* src/atomtune/moji/teapot/
	$(BIN)/python docs/readme.py runs/demo
	$(BIN)/python docs/screenshots.py

models: .venv/installed  ## write docs/reference/models.md from the families that the tests run through
	$(BIN)/python -m tests.adapters.models_page

bases: .venv/installed  ## write docs/reference/bases.md from the bases that the tests run through
	$(BIN)/python -m tests.bases.bases_page

experiments: .venv/installed  ## run what is missing of the paper's small experiments, then make all figures and pages
	$(BIN)/python -m experiments

experiments-quick: .venv/installed  ## a small slice of them, into runs/experiments-quick
	$(BIN)/python -m experiments --quick
