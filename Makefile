# make install | demo | test | slow | check | matrix | recipes | faults | fuzz        (Debian, Python 3.11+, make; no GPU needed)
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: install demo test slow check lint matrix recipes faults fuzz clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(RUN) -m search.run --space spaces/digits.yaml --trials 20
	$(RUN) -m search.export_best --rank 0

test: install
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: install
	$(RUN) -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

check: lint test slow

matrix: install
	$(RUN) benchmarks/matrix.py
	$(RUN) -m tests.contracts.allocation_matrix

recipes: install
	$(RUN) -m pytest -m recipes tests/docs/test_recipes.py

faults: install
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray,dask]'
	$(RUN) -m tests.faults.kills --kills 50 --out benchmarks/results/kills.json
	$(RUN) -m tests.faults.fuzz --inputs 500 --out benchmarks/results/fuzz.json
	$(RUN) -m pytest -m faults tests

fuzz: install
	$(RUN) -m tests.core.pack_mutations --files 10000 --out benchmarks/results/pack_fuzz.json

clean:
	rm -rf $(VENV) runs exported
