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

# all, or those whose names match: make mutants MUTANTS='netgraft.losses.*'
mutants:
	mutmut run $(if $(MUTANTS),'$(MUTANTS)')

demo:
	netgraft distill --shots 10

pages:
	python -m benchmarks.render_docs

ci:
	bash .ci/run
