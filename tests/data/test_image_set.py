"""A part of a set is a set of its own: its images, names and labels belong together."""

from __future__ import annotations

import numpy as np

from netgraft.data.image_set import ArrayStore, ImageSet


def test_a_part_has_the_images_names_and_labels_of_its_positions() -> None:
    pixels = np.arange(5, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    names = tuple(f"{number}.png" for number in range(5))
    whole = ImageSet("five", 5, ArrayStore(pixels), (0, 1, 0, 1, 2), 3, names, ("a", "b", "c"))
    part = whole.part([4, 1], "two")
    assert (part.name, len(part), part.labels, part.names) == ("two", 2, (2, 1), ("4.png", "1.png"))
    assert [np.asarray(image)[0, 0] for image in part.load_many([1, 0])] == [1, 4]
    # a part of it may be taken in turn
    assert np.asarray(part.part([1], "one").load(0))[0, 0] == 1
    assert part.classes == 3
    bare = part.without_labels()
    assert (bare.labels, bare.classes, bare.class_names, bare.names) == (None, None, None, part.names)
