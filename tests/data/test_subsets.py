"""FewShotSubset: counts, seeds, nesting, the file and its digest."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from netgraft.data.subsets import FewShotSubset, hold_out
from netgraft.errors import RequestError

LABELS = [index % 7 for index in range(700)]


def draw(shots: int = 5, seed: int = 0, labels: list[int] = LABELS) -> FewShotSubset:
    return FewShotSubset.draw(labels, shots=shots, seed=seed, dataset="toy")


def test_each_class_is_drawn_exactly_shots_times_in_class_order() -> None:
    subset = draw(shots=5)
    classes = [LABELS[index] for index in subset.indices]
    assert classes == [label for label in range(7) for _ in range(5)]
    assert len(set(subset.indices)) == 35
    assert (subset.population, subset.classes, subset.shots) == (700, 7, 5)


def test_draw_follows_the_documented_ranking() -> None:
    by_hash = sorted(range(100), key=lambda p: hashlib.sha256(f"3/2/{p}".encode()).hexdigest())
    expected = [7 * position + 2 for position in by_hash[:4]]
    assert [i for i in draw(shots=4, seed=3).indices if LABELS[i] == 2] == expected


def test_seed_alone_decides() -> None:
    torch.manual_seed(1)
    random.seed(1)
    first = draw(seed=4)
    state = torch.get_rng_state()
    random_state = random.getstate()
    assert draw(seed=4) == first
    assert draw(seed=5).indices != first.indices
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == random_state


@pytest.mark.parametrize("seed", [0, 1, -7])
def test_fewer_shots_are_nested(seed: int) -> None:
    assert set(draw(1, seed).indices) < set(draw(2, seed).indices) < set(draw(10, seed).indices)


def test_draw_does_not_depend_on_the_other_classes() -> None:
    # class 1 keeps its 50 images in order, class 0 grows
    few = [0] * 20 + [1] * 50
    many = [0] * 90 + [1] * 50
    of_few = [i - 20 for i in draw(3, 0, few).indices if i >= 20]
    of_many = [i - 90 for i in draw(3, 0, many).indices if i >= 90]
    assert of_few == of_many


def test_draws_are_spread_evenly() -> None:
    # 400 draws of 10 of 100: each image is drawn 40 times on average, standard deviation 6
    counts = Counter(i for seed in range(400) for i in draw(10, seed, [0] * 100).indices)
    assert min(counts[i] for i in range(100)) > 40 - 5 * 6
    assert max(counts.values()) < 40 + 5 * 6


@pytest.mark.parametrize("shots", [0, -3])
def test_shots_below_one_are_refused(shots: int) -> None:
    with pytest.raises(RequestError, match=f"got {shots} shots"):
        draw(shots)


def test_more_shots_than_the_smallest_class_has_are_refused() -> None:
    with pytest.raises(RequestError, match="got 2 in class 1;"):
        draw(3, 0, [0, 0, 0, 1, 1, 2, 2, 2])


def test_missing_labels_are_refused() -> None:
    with pytest.raises(RequestError, match="images without one"):
        draw(1, 0, [-1, 0])


def test_unlabeled_draw() -> None:
    subset = FewShotSubset.draw_unlabeled(1000, images=50, seed=0, dataset="photos")
    smaller = FewShotSubset.draw_unlabeled(1000, images=20, seed=0, dataset="photos")
    assert len(set(subset.indices)) == 50
    assert set(smaller.indices) < set(subset.indices)
    assert subset.classes is None
    assert subset.shots is None
    assert str(subset).startswith("photos: 50 of 1,000 images regardless of class, seed 0, digest ")


@pytest.mark.parametrize(("images", "reason"), [(0, "got 0"), (-1, "got -1"), (11, "got 10;")])
def test_impossible_unlabeled_draws_are_refused(images: int, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        FewShotSubset.draw_unlabeled(10, images=images, seed=0, dataset="photos")


def test_one_line_description() -> None:
    labels = [index // 5000 for index in range(50_000)]
    subset = FewShotSubset.draw(labels, shots=10, seed=0, dataset="cifar10-jpeg")
    expected = f"cifar10-jpeg: 10 images a class x 10 classes = 100 of 50,000, seed 0, digest {subset.digest[:12]}"
    assert str(subset) == expected


def test_digest_is_sha256_of_the_canonical_fields() -> None:
    subset = FewShotSubset("toy", 10, 2, 1, 0, (3, 7))
    canonical = '{"classes":2,"dataset":"toy","indices":[3,7],"population":10,"seed":0,"shots":1}'
    assert subset.digest == hashlib.sha256(canonical.encode()).hexdigest()


def test_file_round_trip_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "subset.json"
    path.write_text("older")
    subset = draw()
    subset.save(path)
    assert FewShotSubset.load(path) == subset
    assert [entry.name for entry in tmp_path.iterdir()] == ["subset.json"]
    assert "label" not in path.read_text()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("seed", 1, "changed after it was saved"),
        ("indices", [1, 2, 3], "changed after it was saved"),
        ("indices", [1, 1], "repeated"),
        ("indices", [700], "from 0 to 699"),
        ("indices", "1, 2", "other types"),
        ("population", 3.5, "other types"),
        ("shots", True, "other types"),
        ("labels", [0, 1], "other fields"),
        ("digest", None, "changed after it was saved"),
    ],
)
def test_changed_files_are_refused(tmp_path: Path, field: str, value: object, reason: str) -> None:
    path = tmp_path / "subset.json"
    path.write_text(json.dumps({**json.loads(draw().to_json()), field: value}))
    with pytest.raises(RequestError, match=reason) as caught:
        FewShotSubset.load(path)
    assert "subset.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b"\xff\xfe"])
def test_malformed_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "subset.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"subset\.json"):
        FewShotSubset.load(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="readable subset file"):
        FewShotSubset.load(tmp_path / "none.json")


# --- images that are held out


@pytest.mark.parametrize("amount", [0.25, 10])
def test_held_out_images_are_neither_drawn_nor_dependent_on_the_draw(amount: float) -> None:
    labels = [index % 4 for index in range(40)]
    held_out = hold_out(40, amount, dataset="toy")
    assert len(set(held_out)) == 10
    by_class = FewShotSubset.draw(labels, shots=4, seed=3, dataset="toy", held_out=held_out)
    regardless = FewShotSubset.draw_unlabeled(40, images=30, seed=3, dataset="toy", held_out=held_out)
    assert not set(by_class.indices) & set(held_out)
    assert [labels[index] for index in by_class.indices] == sorted(4 * [0, 1, 2, 3])
    # all that is left
    assert set(regardless.indices) == set(range(40)) - set(held_out)
    # a file of it reads like any other
    assert FewShotSubset.from_json(by_class.to_json()) == by_class


def test_fewer_held_out_images_are_a_part_of_more() -> None:
    assert set(hold_out(100, 5, dataset="toy")) < set(hold_out(100, 0.2, dataset="toy"))
    assert len(hold_out(3, 0.01, dataset="toy")) == 1


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        (-0.1, "a part between 0 and 1 or a number of images to hold out, got -0.1"),
        (1.5, "got 1.5; give one"),
        (10, "more than the 10 images to hold out in toy, got 10"),
        (0.99, "more than the 10 images to hold out in toy, got 10"),
    ],
)
def test_impossible_hold_outs_are_refused(amount: float, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        hold_out(10, amount, dataset="toy")


def test_draws_that_held_out_images_make_impossible_are_refused() -> None:
    held_out = hold_out(10, 4, dataset="toy")
    with pytest.raises(RequestError, match="got 6 besides the 4 that are held out; ask for fewer images"):
        FewShotSubset.draw_unlabeled(10, images=7, seed=0, dataset="toy", held_out=held_out)
    with pytest.raises(RequestError, match="got 6 in class 0 besides the 4 that are held out"):
        FewShotSubset.draw([0] * 10, shots=7, seed=0, dataset="toy", held_out=held_out)


def test_others_are_all_that_were_not_drawn_or_a_fixed_part_of_them() -> None:
    subset = FewShotSubset.draw_unlabeled(50, images=20, seed=0, dataset="toy")
    assert sorted((*subset.indices, *subset.others(30))) == list(range(50))
    some = subset.others(7)
    assert len(some) == 7
    assert set(some) < set(subset.others(30))
    assert subset.others(7) == some
