"""Two models -> a pairing from which a student can be trained: cut, paired, inherited, sliced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing, inherit, merge_to, pair
from netgraft.grafting.slicing import slice_from_teacher
from netgraft.modules import eval_mode, macs_along
from netgraft.splitting.chain import BlockChain
from netgraft.splitting.split import split

DEFAULT = PairingOptions()


def cut_and_pair(
    teacher: nn.Module, student: nn.Module, options: PairingOptions = DEFAULT, *, input_size: Sequence[int]
) -> Pairing:
    """Cut both models, pair their blocks and let the student start.

    Args:
        teacher: A classifier.
        student: Another, with as many classes.
        options: How.
        input_size: Channels, height and width.

    Raises:
        RequestError: The models can't be cut or paired, have fewer blocks, or the student can't start in this way.
    """
    return pair_with(cut(teacher, input_size=input_size), student, options, input_size=input_size)


def cut(model: nn.Module, *, input_size: Sequence[int]) -> BlockChain:
    """Cut a model where :func:`cut_and_pair` does, for several students that are paired with it.

    Args:
        model: A classifier.
        input_size: Channels, height and width.

    Raises:
        RequestError: It can't be cut.
    """
    return split(model, probe=_probe(input_size, model))


def pair_with(
    teacher: BlockChain, student: nn.Module, options: PairingOptions = DEFAULT, *, input_size: Sequence[int]
) -> Pairing:
    """Pair a student with a teacher that is cut already; otherwise as :func:`cut_and_pair`.

    Args:
        teacher: Of :func:`cut`; not changed, and shared by the pairings that are made of it.
        student: A classifier with as many classes.
        options: How.
        input_size: Channels, height and width.

    Raises:
        RequestError: As :func:`cut_and_pair`.
    """
    probe = _probe(input_size, teacher)
    chains = [teacher, split(student.to(probe.device), probe=probe)]
    outputs = [_classes(chain, probe) for chain in chains]
    if outputs[0] != outputs[1]:
        raise RequestError(
            f"the teacher has {outputs[0]} classes and the student {outputs[1]}; they must be the same, or the student "
            "must be kept (init keep), which replaces its head"
        )
    pairing = pair(*chains)
    if options.blocks is not None:
        with eval_mode(pairing.teacher):
            costs = macs_along(pairing.teacher, probe)
        pairing = merge_to(pairing, options.blocks, costs=costs)
    if options.init == "keep":
        return replace(pairing, init="kept")
    if options.inherit == "auto":
        pairing = inherit(pairing)
    if options.init == "slice":
        return slice_from_teacher(pairing)
    if options.init == "auto":
        try:
            return slice_from_teacher(pairing)
        except RequestError:
            return pairing  # no smaller twin
    return pairing


def _probe(input_size: Sequence[int], model: nn.Module) -> Tensor:
    probe = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    return probe.to(next(model.parameters()).device)


@torch.no_grad()
def _classes(chain: BlockChain, probe: Tensor) -> int:
    with eval_mode(chain):
        return int(chain(probe).shape[1])
