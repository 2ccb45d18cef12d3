"""Damaged images and archives are opened or refused, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.attacks.mutants import archives, images, open_archive, open_image, tried
from benchmarks.attacks.rotation import rotation

KINDS = {"images": (images, open_image, 3000), "archives": (archives, open_archive, 2500)}


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_opened_or_refused(kind: str, tmp_path: Path) -> None:
    make, look, count = KINDS[kind]
    counted, wrong = tried(list(make()), look, tmp_path, count=count, seed=rotation())
    assert wrong == []
    assert counted.total() == count
    assert min(counted["opened"], counted["refused"]) > count // 20


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_are_made_of_is_whole(kind: str, tmp_path: Path) -> None:
    make, look, _ = KINDS[kind]
    tried_ = 0
    for name, content in make():
        path = tmp_path / name
        path.write_bytes(content)
        look(path)
        path.unlink()
        tried_ += 1
    assert tried_ >= 6
