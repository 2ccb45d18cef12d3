"""The command ``netgraft split``: how a model is cut, or how two pair."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import click

from .options import DeclaredCommand, job_options

if TYPE_CHECKING:
    from netgraft.grafting.pairing import Pairing
    from netgraft.splitting.chain import BlockChain, Cut


@click.command(cls=DeclaredCommand, declared=lambda: job_options("image_size", "num_classes"))
@click.argument("model")
@click.argument("student", required=False)
@click.option("--cuts", help="Modules of MODEL to cut behind, separated by commas; timm's stages by default.")
@click.option("--blocks", type=click.IntRange(min=2), help="Instead, so many blocks of about equal cost.")
@click.option("--all-cuts", is_flag=True, help="Show every module that a single tensor leaves.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def split(
    model: str,
    student: str | None,
    image_size: int | None,
    num_classes: int | None,
    cuts: str | None,
    blocks: int | None,
    all_cuts: bool,
    as_json: bool,
) -> None:
    """Show the blocks of MODEL, or how the blocks of MODEL and STUDENT pair.

    MODEL is a timm model, torchvision:NAME, or a folder that a run left. Other weights than a folder's are random, and
    nothing is downloaded.
    """
    from timm.data import resolve_model_data_config

    from netgraft.models.creation import build_model, build_student
    from netgraft.models.loading import is_folder, load_teacher

    if sum([cuts is not None, blocks is not None, all_cuts]) > 1:
        raise click.UsageError("--cuts, --blocks and --all-cuts exclude one another")
    for given, option in ((cuts, "--cuts"), (blocks, "--blocks"), (all_cuts, "--all-cuts"), (as_json, "--json")):
        if student is not None and given:
            raise click.UsageError(f"{option} goes with one model; two are cut where their maps have the same size")
    if is_folder(model):
        network = load_teacher(model, image_size=image_size, num_classes=num_classes)
    else:
        options = {} if num_classes is None else {"num_classes": num_classes}
        network = build_model(model, seed=0, image_size=image_size, **options).eval()
    size = resolve_model_data_config(network)["input_size"]
    if student is not None:
        other = load_teacher(student) if is_folder(student) else build_student(student, teacher=network, seed=0)
        _show_pairing(model, network, student, other, size)
        return
    chain = _chain(network, size, None if cuts is None else cuts.split(","), blocks, all_cuts)
    if as_json:
        _print_blocks(model, network, chain, size)
    else:
        _show_blocks(model, network, chain, size, cumulative=all_cuts)


def _chain(
    network: Any, size: Sequence[int], cuts: Sequence[str] | None, blocks: int | None, all_cuts: bool
) -> BlockChain:
    import torch

    from netgraft.splitting.split import legal_cuts
    from netgraft.splitting.split import split as cut

    # zeros would be nothing to compare by: some models answer them with the bias of their last layer
    probe = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    return cut(network, probe=probe, cuts=legal_cuts(network, probe=probe) if all_cuts else cuts, blocks=blocks)


def _show_blocks(name: str, network: Any, chain: BlockChain, size: Sequence[int], *, cumulative: bool) -> None:
    from .output import count, emit_table

    shapes = [*map(str, chain.cuts), str(network.num_classes)]
    layouts = [*map(_layout, chain.cuts), ""]
    sizes, costs = _parameters(chain), _macs(chain, size)
    rows = [
        [
            str(number + 1),
            chain.names[number],
            shapes[number],
            count(sizes[number]),
            count(costs[number]),
            layouts[number],
        ]
        for number in range(len(chain))
    ]
    headings = ["block", "ends with", "output", "parameters", "MACs", "layout"]
    if cumulative:
        headings.append("MACs so far")
        for row, total in zip(rows, accumulate(costs), strict=True):
            row.append(count(total))
    rows.append(["", "all", "", count(sum(sizes)), count(sum(costs)), *[""] * (len(headings) - 5)])
    emit_table(headings, rows, title=f"{name} at {_times(size)}")


def _layout(cut: Cut) -> str:
    """``tokens 14x14+1`` for example; of other layouts the shape says the size."""
    from netgraft.grafting.layout_conversion import describe_form, form_of

    return describe_form(form_of(cut)) if cut.layout == "tokens" else cut.layout


def _print_blocks(name: str, network: Any, chain: BlockChain, size: Sequence[int]) -> None:
    from .output import emit_json

    sizes, costs = _parameters(chain), _macs(chain, size)
    blocks: list[dict[str, Any]] = [
        {"ends_with": block, "parameters": sizes[number], "macs": costs[number]}
        for number, block in enumerate(chain.names)
    ]
    for block, cut in zip(blocks, chain.cuts, strict=False):
        block["output"] = {
            "shape": cut.shape,
            "layout": cut.layout,
            "channels": cut.channels,
            "size": cut.size,
            "prefix_tokens": cut.prefix_tokens,
        }
    emit_json({"model": name, "input_size": size, "classes": network.num_classes, "blocks": blocks})


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _parameters(chain: BlockChain) -> list[int]:
    from netgraft.modules import parameters

    return [parameters(block) for block in chain]


def _macs(chain: BlockChain, size: Sequence[int]) -> list[int]:
    """Multiply-accumulates of each block for one image."""
    import torch

    from netgraft.modules import macs_along

    return macs_along(chain, torch.zeros(1, *size))


def _show_pairing(teacher: str, network: Any, student: str, small: Any, size: Sequence[int]) -> None:
    from netgraft.grafting.options import PairingOptions
    from netgraft.grafting.preparation import cut_and_pair

    from .output import count, emit, emit_table

    pairing = cut_and_pair(network, small, PairingOptions(init="random"), input_size=size)
    shapes = [[*map(str, chain.cuts), str(network.num_classes)] for chain in (pairing.teacher, pairing.student)]
    teacher_sizes, student_sizes = _parameters(pairing.teacher), _parameters(pairing.student)
    adapters = _adapters(pairing)
    rows = [
        [
            str(number + 1),
            f"{pairing.teacher.names[number]} {shapes[0][number]}",
            count(teacher_sizes[number]),
            f"{pairing.student.names[number]} {shapes[1][number]}",
            count(student_sizes[number]),
            *(("inherited", "") if number < pairing.inherited else adapters[number]),
        ]
        for number in range(len(pairing))
    ]
    rows.append(["", "all", count(sum(teacher_sizes)), "all", count(sum(student_sizes)), "", ""])
    headings = [
        "block",
        "teacher",
        "parameters",
        "student",
        "parameters",
        "adapters in training",
        "in front, at the end",
    ]
    emit_table(headings, rows, title=f"{teacher} -> {student} at {_times(size)}")
    for number, conversion in enumerate(pairing.conversions, 1):
        if conversion:
            emit(f"behind block {number} adapters convert {conversion}")
    macs = [count(sum(_macs(chain, size))) for chain in (pairing.teacher, pairing.student)]
    emit(f"MACs: {macs[0]} -> {macs[1]}; inherited: {pairing.inherited} of {len(pairing)} blocks")


def _adapters(pairing: Pairing) -> list[tuple[str, str]]:
    """For each student block: the adapters around it in training, and what becomes of the one in front."""
    from netgraft.grafting.foldability import why_not_foldable
    from netgraft.grafting.scions import make_scions

    described = [("", "")] * len(pairing)
    met = False  # whether an adapter ends the block in front
    for number, scion in enumerate(make_scions(pairing), pairing.inherited):
        layers, own = list(scion), scion.adapters()
        around = [
            f"{label} {layer.weight.shape[1]} -> {layer.weight.shape[0]}"
            for label, layer in (("enter", layers[0]), ("exit", layers[-1]))
            if layer in own
        ]
        end = ""
        if met or layers[0] in own:
            reason = why_not_foldable(pairing.student[number], pairing.student.cuts[number - 1].layout)
            cost = pairing.widths[number - 1][1] ** 2
            end = "folds" if reason is None else f"stays: {cost:,} parameters, {reason}"
        met = layers[-1] in own
        described[number] = ("; ".join(around), end)
    return described
