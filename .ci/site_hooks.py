"""What the site needs beside MkDocs: pages that lie outside of ``docs/``, notebooks, formulas that need no script."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent

OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "benchmarks/teachers/README.md": "project/teachers.md",
}
"""File of the repository -> page of the site. All others of the site lie in ``docs/``."""

SOURCES = {page: source for source, page in OUTSIDE.items()}

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")

FORMULA = re.compile(r"```math\n(?P<block>.*?)\n```|\$`(?P<inline>[^`]+)`\$", re.DOTALL)

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([^<]+)</code>")
"""Cross-references of docstrings, as mkdocstrings leaves them."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside of ``docs/``, and one of each notebook."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        content = page_of(json.loads(path.read_text(encoding="utf-8")), path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links that hold in the repository hold in the site, and write formulas as MathML."""
    return FORMULA.sub(_as_mathml, relinked(markdown, page.file.src_uri))


def on_page_content(html: str, **_: Any) -> str:
    """Show names that docstrings refer to as names."""
    return ROLE.sub(r"<code>\1</code>", html)


def page_of(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown: its texts, its code, and what the code printed.

    Args:
        notebook: As its file has it.
        name: Of the file, to which the page links.
    """
    parts = list(_parts(notebook))
    return "\n\n".join([parts[0], f"[The notebook itself]({name})", *parts[1:]]) + "\n"


def _parts(notebook: dict[str, Any]) -> Iterator[str]:
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            text = "".join(output["text"] if "text" in output else output["data"]["text/plain"])
            yield f"```text\n{text.rstrip()}\n```"


def relinked(markdown: str, page: str) -> str:
    """Return a page's text with its relative links as the site has them.

    Args:
        markdown: As it stands in the repository.
        page: Its address in the site, such as ``project/security.md``.
    """
    source = SOURCES.get(page, f"docs/{page}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[0]))
        there = OUTSIDE.get(target, target.removeprefix("docs/"))
        if there.endswith(".ipynb") and target != f"{source.removesuffix('.md')}.ipynb":
            there = there.replace(".ipynb", ".md")  # its page, which leads to it
        return posixpath.relpath(there, posixpath.dirname(page) or ".")

    return LINK.sub(moved, markdown)


def _as_mathml(formula: re.Match[str]) -> str:
    if formula["inline"]:
        # Python-Markdown would take <math> at the start of a line for a block
        return f"<span>{latex2mathml.converter.convert(formula['inline'])}</span>"
    return f"<div>{latex2mathml.converter.convert(formula['block'], display='block')}</div>"
