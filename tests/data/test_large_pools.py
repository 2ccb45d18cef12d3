"""Folders of more images than may be held: the same views, whatever is held, and no more in memory than was said."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from netgraft.data.given_images import pictures
from netgraft.data.held_sources import HeldSources
from netgraft.data.image_set import HeldPictures
from netgraft.data.sources import open_data
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.errors import RequestError

COUNT = 230


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small JPEGs of several sizes."""
    path = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        shape = (20 + number % 7, 24 + number % 5, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path / f"{number:03}.jpg")
    return path


def make(images: Sequence[Image.Image], name: str, held_bytes: int) -> Views:
    settings = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic", "crop_pct": 1.0, "seed": 1}
    return Views(images, VIEW_POLICIES[name], size=(3, 16, 16), held_bytes=held_bytes, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", VIEW_POLICIES)
def test_views_and_identity_do_not_depend_on_what_is_held(folder: Path, name: str) -> None:
    train = open_data(str(folder)).train
    chosen = list(range(COUNT))[::-1]
    held = make(train.load_many(chosen), name, 10**9)
    assert held.sources.all_held
    numbers = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[:80]
    expected = held.batch(numbers)
    for pool_bytes, held_bytes in ((10_000, 50_000), (0, 0), (10**9, 50_000)):
        views = make(train.pictures(chosen, pool_bytes), name, held_bytes)
        assert sum(views.sources[number].nbytes for number in range(views.sources.held)) <= held_bytes
        assert views.sources.held < COUNT
        assert views.identity() == held.identity()
        assert torch.equal(views.batch(numbers), expected)
        views.ahead(numbers)
        assert torch.equal(views.batch(numbers), expected)
        [note] = views.notes
        assert note.startswith(f"{views.sources.held} of {COUNT} images are held in memory")
    assert held.notes == ()


def test_pictures_are_the_images_and_decoded_again_behind_the_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_data(str(folder)).train
    chosen = [5, 3, 200, 7, 11]
    expected = [np.asarray(image) for image in train.load_many(chosen)]
    some = train.pictures(chosen, 4000)  # two images of about 1,900 bytes
    assert isinstance(some, HeldPictures)
    decoded = []
    load = type(train).load
    monkeypatch.setattr(type(train), "load", lambda self, index: decoded.append(index) or load(self, index))  # type: ignore[func-returns-value]
    assert all(np.array_equal(np.asarray(image), wanted) for image, wanted in zip(some, expected, strict=True))
    assert decoded == chosen[2:]
    assert [np.asarray(image).shape for image in some[1:3]] == [expected[1].shape, expected[2].shape]
    assert np.array_equal(np.asarray(some[-1]), expected[-1])
    with pytest.raises(IndexError):
        some[5]
    decoded.clear()
    part = some.part([4, 1])
    assert all(np.array_equal(np.asarray(part[new]), expected[old]) for new, old in enumerate([4, 1]))
    assert decoded == [11]
    assert len(part) == 2
    with pytest.raises(IndexError, match="has images 0 to"):
        train.pictures([COUNT])


def test_a_broken_file_behind_the_bound_is_refused_before_any_view(folder: Path, tmp_path: Path) -> None:
    for number in range(70):
        (tmp_path / f"{number:03}.jpg").write_bytes((folder / f"{number:03}.jpg").read_bytes())
    (tmp_path / "066.jpg").write_bytes(b"nothing")
    images = open_data(str(tmp_path)).train.pictures(range(70), 0)
    with pytest.raises(RequestError, match=r"066\.jpg"):
        make(images, "rich", 0)


def test_folders_and_sets_come_one_by_one(folder: Path) -> None:
    train = open_data(str(folder)).train
    for given in (str(folder), folder, train, train.pictures(range(COUNT), 0)):
        found, labels = pictures(given)
        assert isinstance(found, HeldPictures)
        assert (len(found), labels) == (COUNT, None)


def test_images_are_made_ahead_once_by_other_threads() -> None:
    made: list[tuple[int, int]] = []
    own = threading.get_ident()

    def make_one(number: int) -> torch.Tensor:
        made.append((number, threading.get_ident()))
        return torch.full((1, 2, 2), number, dtype=torch.uint8)

    sources = HeldSources(9, make_one, held_bytes=12)  # three images of four bytes
    assert (sources.held, len(sources), sorted(number for number, _ in made)) == (3, 9, list(range(9)))
    made.clear()
    sources.ahead([0, 4, 8])
    sources.ahead([0, 4, 8])
    assert [int(sources[number][0, 0, 0]) for number in (0, 4, 8, 2)] == [0, 4, 8, 2]
    assert sorted(number for number, _ in made) == [4, 8]
    assert own not in {thread for _, thread in made}
    # what was made ahead is used once
    assert int(sources[4][0, 0, 0]) == 4
    assert made[-1] == (4, own)
    assert [int(image[0, 0, 0]) for image in sources.several([7, 1, 5])] == [7, 1, 5]
