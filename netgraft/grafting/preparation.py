"""Two models -> a pairing from which a student can be trained: cut, paired, inherited, sliced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing, inherit, merge_to, pair
from netgraft.grafting.slicing import slice_from_teacher
from netgraft.modules import eval_mode, macs_along
from netgraft.splitting.chain import BlockChain
from netgraft.splitting.split import split


def cut_and_pair(
    teacher: nn.Module,
    student: nn.Module,
    *,
    input_size: Sequence[int],
    init: str = "auto",
    use: str = "auto",
    blocks: int | None = None,
) -> Pairing:
    """Cut both models, pair their blocks and let the student start.

    Args:
        teacher: A classifier.
        student: Another, with as many classes.
        input_size: Channels, height and width.
        init: ``random`` leaves the student as it was built; ``slice`` takes the teacher's channels of largest weight
            norm, and leaves out residual blocks that the student has not; ``auto`` slices where the student is a
            smaller twin of the teacher.
        use: What to inherit: ``auto`` copies the front blocks that are built alike, ``none`` copies none.
        blocks: Merge the paired blocks to so many, in which the teacher's multiply-accumulates are as even as can be;
            None leaves them as they are.

    Raises:
        RequestError: The models can't be cut or paired, have fewer blocks, or the student can't start in this way.
    """
    if init not in {"auto", "random", "slice"}:
        raise RequestError(f"init must be auto, random or slice, not {init!r}")
    if use not in {"auto", "none"}:
        raise RequestError(f"inherit must be auto or none, not {use!r}")
    probe = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    device = next(teacher.parameters()).device
    chains = [split(model, probe=probe.to(device)) for model in (teacher, student.to(device))]
    outputs = [_classes(chain, probe.to(device)) for chain in chains]
    if outputs[0] != outputs[1]:
        raise RequestError(f"the teacher has {outputs[0]} classes and the student {outputs[1]}; they must be the same")
    pairing = pair(*chains)
    if blocks is not None:
        with eval_mode(pairing.teacher):
            costs = macs_along(pairing.teacher, probe.to(device))
        pairing = merge_to(pairing, blocks, costs=costs)
    if use == "auto":
        pairing = inherit(pairing)
    if init == "slice":
        return slice_from_teacher(pairing)
    if init == "auto":
        try:
            return slice_from_teacher(pairing)
        except RequestError:
            return pairing  # no smaller twin
    return pairing


@torch.no_grad()
def _classes(chain: BlockChain, probe: Tensor) -> int:
    with eval_mode(chain):
        return int(chain(probe).shape[1])
