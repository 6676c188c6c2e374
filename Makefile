# Every target makes .venv first, from a bare Python >= 3.11; a second call re-uses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo studies test tests faults browser-test lint lab app page notebooks benchmarks clean

help:
	@echo "make demo        curate, train and show the checkpoint strip (runs/)"
	@echo "make studies     the article's four claims on pocket2: prints plan and cost, trains for hours, and resumes (runs/)"
	@echo "make test        style, types, all tests, and every notebook, in small or on stored results"
	@echo "make tests       the tests of it alone, without style and types"
	@echo "make faults      more of what make test has a little of: damaged files, killed trainings, any input (minutes)"
	@echo "make browser-test  the widgets in JupyterLab and Chromium only (a part of make test where Chromium is found)"
	@echo "make lab         open JupyterLab on the notebooks"
	@echo "make app         the prompt playground as a page of its own, for this machine alone: http://localhost:8866"
	@echo "make page        a static site that draws in the browser, for any web server: site/ (needs npm once)"
	@echo "make lint        style and types only"
	@echo "make notebooks   run all notebooks anew and renew their links (notebooks/, figures/)"
	@echo "make benchmarks  speed of the training step on this machine"
	@echo "make clean       remove .venv"
	@echo "Another Python: make test PYTHON=python3.12. Options of the demo: make demo DEMO='--help'"

# torch comes first and alone: the build that the package index prefers then satisfies the pin.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kanjilab needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		"name another one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "$(PYTHON) could not make $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/kanjilab demo $(DEMO)
	@echo "The run, its log and its pictures are in runs/; next: make lab"

# Options: make studies STUDIES=--dry-run
studies: $(INSTALLED)
	$(BIN)/kanjilab sweep --study claims --scale legible $(STUDIES)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Types are checked beside the tests. Three processes for two cores: one has the browser, which waits most of the time.
test: $(INSTALLED)
	@$(MAKE) --no-print-directory -j 2 lint tests
	@echo "Style, types, tests and notebooks: all passed (their files were temporary, nothing is left behind)"

tests: $(INSTALLED)
	$(BIN)/pytest -q -n 3 $(TESTS)

faults: $(INSTALLED)
	KANJILAB_FAULTS=1 KANJILAB_KILLS=13 $(BIN)/pytest -q -n 2 tests/faults tests/core/test_run_folder.py \
		tests/core/test_integrity.py tests/training/test_damaged_training.py \
		tests/widgets/test_training_panel.py::test_killed_again_and_again_nothing_but_the_last_steps_is_lost \
		tests/training/test_trainer.py::test_a_killed_training_goes_on_bit_for_bit
	@echo "Counts are above; docs/reliability.md says what they mean"

browser-test: $(INSTALLED)
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ echo "No Chromium on the search path. Install it (Debian and Ubuntu: apt-get install chromium;" \
		"macOS: brew install --cask chromium), then: make browser-test" >&2; exit 1; }
	$(BIN)/pytest -q tests/browser

# What notebook and kernel tell each other is encrypted, or else every kernel warns that it is not. The last option lets
# 512 MB of files reach the dataset browser; otherwise what has more than 10 MB is lost without a word.
lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.default_url=/lab/tree/00_start_here.ipynb \
		--KernelManager.transport_encryption=auto \
		--ServerApp.tornado_settings="{'websocket_max_message_size': 536870912}"

# Other options of Voilà: make app APP=--port=8080
app: $(INSTALLED)
	@echo "Serving the playground with the runs in runs/ (or \$$KANJILAB_RUNS); to end it: Ctrl-C"
	$(BIN)/python app/serve.py $(APP)

# Options: make page PAGE='--model FOLDER --repository https://github.com/owner/name'
page: $(INSTALLED)
	$(BIN)/python app/page/build.py $(PAGE)

notebooks: $(INSTALLED)
	$(BIN)/python notebooks/build.py
	@echo "The notebooks are in notebooks/, their figures in figures/"

benchmarks: $(INSTALLED)
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done
	@echo "Printed above; nothing is stored"

clean:
	rm -rf $(VENV)
