# Everything a fresh checkout needs: `make demo` shows the main job, `make test` checks it all. Both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: setup demo emulator test test-fast lint clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# "compat": a plain path, so that a user's folder called calibration does not stand before the package of that name.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e ".[pipeline,dev]"
	# Tests take networks of these; what they name of torchvision is not needed, and pip's would not fit this torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm open_clip_torch ftfy wcwidth
	touch $@

demo: setup
	$(BIN)/compress demo $(DEMO)
	$(BIN)/compress run $(DEMO)/recipe.yaml

# The emulated ARM64 device: about 100 MB into the cache folder, at its first use or here ahead of time.
emulator: setup
	$(BIN)/python -m compress.device.emulator

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q -n 2

test-fast: setup
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
