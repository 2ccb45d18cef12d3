"""The formats: what each needs, how it is written and opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from torch.export import ExportedProgram

from netgraft.errors import RequestError
from netgraft.exporting import onnx_format, pt2_format
from netgraft.exporting.opened import OpenedExport


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: As ``--to`` takes it.
        runtime: What runs it, as figures call it.
        needs: Packages that the extra ``netgraft[export]`` brings.
        encode: A program and facts about it -> bytes.
        opened: Bytes and a number of threads -> a module that answers.
    """

    name: str
    runtime: str
    needs: tuple[str, ...]
    encode: Callable[[ExportedProgram, Mapping[str, str]], bytes]
    opened: Callable[[bytes, int], OpenedExport]

    def check_installed(self) -> None:
        """Raise RequestError where a package is missing."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise RequestError(
                f"--to {self.name} needs {', '.join(missing)}, not installed here; pip install 'netgraft[export]'"
            )


FORMATS = {
    each.name: each
    for each in (
        Format("onnx", "ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"), onnx_format.encode, onnx_format.opened),
        Format("pt2", "torch.export", (), pt2_format.encode, pt2_format.opened),
    )
}


def find_format(name: str) -> Format:
    """Return a format by its name. Raises RequestError where there is none, or a package is missing."""
    if name not in FORMATS:
        raise RequestError(f"expected one of {', '.join(FORMATS)} as format, got {name!r}; choose one of these")
    FORMATS[name].check_installed()
    return FORMATS[name]
