# Two commands for a newcomer: `make demo` runs the whole walk, `make test` proves it.
.PHONY: demo test check clean

demo:
	scripts/install agent publisher demo
	.venv/bin/edgewright demo

test:
	scripts/install dev
	scripts/test-tools
	scripts/test

check:
	scripts/install dev
	scripts/check

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
