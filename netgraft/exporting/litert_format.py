"""LiteRT's .tflite: written by litert-torch, run by LiteRT's interpreter, one image at a time.

litert-torch translates fixed sizes only, the number of images among them; a file takes one, as telephones do.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental import const_fold

from netgraft.exporting.opened import OpenedExport

FACTS = "netgraft.json"
"""In the zip archive at the file's end, where TensorFlow Lite's metadata have their associated files too."""

BATCH = 1


class _Named(nn.Module):
    """A program whose output has a name in the file's signature."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.program(images)
        # a program in which something was folded gives a tuple
        return {"logits": found if isinstance(found, Tensor) else found[0]}


def encode(program: ExportedProgram, facts: Mapping[str, str]) -> tuple[bytes]:
    """Return the bytes of a .tflite file, whose one signature takes ``images`` and gives ``logits``.

    What depends on weights alone is computed before: some of it, such as a ViT's resized position embedding, LiteRT has
    no operator for.

    Args:
        program: Of one input, for :data:`BATCH` images.
        facts: Become one JSON object, the archived file :data:`FACTS`.

    Raises:
        Exception: Of many kinds, where an operator isn't known.
    """
    args, _ = program.example_inputs
    with _silence(), tempfile.TemporaryDirectory() as folder:
        import litert_torch

        folded = const_fold.split_const_subgraphs(program.module(check_guards=False))
        folded.run_folding()
        path = Path(folder, "model.tflite")
        litert_torch.convert(_Named(folded).eval(), sample_kwargs={"images": args[0]}).export(str(path))
        with ZipFile(path, "a") as archive:
            archive.writestr(ZipInfo(FACTS), json.dumps(facts, indent=1))
        return (path.read_bytes(),)


def opened(content: tuple[bytes, ...], threads: int) -> OpenedExport:
    """Open a .tflite file in LiteRT's interpreter, on the CPU; images go in one after another."""
    with _silence():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=content[0], num_threads=threads)
        interpreter.allocate_tensors()
        signature = interpreter.get_signature_runner()
    dtype = {"uint8": torch.uint8, "float32": torch.float32}[signature.get_input_details()["images"]["dtype"].__name__]

    def answer(images: Tensor) -> Tensor:
        found = [signature(images=image.numpy())["logits"] for image in images.split(BATCH)]
        return torch.cat([torch.from_numpy(cast(Any, logits)) for logits in found])

    return OpenedExport(answer, dtype)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the converter's progress, and what its C++ parts log, out of what people and programs read."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        logging.disable(level)
