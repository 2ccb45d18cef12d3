.PHONY: install check format test mutants demo pages ci

install:
	pip install -e '.[dev]'

check:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format:
	ruff check --fix .
	ruff format .

test:
	pytest

mutants:
	mutmut run

demo:
	netgraft distill --shots 10

pages:
	python -m benchmarks.render_docs

ci:
	bash .ci/run
