"""The formats: what each needs, of which files it consists, how it is written and opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch.export import ExportedProgram

from netgraft.errors import RequestError
from netgraft.exporting import litert_format, onnx_format, openvino_format, pt2_format
from netgraft.exporting.opened import OpenedExport


@dataclass(frozen=True)
class Format:
    """A kind of file, or of files that belong together.

    Attributes:
        name: As ``--to`` takes it.
        runtime: What runs it, as figures call it.
        needs: Packages that its extra brings.
        encode: A program and facts about it -> bytes of each file.
        opened: These bytes and a number of threads -> a module that answers.
        extra: Of netgraft.
        suffixes: Of its files where there are several, that of the file that is asked for first. None where there is
            one, of any name.
        batch: How many images go in at once; any number if None.
    """

    name: str
    runtime: str
    needs: tuple[str, ...]
    encode: Callable[[ExportedProgram, Mapping[str, str]], tuple[bytes, ...]]
    opened: Callable[[tuple[bytes, ...], int], OpenedExport]
    extra: str = "export"
    suffixes: tuple[str, ...] = ()
    batch: int | None = None

    def check_installed(self) -> None:
        """Raise RequestError where a package is missing."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise RequestError(
                f"--to {self.name} needs {', '.join(missing)}, not installed here; pip install 'netgraft[{self.extra}]'"
            )

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the paths of all files for the one that is asked for. Raises RequestError where its name can't be."""
        if not self.suffixes:
            return (path,)
        if path.suffix != self.suffixes[0]:
            raise RequestError(
                f"expected a name that ends in {self.suffixes[0]} for --to {self.name}, got {path.name}; "
                "choose another --out"
            )
        return tuple(path.with_suffix(suffix) for suffix in self.suffixes)


FORMATS = {
    each.name: each
    for each in (
        Format("onnx", "ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"), onnx_format.encode, onnx_format.opened),
        Format("pt2", "torch.export", (), pt2_format.encode, pt2_format.opened),
        Format(
            "openvino",
            "OpenVINO",
            ("onnx", "onnxscript", "openvino"),
            openvino_format.encode,
            openvino_format.opened,
            extra="openvino",
            suffixes=openvino_format.SUFFIXES,
        ),
        Format(
            "litert",
            "LiteRT",
            ("litert_torch", "ai_edge_litert"),
            litert_format.encode,
            litert_format.opened,
            extra="litert",
            batch=litert_format.BATCH,
        ),
    )
}


def find_format(name: str) -> Format:
    """Return a format by its name. Raises RequestError where there is none, or a package is missing."""
    if name not in FORMATS:
        raise RequestError(f"expected one of {', '.join(FORMATS)} as format, got {name!r}; choose one of these")
    FORMATS[name].check_installed()
    return FORMATS[name]
