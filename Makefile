# Two commands do everything on a machine with Python and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything works offline once it is installed; nothing here asks a hub.
export HF_HUB_OFFLINE := 1
# Python keeps what it compiles, whatever the shell says: without it every process compiles torch anew, ten seconds each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test coverage lint format docs notebook bench gpu results release clean
help: ## list the commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.runtime ## a small study of a real encoder on real text: score against share of constant heads
	$(BIN)/papa demo --fetch

test: $(VENV)/.dev ## all tests and doctests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

coverage: $(VENV)/.dev ## the same, with the share of lines that they reach; takes half as long again
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --cov --cov-report term

lint: $(VENV)/.dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.docs: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs ## the documentation: tables from the code, then a site in build/docs
	$(BIN)/python tools/make_registry_tables.py
	$(BIN)/python tools/make_command_tables.py
	$(BIN)/python tools/make_api_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open build/docs/index.html, or with search: $(BIN)/python -m http.server --directory build/docs"

$(VENV)/.notebook: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebook]'
	touch $@

notebook: $(VENV)/.notebook $(ENCODER)/config.json ## run the notebook of the documentation again, and write its page
	$(BIN)/python tools/make_notebook_page.py --execute

# The sets of docs/performance.md; `make bench BENCHMARKS=speed` runs one of them.
BENCHMARKS := speed runtimes calibration folded compact growth
bench: $(VENV)/.dev ## time and memory against the stock encoder: tables and figures in build/benchmark
	for name in $(BENCHMARKS); do \
		$(BIN)/papa benchmark --config $$name.yaml --output build/benchmark/$$name || exit 1; \
	done

gpu: $(VENV)/.dev ## on a GPU: the tests that need one, then its times: one table in build/benchmark/gpu
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/python -m pytest --numprocesses 4 -vv -m gpu tests/gpu
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/papa benchmark --config gpu.yaml --output build/benchmark/gpu

# The folder of docs/results.md: data/ and encoders/ as that page says; the rest is written, and goes on after a kill.
RESULTS := build/results
IN_RESULTS = cd $(RESULTS) && PATH=$(CURDIR)/$(BIN):$$PATH
results: $(VENV)/.runtime ## everything that docs/results.md says, measured again: a night on two cores
	$(IN_RESULTS) papa study --config evidence.yaml --output studies/evidence
	$(IN_RESULTS) papa study --config evidence.yaml --config evidence_criteria.yaml --output studies/evidence
	$(MAKE) $(RESULTS)/graded $(RESULTS)/data/retrieval $(RESULTS)/reliability.csv
	$(IN_RESULTS) papa study --config graded.yaml --output studies/graded
	$(IN_RESULTS) papa study --config evidence_embeddings.yaml --output studies/embeddings
	$(IN_RESULTS) papa study --config evidence_embeddings.yaml --output studies/embeddings_e5 \
		--encoders '{"e5-small": "encoders/e5-small"}' --tasks.stsb.init_args.prefix 'query: ' \
		--tasks.mnli.init_args.query_prefix 'query: ' --tasks.mnli.init_args.passage_prefix 'passage: '
	$(BIN)/python tools/make_results.py collect $(addprefix $(RESULTS)/studies/,evidence graded embeddings embeddings_e5) \
		--reliability $(RESULTS)/reliability.csv
	$(BIN)/python tools/make_results.py page

$(RESULTS)/graded: $(RESULTS)/text.txt
	$(BIN)/python tools/train_graded_encoders.py $(RESULTS)/encoders/MiniLM-L6 $< $@ \
		--tokens 640000 --batch 16 --learning-rate 1e-3

$(RESULTS)/text.txt:
	$(BIN)/python tools/join_texts.py $(RESULTS)/data $@ --train_only

$(RESULTS)/data/retrieval: $(RESULTS)/data/mnli
	$(BIN)/python tools/make_retrieval_set.py $< $@

$(RESULTS)/reliability.csv:
	$(IN_RESULTS) python $(CURDIR)/tools/measure_reliability.py \
		--config $(CURDIR)/papa_lightning/configs/study/evidence.yaml \
		--encoders MiniLM-L3 MiniLM-L6 --tasks cola sst2 mrpc --output reliability.csv

$(VENV)/.release: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	touch $@

release: $(VENV)/.release ## sdist and wheel in dist/, checked: metadata, and commands of the wheel in an empty folder
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tools/check_wheel.py dist/*.whl

clean: ## remove the environment and what the demo wrote
	rm -rf $(VENV) build dist models lightning_logs studies budgets
