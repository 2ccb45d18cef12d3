"""What commands print when they are done: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from netgraft.experiments.preview import Preview

WIDTH = 160  # of tables where standard output is no terminal


def emit(text: str) -> None:
    """Print to standard output; a reader that has left is no failure."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # what is still buffered must not fail again when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def emit_lines(lines: Iterable[str]) -> None:
    """Print sentences; in a terminal they break between words, and what is indented, for copying, stays as it is."""
    if not sys.stdout.isatty():
        emit("\n".join(lines))
        return
    width = shutil.get_terminal_size().columns
    broken = (
        [line] if line.startswith(" ") or len(line) <= width else textwrap.wrap(line, width, **WITHIN_WORDS_NEVER)
        for line in lines
    )
    emit("\n".join(row for rows in broken for row in rows))


WITHIN_WORDS_NEVER: Any = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}


def emit_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    emit(json.dumps(content, indent=2))


def emit_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table; columns of numbers stand to the right."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else box.ASCII2, title=title or None, title_justify="left")
    for column, heading in enumerate(headings):
        numeric = all(row[column][:1].isdigit() or row[column] in {"", "-"} for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        table.add_row(*row)
    with console.capture() as capture:
        console.print(table, markup=False)
    emit("\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip())


def count(number: int) -> str:
    """Write a large number for people."""
    return f"{number:,}"


def show_distilled(result: Mapping[str, Any]) -> None:
    """Print what ``distill`` returned: both models side by side, then how the student came about."""
    headings = ["", "top-1\n%", "gap", "agree-\nment %", "parameters", "MACs", "ms at\nbatch 1", "ms at\nbatch 64"]
    rows = []
    for label, prefix in (("teacher", "teacher_"), ("student", "")):
        own = not prefix
        rows.append(
            [
                label,
                _figure(result["student_top1" if own else "teacher_top1"]),
                _figure(result["gap"]) if own else "-",
                _figure(result["agreement"]) if own else "-",
                count(result[f"{prefix}parameters"]),
                f"{result[f'{prefix}macs'] / 1e6:,.1f} M",
                f"{result[f'{prefix}latency_ms_1']:.2f}",
                f"{result[f'{prefix}latency_ms_64']:.2f}",
            ]
        )
    emit_table(headings, rows, title=f"{result['teacher']} -> {result['student']} on {result['data']}")
    emit_lines(_story(result))


def _figure(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.2f}"


def _story(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if result["student_top1"] is None:
        lines.append("no labelled test images: accuracy not measured (give --eval-data)")
        lines += _without_labels(result)
    lines.append(
        f"blocks: {result['inherited_blocks']} of {result['blocks']} inherited from the teacher; "
        f"initialisation of the others: {result['init']}"
        + (f", without {', '.join(result['left_out'])}" if result["left_out"] else "")
    )
    if "derived" in result:
        lines.append(_derived(result))
    lines.append(f"method: {result['method']}, labels: {result['labels']}")
    if "selected_on" in result:
        lines.append(f"CHOSEN ON THE TEST SET, against the protocol: {result['selection']}")
    lines += result.get("warnings", [])
    if "ensemble_top1" in result:
        large = count(result["ensemble_parameters"])
        lines.append(f"the ensemble it was trained in: top-1 {result['ensemble_top1']:.2f} %, {large} parameters")
    converted = [text for text in result["conversions"] if text]
    if converted:
        lines.append(f"adapters in training converted between {', '.join(converted)} (teacher / student)")
    if result["folded_into"]:
        lines.append(f"adapters folded into {', '.join(result['folded_into'])}")
    kept: Mapping[str, str] = result["kept_adapters"]
    if kept:
        reasons = "; ".join(dict.fromkeys(kept.values()))
        size = count(result["kept_adapter_parameters"])
        lines.append(f"adapters that stayed: {len(kept)}, with {size} parameters ({reasons})")
    drawn = f"{result['shots']} a class, " if result["shots"] else ""
    lines += [
        f"views: {result['views']}",
        f"subset: {result['data']}, {drawn}{result['images']} images, seed {result['subset_seed']}, "
        f"digest {result['subset'][:12]}",
        f"training: {count(result['steps'])} steps, {result['train_seconds']:.1f} s in precision "
        f"{result['computed_in']}, of which {result['frozen_seconds']:.1f} s for what is frozen",
        f"run folder: {result['run_folder']}",
        "load the student in Python:",
        *_loading(f"{result['run_folder']}/student", plain=result["opens_with_timm"]),
    ]
    return lines


def _without_labels(result: Mapping[str, Any]) -> list[str]:
    """Say what could be told without labels, and of which images both make different things."""
    if result["agreement"] is None:
        return ["no images that took no part: agreement not measured (give --hold-out 0.2)"]
    images = count(result["held_out_images"])
    lines = [
        f"agreement with the teacher: {_interval(result, 'agreement')} % of {images} images that took no part",
        f"accuracy lost, estimated from both networks' answers: {_interval(result, 'estimated_gap')} points",
    ]
    different = result["differ_most"]
    if different:
        lines.append("both differ most on:")
        width = max(len(row["image"]) for row in different)
        lines += [
            f"  {row['image']:{width}}  teacher {_answer(row, 'teacher')}, student {_answer(row, 'student')}"
            for row in different
        ]
    return lines


def _interval(result: Mapping[str, Any], name: str) -> str:
    low, high = result[f"{name}_low"], result[f"{name}_high"]
    return f"{result[name]:.2f} (95 % interval {low:.2f} to {high:.2f})"


def _answer(row: Mapping[str, Any], network: str) -> str:
    return f"{row[network]} {row[f'{network}_confidence']:.0%}"


def _derived(result: Mapping[str, Any]) -> str:
    """Say how a derived student compares with its teacher, and what became of it."""
    kept = {
        name: result[key] / result[f"teacher_{key}"] for name, key in (("MACs", "macs"), ("parameters", "parameters"))
    }
    parts = [" and ".join(f"{part:.1%} of the {name}" for name, part in kept.items())]
    derived = result["derived"]
    counts = {"narrowed": derived["narrowed"], "left out": derived["left_out"], "whole": derived["whole"]}
    parts.append("places: " + ", ".join(f"{len(names)} {how}" for how, names in counts.items()))
    if result["start_top1"] is not None:
        parts.append(f"top-1 before training {result['start_top1']:.2f} %")
    return f"derived: {'; '.join(parts)}"


def show_preview(found: Preview) -> None:
    """Print what a run would do, which student it makes and what it needs."""
    from .grid_display import duration

    emit_lines(found.notes)
    if found.later:
        emit_lines(["then:", *(f"  {line}" for line in found.later)])
    sizes, rows = found.sizes, []
    for label, prefix in ((found.teacher, "teacher_"), (found.student, "")):
        known = f"{prefix}parameters" in sizes
        cells = [count(sizes[f"{prefix}parameters"]), f"{sizes[f'{prefix}macs'] / 1e6:,.1f} M"] if known else ["", ""]
        rows.append(["student" if not prefix else "teacher", label, *cells])
    emit_table(["", "model", "parameters", "MACs"], rows)
    emit_lines(
        [
            f"time: about {duration(found.seconds)} on this machine",
            f"memory: about {found.memory / 2**30:.1f} GiB; besides, outputs of frozen blocks as there is room "
            "(--cache-memory)",
            f"run: {found.name}; nothing was written",
        ]
    )


def show_trained(result: Mapping[str, Any]) -> None:
    """Print what ``train`` returned."""
    accuracy = "no test images: accuracy not measured" if result["top1"] is None else f"top-1 {result['top1']:.2f} %"
    sizes = f"{count(result['parameters'])} parameters, {count(result['macs'])} MACs"
    emit(
        "\n".join(
            [
                f"{result['model']}: {accuracy}, {sizes}",
                f"training: {count(result['steps'])} steps, {result['train_seconds']:.1f} s",
                f"run folder: {result['run_folder']}",
                "load the model in Python:",
                *_loading(f"{result['run_folder']}/model", plain=True),
            ]
        )
    )


def _loading(folder: str, *, plain: bool) -> list[str]:
    if plain:
        call = f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()'
        return ["  import timm, netgraft.zoo", f"  {call}"]
    return ["  import netgraft", f'  model = netgraft.load_student("{folder}")']
