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
    probe = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    device = next(teacher.parameters()).device
    chains = [split(model, probe=probe.to(device)) for model in (teacher, student.to(device))]
    outputs = [_classes(chain, probe.to(device)) for chain in chains]
    if outputs[0] != outputs[1]:
        raise RequestError(
            f"the teacher has {outputs[0]} classes and the student {outputs[1]}; they must be the same, or the student "
            "must be kept (init keep), which replaces its head"
        )
    pairing = pair(*chains)
    if options.blocks is not None:
        with eval_mode(pairing.teacher):
            costs = macs_along(pairing.teacher, probe.to(device))
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


@torch.no_grad()
def _classes(chain: BlockChain, probe: Tensor) -> int:
    with eval_mode(chain):
        return int(chain(probe).shape[1])
