# Everything below needs only make and Python 3 with venv. The first run of a target installs what it
# needs into .venv/; a stamp file makes later runs start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPU := $(VENV)/.installed-cpu
DEV := $(VENV)/.installed-dev
TRAIN := $(VENV)/.installed-train
PICTURE ?=
TESTS ?= tests

.PHONY: help demo test lint types docs proto proto-check proto-baseline bench soak models requirements clean

help:
	@echo "make demo [PICTURE=photo.jpg]  encode, analyse and reconstruct a face with the three services"
	@echo "make test [TESTS=tests/...]    run the tests"
	@echo "make lint | types              ruff | mypy"
	@echo "make docs                      build the documentation's site into site/"
	@echo "make proto | proto-check       regenerate the gRPC stubs | lint and wire compatibility (needs npm)"
	@echo "make bench                     measure speed (python -m benchmarks --all: everything)"
	@echo "make soak                      an hour of load, kills and cut links against the three services"
	@echo "make models                    rebuild the weights in models/ (installs torch)"
	@echo "make requirements              compile the hash-pinned requirement files again"

demo: $(CPU)
	$(BIN)/sfic demo $(PICTURE)

test: $(DEV)
	$(BIN)/python -m pytest $(TESTS)

lint: $(DEV)
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/mypy

docs: $(DEV)
	$(BIN)/python -m mkdocs build --strict

proto: $(DEV)
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/sfic/v1/*.proto

# What clients in the field speak. Renew it (`make proto-baseline`) with a release, not to silence a
# failed check.
proto-baseline: $(DEV)
	$(BIN)/python -m grpc_tools.protoc -I proto --include_imports \
		--descriptor_set_out=proto/sfic.v1.binpb proto/sfic/v1/*.proto

BUF := npx --yes @bufbuild/buf@1.75.0
proto-check:
	$(BUF) lint
	$(BUF) breaking --against proto/sfic.v1.binpb

bench: $(TRAIN)
	$(BIN)/python -m benchmarks

soak: $(DEV)
	$(BIN)/python -m benchmarks.soak

models: $(TRAIN)
	$(BIN)/python -m training models

# Order matters: one extra's file holds the smaller one's, so installing more never changes versions.
$(CPU): requirements/cpu.txt requirements/build.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes -r requirements/build.txt -r requirements/cpu.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(CPU) requirements/dev.txt
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

# torch is not in the hashed files: its CPU builds differ by platform and index, each with another
# hash. TORCH_ARGS can name the index of the build that is wanted.
$(TRAIN): $(DEV) requirements/train.txt
	$(PIP) install --quiet --require-hashes -r requirements/train.txt
	$(PIP) install --quiet $(TORCH_ARGS) torch==2.13.0
	@touch $@

.PHONY: train-env
train-env: $(TRAIN)

# `python_version < '3'` is never true: it keeps torch, and the CUDA libraries it names, out.
UV := UV_PYTHON_DOWNLOADS=never $(VENV)-lock/bin/uv pip compile --quiet --upgrade --universal \
	--python-version 3.10 --generate-hashes --no-emit-index-url --no-header --no-annotate
requirements:
	test -x $(VENV)-lock/bin/uv || ($(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet uv)
	echo "torch==2.13.0; python_version < '3'" > $(VENV)-lock/without-torch.txt
	printf 'hatchling\neditables\n' | $(UV) - -o requirements/build.txt
	$(UV) pyproject.toml --extra cpu --extra console -o requirements/cpu.txt
	$(UV) pyproject.toml --extra gpu --extra console -o requirements/gpu.txt
	$(UV) pyproject.toml --extra cpu --extra dev --extra console --extra export \
		--extra nats --extra otel --extra docs -o requirements/dev.txt
	$(UV) pyproject.toml --extra cpu --extra dev --extra console --extra export \
		--extra nats --extra otel --extra docs --extra train \
		--overrides $(VENV)-lock/without-torch.txt -o requirements/train.txt

clean:
	rm -rf $(VENV) $(VENV)-lock out build site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
