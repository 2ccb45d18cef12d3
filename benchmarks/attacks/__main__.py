"""Carry out the long campaign, or a part of it, and keep what it gave.

    python -m benchmarks.attacks                  # all of it: hours on two cores
    python -m benchmarks.attacks kills disks      # these parts
    python -m benchmarks.attacks kills --most 50  # the first so many attacks of each part

An attack that is in the results is not tried again; remove the file to begin anew. benchmarks.attacks.table prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from netgraft.cli.main import run

from benchmarks.attacks import damage, limits, mutants, pairs, races
from benchmarks.attacks.bad_requests import REQUESTS, arguments_of, lay_out
from benchmarks.attacks.commands import all_files, carry_out
from benchmarks.attacks.kills import RECIPES, Whole, command, killed_at, whole
from netgraft.errors import RequestError
from netgraft.evaluation.environment import environment
from netgraft.files import write_text
from netgraft.jobs.run_folder import RunFolder
from netgraft.models.students import load_student
from netgraft.training.checkpoint import Checkpoint

ROOT = Path(__file__).parents[2]

RESULTS = ROOT / "benchmarks" / "results" / "attacks" / "campaign.json"

KILLS, PAIR_KILLS, STOPS, BITS, BATCHES, GRIDS = 200, 12, 36, 100, 20, 20
"""How many attacks a part has."""

SIZES = [2**power * 1024 for power in range(2, 12)]
"""Bytes of a file, or of a disk: from 4 KiB to 2 MiB, which is more than a run needs."""

Attack = tuple[str, Callable[[], str]]
"""Its name, and what carries it out and says what was wrong; nothing if the promise was held."""


@lru_cache
def unhurt(recipe: str) -> Whole:
    """Return a run that nobody attacks."""
    with tempfile.TemporaryDirectory() as folder:
        return whole(recipe, Path(folder, "run"))


def in_a_folder(work: Callable[[Path], str]) -> Callable[[], str]:
    """Give an attack an empty folder."""

    def attack() -> str:
        with tempfile.TemporaryDirectory() as folder:
            return work(Path(folder))

    return attack


def kills() -> Iterator[Attack]:
    """Kills in front of file events, evenly at random, of all recipes."""
    names = list(RECIPES)
    for number in range(KILLS):
        recipe = names[number % len(names)]

        def attack(folder: Path, recipe: str = recipe, number: int = number) -> str:
            each = unhurt(recipe)
            at = random.Random(number).randrange(len(each.events))  # nosec B311  # no secret
            wrong = killed_at(each, at, folder / "run")
            return wrong and f"in front of {each.events[at]}: {wrong}"

        yield f"{number} {recipe}", in_a_folder(attack)


def kills_of_two() -> Iterator[Attack]:
    """Kills of both processes of a run, at even distances over its time."""

    @lru_cache
    def unhurt_pair(recipe: str) -> tuple[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return pairs.whole_pair(recipe, Path(folder, "run"))

    for number in range(PAIR_KILLS):
        recipe = ("netgraft", "kd")[number % 2]

        def attack(folder: Path, recipe: str = recipe, number: int = number) -> str:
            digest, seconds = unhurt_pair(recipe)
            return pairs.killed_pair(recipe, digest, seconds * (number + 1) / (PAIR_KILLS + 2), folder / "run")

        yield f"{number} {recipe}", in_a_folder(attack)


def disks() -> Iterator[Attack]:
    """Files, and disks where they can be mounted, of some sizes."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "file": limits.small_files,
            **({"disk": limits.full_disk} if limits.can_mount(Path(folder, "a")) else {}),
        }
    for kind, attack_with in kinds.items():
        for recipe in ("netgraft", "derived"):
            for size in SIZES:

                def attack(folder: Path, recipe: str = recipe, size: int = size, attack_with: Any = attack_with) -> str:
                    return str(attack_with(unhurt(recipe), size, folder / "run"))

                yield f"{kind} of {size // 1024} KiB, {recipe}", in_a_folder(attack)


def stops() -> Iterator[Attack]:
    """Stops in front of file events while the folder is held, with a second command."""
    names = list(RECIPES)
    for number in range(STOPS):
        recipe = names[number % len(names)]

        def attack(folder: Path, recipe: str = recipe, number: int = number) -> str:
            each = unhurt(recipe)
            locked = each.events.index("open .lock") + 1
            at = random.Random(number).randrange(locked, len(each.events))  # nosec B311  # no secret
            return limits.stopped(each, at, folder / "run")

        yield f"{number} {recipe}", in_a_folder(attack)


