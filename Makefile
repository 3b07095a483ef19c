# The two commands: `make demo` and `make test`. Both set everything up in .venv on a fresh machine with Python 3.11+.
.PHONY: demo test check setup setup-dev docs clean
export GOMP_SPINCOUNT ?= 0

demo: setup
	.venv/bin/kuosan demo --out demo

test: setup-dev check
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup-dev
	.venv/bin/ruff check src tests benchmarks tools
	.venv/bin/ruff format --check src tests benchmarks tools
	.venv/bin/mypy

docs: setup-dev
	.venv/bin/python tools/build_cli_page.py

setup:
	@./setup

setup-dev:
	@./setup dev

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
