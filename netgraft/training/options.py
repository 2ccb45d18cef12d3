"""Where and how exactly a run computes, as it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from netgraft.errors import RequestError
from netgraft.options import check_held, option

PRECISIONS = ("auto", "32", "bf16")
"""What can be asked for; ``auto`` becomes one of the others by a measurement."""

LOGS = {"tensorboard": "tensorboard", "wandb": "wandb", "csv": "lightning_fabric"}
"""Logs that can be asked for, and the packages that they need."""


@dataclass(frozen=True)
class DeviceOptions:
    """Devices, precision, and what is kept of a run while it goes on.

    Raises:
        RequestError: A value is of another type than its option, not finite, or outside its range; or the package that
            a log needs is missing.
    """

    accelerator: str = option("auto", "Where to compute.", choices=("auto", "cpu", "cuda", "mps"), flag="--device")
    devices: int = option(
        1,
        "Processes that share each batch; phases that don't depend on one another run side by side instead.",
        minimum=1,
        maximum=64,
        recorded=True,
        section="expert",
    )
    precision: str = option(
        "auto",
        "Precision of the arithmetic; auto is the faster one here.",
        choices=PRECISIONS,
        scope="run",
        recorded=True,
    )
    checkpoint_seconds: float = option(30.0, "Save at least so often.", minimum=0, section="expert")
    cache_gib: float | None = option(
        None,
        "GiB for the outputs of frozen blocks; half of what is free by default.",
        minimum=0,
        maximum=2**20,
        flag="--cache-memory",
        section="expert",
    )

    log: str | None = option(
        None,
        "Log losses, rates, phases and the final figures, for other programs to show, into the folder log/ of the run "
        "(wandb: to its server too).",
        choices=tuple(LOGS),
    )

    def __post_init__(self) -> None:
        check_held(self)
        if self.log not in {None, *LOGS}:
            raise RequestError(f"log must be one of {', '.join(LOGS)}, not {self.log!r}")
        if self.log is not None and find_spec(LOGS[self.log]) is None:
            raise RequestError(
                f"expected the package {LOGS[self.log]} for --log {self.log}, got none; install it with pip install "
                f"'netgraft[{self.log}]', or leave --log out"
            )
