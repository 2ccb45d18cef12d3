"""Classes are matched by what they are called; where that can't be told, it is said or refused."""

from __future__ import annotations

import csv
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
from torch import nn

import netgraft.zoo  # noqa: F401  (registers the models)
from netgraft.data.image_set import ArrayStore, ImageSet
from netgraft.errors import RequestError
from netgraft.evaluation.class_matching import MatchedData, answer_names, match_classes, read_class_map
from netgraft.models.creation import describe_labels

ANIMALS = ("zebra", "fire ant", "Mouse", "cat")


def model(names: object = ANIMALS, classes: int = 4, **described: Any) -> nn.Module:
    made = timm.create_model("digits_vgg7_bn_half", num_classes=classes)
    describe_labels(made, described if names is None else {"label_names": names, **described})
    return made


def images(*names: str, labels: tuple[int, ...] | None = None) -> ImageSet:
    """An image of each class, from the last to the first."""
    numbers = tuple(reversed(range(len(names)))) if labels is None else labels
    store = ArrayStore(np.zeros((len(numbers), 8, 8), dtype=np.uint8))
    return ImageSet("farm", len(numbers), store, numbers, len(names), None, names)


def refusal(given: ImageSet, of: nn.Module, class_map: dict[str, int] | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        match_classes(given, of, name="the teacher", class_map=class_map)
    return str(caught.value)


# --- by names


def test_folders_in_another_order_get_the_models_numbers() -> None:
    given = images("Mouse", "cat", "fire ant", "zebra")
    matched = match_classes(given, model(), name="the teacher")
    assert matched.by == "names"
    assert matched.warning == ""
    # zebra, fire ant, cat, Mouse
    assert matched.images.labels == (0, 1, 3, 2)
    assert (matched.images.classes, matched.images.class_names) == (4, ANIMALS)
    assert matched.images.store is given.store
    assert given.labels == (3, 2, 1, 0)


def test_some_of_the_classes_are_enough() -> None:
    matched = match_classes(images("Mouse", "zebra", labels=(0, 0, 1)), model(), name="the teacher")
    assert (matched.by, matched.images.labels, matched.images.classes) == ("names", (2, 2, 0), 4)
    assert matched.classes_seen == 2
    few = match_classes(images("Mouse", "zebra", labels=(0, 0)), model(), name="the teacher")
    assert few.classes_seen == 1


def test_case_spaces_and_underscores_do_not_matter_where_one_class_is_left() -> None:
    matched = match_classes(images("FIRE_ANT", "Zebra ", "mouse"), model(), name="the teacher")
    assert (matched.by, matched.images.labels) == ("names", (2, 0, 1))
    twins = model(["cat", "Cat", "fire_ant", "dog"])
    assert match_classes(images("Cat", "cat", "dog"), twins, name="the teacher").images.labels == (3, 0, 1)
    said = refusal(images("CAT", "dog"), twins)
    assert said.startswith("the teacher knows 'dog' of the classes of farm by name, but 'CAT' could be several of them")
    assert "--class-map" in said


def test_names_may_have_gaps_and_come_from_json() -> None:
    sparse = model({"3": "cat", "1": "zebra"})
    matched = match_classes(images("cat", "zebra"), sparse, name="the teacher")
    assert matched.images.labels == (1, 3)
    assert matched.images.class_names is None


def test_descriptions_are_names_too() -> None:
    described = model(
        ["m1", "m2", "m3", "m4"], label_descriptions={"m1": "ox, bull", "m2": "hen", "m3": "", "m4": "ox"}
    )
    matched = match_classes(images("Bull", "hen", "m4"), described, name="the teacher")
    assert (matched.by, matched.images.labels) == ("names", (3, 1, 0))
    assert "'ox' could be several" in refusal(images("hen", "ox"), described)


def test_a_folder_that_the_model_does_not_know_is_named() -> None:
    said = refusal(images("cat", "dodo", "unicorn", "zebra"), model())
    assert said == (
        "the teacher knows 'cat' of the classes of farm by name, but 'dodo' is none of them; rename this folder, or "
        "give --class-map FILE, which says where each class stands among the model's"
    )


def test_two_folders_of_one_class_are_refused() -> None:
    assert refusal(images("cat", "CAT"), model()).startswith(
        "'cat' and 'CAT' of farm both mean class 3 of the teacher; put them into one folder, or give --class-map"
    )


# --- by number


def test_without_any_name_in_common_the_order_counts_and_that_is_said() -> None:
    given = images("a", "b", "c", "d")
    matched = match_classes(given, model(), name="the teacher")
    assert (matched.by, matched.images) == ("number", given)
    assert matched.warning.startswith(
        "warning: no class of farm ('a', ...) has the name of one of the teacher's ('zebra'"
    )
    assert "by number" in matched.warning
    assert "--class-map" in matched.warning


@pytest.mark.parametrize("unnamed", ["model", "images"])
def test_without_names_on_one_side_the_order_counts(unnamed: str) -> None:
    given = images("a", "b", "c", "d")
    if unnamed == "images":
        given = replace(given, class_names=None)
    matched = match_classes(given, model(None if unnamed == "model" else ANIMALS), name="the teacher")
    assert (matched.by, matched.images, matched.warning) == ("number", given, "")


def test_names_of_another_classifier_are_no_names() -> None:
    """timm keeps those of the weights' own classes where a model is made with another number of outputs."""
    given = images("Mouse", "cat", "fire ant")
    assert match_classes(given, model(ANIMALS, classes=3), name="the teacher").by == "number"


def test_other_numbers_of_classes_are_refused() -> None:
    without = timm.create_model("digits_vgg7_bn_half")  # of ten
    for images_ in (images("a", "b", "c"), replace(images("a", "b", "c"), class_names=None)):
        said = (
            "the teacher answers with 10 classes but farm has 3; give a model trained for these classes, or --class-map"
        )
        assert refusal(images_, without).startswith(said)
    assert "answers with 4 classes but farm has 3" in refusal(images("a", "b", "c"), model())


def test_images_without_labels_fit_every_model() -> None:
    unlabelled = replace(images("a"), labels=None, classes=None, class_names=None)
    for class_map in (None, {"b": 1}):
        matched = match_classes(unlabelled, model(), name="the teacher", class_map=class_map)
        assert (matched.images, matched.by, matched.warning) == (unlabelled, None, "")


def test_training_and_test_images_are_matched_each_by_their_own_names() -> None:
    data = MatchedData.of(images("cat", "zebra"), images("a", "b", "c", "d"), model(), name="the teacher")
    assert data.test is not None
    assert (data.train.by, data.test.by) == ("names", "number")
    assert data.warnings == [data.test.warning]
    for names, count in ((("a", "b", "c", "d"), 1), (("e", "f", "g", "h"), 2)):
        other = replace(images(*names), name="market")
        assert len(MatchedData.of(images("a", "b", "c", "d"), other, model(), name="the teacher").warnings) == count
    assert MatchedData.of(images("cat"), None, model(), name="the teacher").test is None


# --- ImageNet


def imagenet_lists(name: str) -> tuple[list[str], dict[str, str]]:
    """Synsets in the order of a classifier, and the words of each: from the files in timm themselves."""
    folder = Path(timm.data.__file__).parent / "_info"
    synsets = (folder / f"{name}_synsets.txt").read_text(encoding="utf-8").split()
    with (folder / "imagenet_synset_to_lemma.txt").open(encoding="utf-8") as file:
        return synsets, dict(csv.reader(file, delimiter="\t"))


@pytest.mark.parametrize(("name", "classes"), [("imagenet", 1000), ("imagenet22k_ms", 21842)])
def test_wnids_are_positions_among_all_classes(name: str, classes: int) -> None:
    synsets, _ = imagenet_lists(name)
    assert len(synsets) == classes
    shown = (synsets[7], synsets[388], synsets[999])
    matched = match_classes(images(*shown), model(None, classes), name="the teacher")
    assert (matched.by, matched.images.labels) == ("wnid", (999, 388, 7))
    assert (matched.images.classes, matched.classes_seen) == (classes, 3)


def test_the_thousand_sorted_wnids_are_imagenets_classes() -> None:
    synsets, _ = imagenet_lists("imagenet")
    given = images(*sorted(synsets))
    matched = match_classes(given, model(None, 1000), name="the teacher")
    assert (matched.by, matched.images.labels) == ("wnid", given.labels)


def test_imagenets_words_are_names() -> None:
    synsets, words = imagenet_lists("imagenet")
    place = {words[synset]: number for number, synset in enumerate(synsets)}
    matched = match_classes(images("Carassius_auratus", "giant panda", "goldfinch"), model(None, 1000), name="t")
    expected = [
        place[next(each for each in place if word in each.split(", "))] for word in ("goldfinch", "giant panda")
    ]
    assert (matched.by, matched.images.labels) == ("names", (*expected, place["goldfish, Carassius auratus"]))
    # one class by its number, another by a word
    mixed = match_classes(images("goldfish", synsets[0]), model(None, 1000), name="t")
    assert (mixed.by, mixed.images.labels) == ("names", (0, 1))


def test_words_that_several_classes_share_are_refused() -> None:
    synsets, words = imagenet_lists("imagenet")
    shared = [word for word, count in Counter(w for s in synsets for w in words[s].split(", ")).items() if count > 1]
    assert "crane" in shared
    for word in shared:
        assert f"'{word}' could be several" in refusal(images("goldfish", word), model(None, 1000))


def test_own_names_go_before_imagenets() -> None:
    synsets, _ = imagenet_lists("imagenet")
    backwards = model(synsets[::-1], 1000)
    matched = match_classes(images(synsets[0], synsets[5]), backwards, name="the teacher")
    assert (matched.by, matched.images.labels) == ("names", (994, 999))


# --- by a class map


def test_a_class_map_overrules_names() -> None:
    matched = match_classes(images("cat", "zebra"), model(), name="t", class_map={"cat": 0, "zebra": 2, "ox": 9})
    assert (matched.by, matched.images.labels, matched.images.classes) == ("map", (2, 0), 4)
    # two folders may be one class
    assert match_classes(images("a", "b"), model(), name="t", class_map={"a": 1, "b": 1}).images.labels == (1, 1)
    nameless = match_classes(images("a", "b"), model(None), name="t", class_map={"a": 3, "b": 1}).images
    assert (nameless.labels, nameless.classes, nameless.class_names) == ((1, 3), 4, None)


def test_a_class_map_has_to_fit_images_and_model() -> None:
    assert refusal(images("cat", "dodo"), model(), {"cat": 0}) == (
        "the class map says nothing of 'dodo', a class of farm; add it to the file"
    )
    for wrong in (4, -1):
        assert refusal(images("cat"), model(), {"cat": wrong}) == (
            f"the class map puts 'cat' at {wrong}, but the teacher has classes 0 to 3; correct it"
        )
    assert "leave --class-map out" in refusal(replace(images("cat"), class_names=None), model(), {"cat": 0})


def test_class_maps_are_lines_or_json(tmp_path: Path) -> None:
    lines, dictionary = tmp_path / "map.txt", tmp_path / "map.JSON"
    lines.write_text("fire ant \nzebra\n\ncat\n", encoding="utf-8")
    assert read_class_map(lines) == {"fire ant": 0, "zebra": 1, "cat": 3}
    lines.write_text("ñandú\r\nzebra\r\n", encoding="utf-8-sig")
    assert read_class_map(lines) == {"ñandú": 0, "zebra": 1}
    dictionary.write_text(json.dumps({"zebra": 7, "cat": 0}), encoding="utf-8")
    assert read_class_map(dictionary) == {"zebra": 7, "cat": 0}


def test_lines_number_classes_as_timm_does(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("b\na\nd e\nc", encoding="utf-8")
    assert read_class_map(path) == timm.data.readers.class_map.load_class_map(str(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("map.json", "{", "Expecting"),
        ("map.json", '["cat"]', "list instead of a dictionary"),
        ("map.json", '{"cat": "1"}', "'cat' has '1' instead of a whole number"),
        ("map.json", '{"cat": true}', "'cat' has True instead of a whole number"),
        ("map.json", "{}", "without any name"),
        ("map.txt", "\n\n", "without any name"),
        ("map.txt", "cat\nox\ncat\n", "'cat' in lines 1 and 3"),
        ("map.txt", b"\xff\xfe\x00", "utf-8"),
        ("map.txt", None, "No such file"),
        ("map.csv", "cat,1", "as class map, got"),
        ("map.pkl", pickle.dumps({"cat": 0}), "as class map, got"),
    ],
)
def test_what_is_no_class_map_is_refused(name: str, content: str | bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RequestError, match=r"expected a .txt file with a class name a line or a .json file") as caught:
        read_class_map(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


# --- names of answers


def test_answers_are_called_as_the_model_calls_its_classes_or_by_number() -> None:
    assert answer_names(model()) == ANIMALS
    assert answer_names(model({"0": "zebra", "3": "cat"})) == ("zebra", "1", "2", "cat")
    assert answer_names(model(None)) == ("0", "1", "2", "3")
    # names of another classifier say nothing
    assert answer_names(model(ANIMALS[:3])) == ("0", "1", "2", "3")


def test_imagenets_answers_are_words_and_no_two_are_alike() -> None:
    names = answer_names(timm.create_model("test_resnet"))
    assert len(set(names)) == 1000
    assert (names[0], names[999]) == ("tench", "toilet tissue")
    # the bird and the machine
    assert (names[134], names[517]) == ("crane (n02012849)", "crane (n03126707)")
