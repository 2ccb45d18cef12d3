"""Print the options of ``netgraft distill`` as the table of docs/options.md: ``python -m benchmarks.option_table``."""

from __future__ import annotations

from netgraft.jobs.options import DistillOptions, ordered
from netgraft.options import Option, shown

TABLES = {"pair": "`[[pair]]`", "run": "`[[run]]`", "": ""}


def row(option: Option) -> str:
    """Return an option's line: on the command line, in an experiment, by default, in words."""
    default = "" if option.default is None or option.type is bool else f"`{shown(option.default)}`"
    return f"| `{option.flag}` | {TABLES[option.scope]} | {default} | {option.meaning} |"


def main() -> None:
    """Print the table."""
    print("| option | in an experiment | default | meaning |\n|---|---|---|---|")
    print("\n".join(map(row, ordered(DistillOptions).values())))


if __name__ == "__main__":
    main()
