.PHONY: install check format test mutants campaign demo pages notebooks site ci

install:
	pip install -e '.[dev]'

check:
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	bandit --quiet --configfile pyproject.toml --recursive netgraft cli benchmarks .ci

format:
	ruff check --fix .
	ruff format .

test:
	pytest

# all, or those whose names match: make mutants MUTANTS='netgraft.losses.*'
mutants:
	mutmut run $(if $(MUTANTS),'$(MUTANTS)')

# hours; goes on where it was: make campaign PARTS='kills disks'
campaign:
	python -m benchmarks.attacks $(PARTS)

demo:
	netgraft distill --shots 10

pages:
	python -m benchmarks.render_docs

# executes them and keeps what they print
notebooks:
	python -m benchmarks.run_notebooks

# the documentation, in site/
site:
	mkdocs build --strict

ci:
	bash .ci/run
