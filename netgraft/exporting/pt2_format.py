"""torch.export's archive, .pt2: opened by PyTorch alone, whatever module its program came from."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import torch
from torch.export import ExportedProgram

from netgraft.exporting.opened import OpenedExport

FACTS = "netgraft.json"
"""In the archive, among ``extra_files``."""


def encode(program: ExportedProgram, facts: Mapping[str, str]) -> tuple[bytes]:
    """Return the bytes of a .pt2 file.

    Args:
        program: Of one input.
        facts: Become one JSON object, the extra file :data:`FACTS`.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts, indent=1)})
    return (buffer.getvalue(),)


def opened(content: tuple[bytes, ...], threads: int) -> OpenedExport:
    """Open a .pt2 file; PyTorch's own number of threads is what it runs with."""
    program = torch.export.load(io.BytesIO(content[0]))
    [tensor] = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    module = program.module()
    return OpenedExport(lambda images: module(images), tensor.meta["val"].dtype)