def threads() -> Iterator[Attack]:
    """Other numbers of threads: a result names its own, so that two that differ can be told apart."""
    for recipe in ("netgraft", "derived"):
        for count in (1, 2, 4):

            def attack(folder: Path, recipe: str = recipe, count: int = count) -> str:
                return pairs.with_threads(recipe, count, folder / "run")[1]

            yield f"{count}, {recipe}", in_a_folder(attack)


def flips() -> Iterator[Attack]:
    """Bits of a checkpoint, a student and a result that are others."""

    @lru_cache
    def finished() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="netgraft-attacks-"))
        ended = carry_out(command("kd", folder))
        if ended.code:
            raise RuntimeError(f"a run failed without being attacked: {ended}")
        return folder / "run"

    def fingerprint() -> str:
        return str(torch.load(finished() / "checkpoint.pt", weights_only=True)["fingerprint"])

    readers: Mapping[str, Callable[[], object]] = {
        "checkpoint.pt": lambda: Checkpoint.load(finished() / "checkpoint.pt", known()),
        "student/model.safetensors": lambda: load_student(finished() / "student"),
        "student/config.json": lambda: load_student(finished() / "student"),
        "result.json": lambda: RunFolder(finished()).finished(),
    }
    known = lru_cache(fingerprint)
    for name, read in readers.items():
        for number in range(BITS):

            def attack(name: str = name, read: Callable[[], object] = read, number: int = number) -> str:
                known()
                path = finished() / name
                bit = damage.some_bits(path, BITS, 0)[number]
                damage.flip(path, bit)
                try:
                    read()
                except RequestError as error:
                    return "" if "\n" not in str(error) else f"two lines: {error}"
                except Exception as error:  # whatever it is, it is none of ours
                    return repr(error)
                finally:
                    damage.flip(path, bit)
                return f"bit {bit} was believed"

            yield f"{name} {number}", attack


def meetings() -> Iterator[Attack]:
    """Processes that want one folder, one file or one grid at the same moment."""
    for number in range(GRIDS):
        yield (
            f"claims {number}",
            in_a_folder(lambda folder: "; ".join(races.claims(folder, processes=6, rounds=100))),
        )
        yield f"writes {number}", in_a_folder(lambda folder: "; ".join(races.writes(folder, processes=6, rounds=100)))
        yield f"grids {number}", in_a_folder(lambda folder: "; ".join(races.doubled_grid(folder, commands=3)))


def damaged_inputs() -> Iterator[Attack]:
    """Batches of a thousand mutants of images, and of archives."""
    for kind, make, look in (
        ("images", mutants.images, mutants.open_image),
        ("archives", mutants.archives, mutants.open_archive),
    ):
        for number in range(BATCHES):

            def attack(folder: Path, make: Any = make, look: Any = look, number: int = number) -> str:
                return "; ".join(mutants.tried(list(make()), look, folder, count=1000, seed=number)[1])

            yield f"1,000 {kind}, {number}", in_a_folder(attack)


def requests() -> Iterator[Attack]:
    """Each request of the table, in a process of its own."""
    for request in filter(None, REQUESTS):

        def attack(folder: Path, request: str = request) -> str:
            lay_out(folder)
            before = all_files(folder)
            ended = carry_out(arguments_of(request), lambda: os.chdir(folder))
            wrong = "" if ended.is_refusal(2) else f"expected one sentence, got {ended}"
            return wrong or ("" if all_files(folder) == before else "something was written")

        yield request[:120], in_a_folder(attack)


def lowest() -> Iterator[Attack]:
    """The lowest versions that are allowed, with folders whose weights are programs."""

    def attack() -> str:
        command = ["bash", str(ROOT / ".ci" / "lowest")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603  # of this project
        return "" if not done.returncode else "; ".join(done.stdout.splitlines()[-5:])

    yield "the tests of .ci/lowest", attack


PARTS: Mapping[str, Callable[[], Iterator[Attack]]] = {
    "kills": kills,
    "kills-of-two": kills_of_two,
    "disks": disks,
    "stops": stops,
    "threads": threads,
    "flips": flips,
    "meetings": meetings,
    "damaged-inputs": damaged_inputs,
    "requests": requests,
    "lowest": lowest,
}


def main() -> None:
    """Carry out the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--most", type=int, help="attacks of each part")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {min(unknown)!r}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)  # processes are forked from this one
    with tempfile.TemporaryDirectory() as folder:
        run(command("netgraft", Path(folder)))  # so that they have everything imported
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["made_with"] = environment(torch.device("cpu"))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for part in options.parts or PARTS:
        done = results.setdefault(part, {})
        for number, (name, attack) in enumerate(PARTS[part]()):
            if name in done or (options.most is not None and number >= options.most):
                continue
            done[name] = attack()
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
            print(f"{part}: {name}: {done[name] or 'held'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
