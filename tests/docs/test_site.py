"""The site has all pages, with links that hold and formulas that need no script."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

import netgraft
from benchmarks.render_docs import ROOT


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / ".ci" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "written", "expected"),
    [
        ("index.md", "[a](docs/results.md#ideas)", "[a](results.md#ideas)"),
        ("index.md", "![a](docs/pictures/x.svg)", "![a](pictures/x.svg)"),
        ("attacks.md", "[a](../SECURITY.md)", "[a](project/security.md)"),
        ("deriving.md", "[a](../benchmarks/teachers/README.md)", "[a](project/teachers.md)"),
        ("deriving.md", "[a](../README.md#limits)", "[a](index.md#limits)"),
        ("project/contributing.md", "[a](docs/design.md) [b](SECURITY.md)", "[a](../design.md) [b](security.md)"),
        ("index.md", "[a](docs/notebooks/x.ipynb)", "[a](notebooks/x.md)"),
        ("notebooks/x.md", "[a](x.ipynb) [b](../python.md)", "[a](x.ipynb) [b](../python.md)"),
        ("results.md", "[a](#ideas) [b](https://arxiv.org/x.md)", "[a](#ideas) [b](https://arxiv.org/x.md)"),
    ],
)
def test_links_that_hold_in_the_repository_hold_in_the_site(
    hooks: ModuleType, page: str, written: str, expected: str
) -> None:
    assert hooks.relinked(written, page) == expected


def test_every_relative_link_leads_to_a_file_of_the_repository(hooks: ModuleType) -> None:
    pages = [*(ROOT / "docs").glob("**/*.md"), *(ROOT / "docs").glob("**/*.ipynb")]
    pages += [ROOT / source for source in hooks.OUTSIDE]
    links = [(page, target) for page in pages for target in hooks.LINK.findall(page.read_text(encoding="utf-8"))]
    assert len(links) > 50
    assert [(str(page), target) for page, target in links if not (page.parent / target).exists()] == []


def test_a_notebook_is_a_page_with_what_it_printed(hooks: ModuleType) -> None:
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "text"]},
            {
                "cell_type": "code",
                "source": ["a = 1\n", "a"],
                "outputs": [
                    {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
                    {"output_type": "execute_result", "data": {"text/plain": ["1"]}},
                ],
            },
        ]
    }
    assert hooks.page_of(notebook, "own.ipynb") == (
        "# Title\ntext\n\n[The notebook itself](own.ipynb)\n\n"
        "```python\na = 1\na\n```\n\n```text\none\ntwo\n```\n\n```text\n1\n```\n"
    )


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(
        r"^::: netgraft\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(shown) == sorted(name for name in dir(netgraft) if not name.startswith("_"))


def test_every_method_has_a_formula_or_is_explained() -> None:
    from netgraft.methods.registry import METHODS

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"**{name}**" not in page and f"## {name}\n" not in page] == []


def test_every_formula_can_be_shown(hooks: ModuleType) -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    shown = hooks.FORMULA.sub(hooks._as_mathml, page)
    assert shown.count("<math") == shown.count("</math>") == page.count("```math") + page.count("$`")
    assert "\\" not in shown
