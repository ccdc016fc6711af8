BIN := .venv/bin

.PHONY: setup check test bench topics docs lock demo
setup:
	python3 -m venv .venv && $(BIN)/pip install -c requirements.lock -e '.[dev]'
check:
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/mint-stream topics docs --check
test:
	$(BIN)/pytest
bench:
	$(BIN)/mint-stream bench serving
topics docs:
	$(BIN)/mint-stream topics docs
demo:
	$(BIN)/mint-stream demo --json demo.json
lock:
	$(BIN)/uv pip compile --universal --all-extras --no-emit-index-url --no-annotate --no-header --python-version 3.11 pyproject.toml -o requirements.lock
