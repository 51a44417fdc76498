# Short targets; each makes the environment that it needs, and installs the locked versions when they are not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := .venv-docs
OLDEST := .venv-oldest
WHEEL := .venv-wheel
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
PIP := -m pip install --disable-pip-version-check --quiet

.PHONY: demo studio test test-all test-studio test-oldest lint bench fuzz attack docs wheel clean

demo: $(INSTALLED)
	$(BIN)/cones2 demo

# The page in the browser.
studio: $(INSTALLED)
	$(BIN)/cones2 studio

# One thread each: the tests' models are small, and threads of several processes get in each other's way.
test test-all test-studio test-oldest: export OMP_NUM_THREADS = 1

# The core: what a change is tested with, in a few minutes.
test: $(INSTALLED)
	$(BIN)/python $(PYTEST) -m "not slow and not docs"

# What `test` leaves out: pages, examples, recipes, strangers' files.
test-all: $(INSTALLED)
	$(BIN)/python $(PYTEST) -m "slow or docs"

# The studio, its page and its server: all of its tests, kills and whatever its API allows included.
test-studio: $(INSTALLED)
	$(BIN)/python -m pytest tests/studio
	$(BIN)/python attack/studio_kills.py
	$(BIN)/python attack/studio_api.py

# The core on the lower ends of the versions that pyproject.toml supports.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python $(PYTEST) -m "not slow and not docs and not exact"

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

# Damaged and hostile files for everything that reads files; some minutes.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python attack/fuzz.py

# Failing disks, kills, a crowd, odd values and terminals; on Linux, with a C compiler.
attack: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python attack/faults.py
	OMP_NUM_THREADS=1 $(BIN)/python attack/kills.py
	OMP_NUM_THREADS=1 $(BIN)/python attack/crowd.py
	OMP_NUM_THREADS=1 $(BIN)/python attack/arguments.py --terminals
	OMP_NUM_THREADS=1 $(BIN)/python attack/studio_kills.py --kills 50 --jobs 20
	OMP_NUM_THREADS=1 $(BIN)/python attack/studio_api.py --requests 5000

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

# Build, install into an empty environment, and draw there.
wheel: $(INSTALLED)
	rm -rf $(WHEEL) dist
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python $(PIP) --constraint requirements.lock dist/*.whl
	cd $(WHEEL) && bin/cones2 doctor && bin/cones2 demo --out demo

clean:
	rm -rf $(VENV) $(DOCS) $(OLDEST) $(WHEEL) dist site

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --requirement requirements.lock
	$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(DOCS)/.installed: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP) --requirement requirements-docs.lock
	touch $@

$(OLDEST)/.installed: requirements.lock requirements-oldest.lock pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	grep -v -i -E "^($$(sed -n 's/==.*//p' requirements-oldest.lock | paste -s -d '|'))==" requirements.lock > $(OLDEST)/others.lock
	$(OLDEST)/bin/python $(PIP) --requirement $(OLDEST)/others.lock --requirement requirements-oldest.lock
	$(OLDEST)/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $@
