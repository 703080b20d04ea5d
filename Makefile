# The two commands of a newcomer: `make demo` and `make test`. All of it lives in .venv and build; `make clean` ends it.

PYTHON ?= python3
TEST_PROCESSES ?= 2
DEMO_FLAGS ?=
QLORA_FLAGS ?=
PYTEST_FLAGS ?=
GPU_PYTHON ?= $(PYTHON)
BENCH ?= cpu

BIN := .venv/bin
STAMPS := .venv/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check install
# Folders too: a file that is gone changes nothing but its folder.
SOURCES := pyproject.toml $(wildcard CMakeLists.txt) \
	$(shell find src csrc -not -name '*.pyc' -not -name __pycache__ 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo qlora test torture sanitize neon bench docs check pictures format pins clean test-gpu gpu

help:  ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMPS)/demo $(STAMPS)/package  ## train a transformer on paged AdamW (DEMO_FLAGS="--steps 50 --budget 10%")
	$(BIN)/pagedopt demo $(DEMO_FLAGS)

qlora: $(STAMPS)/hf $(STAMPS)/package  ## fine-tune an NF4 model with LoRA on paged AdamW (QLORA_FLAGS="--model ID")
	$(BIN)/python examples/qlora_sft.py $(QLORA_FLAGS)

# One thread a process: processes that share cores with more threads than cores spend their time waiting for each other.
test: $(STAMPS)/test $(STAMPS)/package  ## run all tests (PYTEST_FLAGS="-k pager", TEST_PROCESSES=4)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup --durations 10 $(PYTEST_FLAGS)

torture: $(STAMPS)/test $(STAMPS)/package  ## kill 2,000 trainers and damage 60,000 checkpoints; half an hour
	PAGEDOPT_TORTURE=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --durations 10 tests/torture \
		tests/checkpoint/test_damage.py $(PYTEST_FLAGS)

# Python is no sanitized program, so their run times come first, and leaks are not looked for: it frees little at its end.
# C++'s run time is there from the start, too, where the sanitizer must find what it wraps.
SANITIZE := build/sanitize
RUN_TIMES = $(shell $(CXX) -print-file-name=libasan.so):$(shell $(CXX) -print-file-name=libstdc++.so)
sanitize: $(STAMPS)/build $(STAMPS)/test  ## run the kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer (Linux, g++)
	CXX=$(CXX) $(PIP) --no-build-isolation --no-deps --upgrade --target $(SANITIZE)/site \
		-C build-dir=$(SANITIZE)/cmake -C cmake.build-type=RelWithDebInfo -C cmake.define.PAGEDOPT_SANITIZE=ON .
	grep -q __asan_init $(SANITIZE)/site/pagedopt/kernels/_native*
	OMP_NUM_THREADS=1 PYTHONPATH=$(SANITIZE)/site LD_PRELOAD="$(RUN_TIMES)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m pytest --capture=sys tests/kernels --ignore-glob '*triton*' --ignore-glob '*emulated*' $(PYTEST_FLAGS)

# No part of `make test`, as the compiler is a download of 100 MB, for what changes only with csrc/. Elsewhere than on ARM
# nothing else runs the NEON kernels, and nothing else compiles for Windows and Mac.
NEON := $(CURDIR)/build/neon
neon: $(STAMPS)/neon $(STAMPS)/package  ## run the NEON kernels on an emulated ARM processor, and compile for Windows and Mac
	OMP_NUM_THREADS=1 ZIG_GLOBAL_CACHE_DIR=$(NEON) ZIG_LOCAL_CACHE_DIR=$(NEON) \
		$(BIN)/python -m pytest tests/kernels/test_neon_emulated.py --durations 5 $(PYTEST_FLAGS)

# The Python that has torch for this GPU, which a fresh .venv would not; PYTHONPATH=src if pagedopt is not installed there.
test-gpu:  ## run the tests that need a GPU, compiled, and only those; skips them all where there is none
	$(GPU_PYTHON) -m pytest -m gpu -q --durations 5 tests/gpu tests/kernels tests/distributed $(PYTEST_FLAGS)

gpu:  ## build, test and bench on a machine with a GPU, in ten minutes (tools/gpu_session.sh)
	PYTHON=$(GPU_PYTHON) tools/gpu_session.sh

bench: $(STAMPS)/bench $(STAMPS)/package  ## time the step against its peers and the machine (BENCH="gpu", BENCH="checkpoint", BENCH="cpu --only paged")
	$(BIN)/python -m bench $(BENCH)

# The variable silences a note of the theme's authors on what comes after mkdocs.
docs: $(STAMPS)/docs  ## build the site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html opens as it is; its search needs a server: $(BIN)/mkdocs serve"

check: docs $(STAMPS)/check  ## lint, format, types, who may import whom, and the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports

pictures: $(STAMPS)/demo $(STAMPS)/package  ## draw docs/pictures anew, from a training of seconds and from bench/results
	$(BIN)/python tools/pictures.py

format: $(STAMPS)/check  ## write the format that `make check` asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pins: | $(BIN)/python  ## take the newest versions of everything but torch into requirements/pins.txt
	$(PIP) uv
	cat $(filter-out %/pins.txt,$(wildcard requirements/*.txt)) | grep -v '^-' | $(BIN)/uv pip compile - --upgrade --universal --python-version 3.10 --no-annotate \
		--custom-compile-command "make pins" --output-file requirements/pins.txt

clean:  ## remove everything that was made here
	rm -rf .venv build dist out site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"pagedopt needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + "; make PYTHON=...")'
	$(PYTHON) -m venv .venv
	mkdir -p $(STAMPS)

USES := $(addprefix $(STAMPS)/,build demo hf test neon bench docs check)
$(USES): $(STAMPS)/%: $(wildcard requirements/*.txt) | $(BIN)/python
	$(PIP) -r requirements/$*.txt
	touch $@

# Not editable: what is tested and shown is what a user installs.
$(STAMPS)/package: $(STAMPS)/build $(SOURCES)
	$(PIP) --no-build-isolation --no-deps .
	touch $@
