BIN := .venv/bin

.PHONY: setup check test triton-3.6 bench topics docs lock demo
setup:
	python3 -m venv .venv && $(BIN)/pip install -c requirements.lock -e '.[dev]'
check:
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/mint-stream topics docs --check
test:
	$(BIN)/pytest
# The kernels on the triton that torch does not pin: every variant compiled, and interpreted, for which numpy must be older too.
triton-3.6:
	$(BIN)/pip install --no-deps --upgrade --target .triton-3.6 triton==3.6.0 'numpy<2.4'
	PYTHONPATH=.triton-3.6 TRITON_CACHE_DIR=.triton-3.6/cache $(BIN)/pytest tests/kernels/test_compiled.py tests/kernels/test_interpreted.py
bench:
	$(BIN)/mint-stream bench serving
topics docs:
	$(BIN)/mint-stream topics docs
demo:
	$(BIN)/mint-stream demo --json demo.json
lock:
	$(BIN)/uv pip compile --universal --all-extras --no-emit-index-url --no-annotate --no-header --python-version 3.11 pyproject.toml -o requirements.lock
