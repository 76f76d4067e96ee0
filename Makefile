# One environment; the demo sets up what it needs, the checks add theirs. Nothing is installed twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell git ls-files planner simulator engine pyproject.toml 2>/dev/null)

# Slow tests and those on the asset folder: make test MARKERS="not gpu and not browser"
MARKERS ?= not slow and not assets and not gpu and not browser

.PHONY: help demo test lint types install clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# EfficientNet-Lite0's weights expect (uint8 - 127) / 128.
DEMO_MODEL := efficientnet_lite0:efficientnet_lite0
DEMO_DATA := --data ../out/solar_cells.npz

demo: $(VENV)/.demo-installed ## Plan, simulate, train and measure EfficientNet-Lite0 on photographs of solar cells (most of the time is the set-up)
	@mkdir -p out
	@rm -rf out/demo
	cd examples && ../$(BIN)/python train_on_solar_cells.py ../out/solar_cells.npz
	cd examples && ../$(BIN)/trady-plan --budget 256KB --batch-size 8 --epochs 3 --memory-format channels_last \
	    $(DEMO_DATA) --input 3x128x128 --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502 \
	    -o ../out/plan.json --plot ../out/plan.png $(DEMO_MODEL)
	$(BIN)/trady-simulate out/plan.json --policy solver,trady --trials 500 --plot out/replay.png --timeline out/timeline.png
	cd examples && ../$(BIN)/trady-train ../out/plan.json $(DEMO_MODEL) $(DEMO_DATA) --fit-head --epochs 3 \
	    --batches-per-epoch 100 --no-augment -o ../out/demo

test: install lint types ## Set up, then lint, types and tests (MARKERS chooses others)
	$(BIN)/python -m pytest -m "$(MARKERS)"

lint: $(VENV)/.dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/public_api.py --since HEAD~1

types: install
	$(BIN)/python -m mypy -p trady.planner -p trady.simulator -p trady.engine
	MYPYPATH=tests:examples:tools $(BIN)/python -m mypy --explicit-package-bases tests examples tools benchmarks noxfile.py
	$(BIN)/lint-imports

# A regular (not editable) install: what is tested is what a user gets.
INSTALL := $(BIN)/python -m pip install --quiet --no-deps --force-reinstall --no-build-isolation . && rm -rf build

install: $(VENV)/.installed

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(INSTALL)
	@touch $@ $(VENV)/.demo-installed

$(VENV)/.demo-installed: $(VENV)/.demo-dependencies $(SOURCES)
	$(INSTALL)
	@touch $@

$(VENV)/.dependencies: $(VENV)/.demo-dependencies
	$(BIN)/python -m pip install --quiet ".[dev]"
	@rm -rf build
	@touch $@

$(VENV)/.demo-dependencies: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet ".[demo]"
	@rm -rf build
	@touch $@

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build *.egg-info
