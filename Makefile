.PHONY: install check format test demo ci

install:
	pip install -e '.[dev]'

check:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

test:
	pytest

demo:
	netgraft distill --shots 10

ci:
	bash .ci/run
