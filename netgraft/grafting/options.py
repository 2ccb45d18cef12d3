"""How two models are cut and paired, and how the student starts, as it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from netgraft.errors import RequestError
from netgraft.options import option

INITS = ("auto", "random", "keep", "slice", "solve")

INHERITS = ("auto", "none")


@dataclass(frozen=True)
class PairingOptions:
    """How two models are cut and paired, and how the student starts.

    Raises:
        RequestError: ``init`` or ``inherit`` has another value.
    """

    init: str = option(
        "auto",
        "How the student starts: random (as it was built); keep (with the weights that it brings); slice (the "
        "teacher's channels of largest weight norm, without the residual blocks that the student has not); solve (a "
        "smaller twin: the teacher's most useful channels, and weights that make up for the others); auto (keep where "
        "it is a folder or has --student-weights; else the preset's own start, solve where it is a narrower twin, or "
        "slice where it has fewer blocks).",
        scope="run",
        choices=INITS,
        section="method",
    )
    inherit: str = option(
        "auto",
        "Copy front blocks that are built alike: auto or none.",
        choices=INHERITS,
        scope="run",
        recorded=True,
        section="expert",
    )
    blocks: int | None = option(
        None, "Merge the paired blocks to so many, of even cost.", scope="run", section="expert"
    )

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise RequestError(f"init must be auto, random, keep, slice or solve, not {self.init!r}")
        if self.inherit not in INHERITS:
            raise RequestError(f"inherit must be auto or none, not {self.inherit!r}")
