"""Views: what they may depend on, and that each kind is what it claims, against brute force and PIL."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from netgraft.data.counter_rng import uniform_numbers
from netgraft.data.view_policy import VIEW_POLICIES, ViewPolicy
from netgraft.data.views import Views
from netgraft.errors import RequestError

MEAN = (0.49, 0.48, 0.45)


STD = (0.25, 0.24, 0.26)


def noise(number: int, size: tuple[int, int] = (32, 32), low: int = 0, high: int = 256) -> list[Image.Image]:
    """RGB images of (width, height) ``size``."""
    generator = np.random.default_rng(number)
    shape = (size[1], size[0], 3)
    return [Image.fromarray(generator.integers(low, high, shape, dtype=np.uint8)) for _ in range(number)]


def make(images: Sequence[Image.Image], policy: ViewPolicy, **changes: Any) -> Views:
    settings: dict[str, Any] = {
        "size": (3, 32, 32),
        "mean": MEAN,
        "std": STD,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "seed": 0,
    }
    return Views(images, policy, **{**settings, **changes})


def unit(views: Tensor) -> Tensor:
    """Undo the normalisation: float64 in 0 to 1."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (MEAN, STD))
    return views.double() * std + mean


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


def global_states() -> list[str]:
    return [repr(torch.get_rng_state().tolist()), repr(random.getstate()), repr(np.random.get_state())]


@pytest.mark.parametrize("policy", VIEW_POLICIES.values(), ids=lambda policy: policy.name)
def test_numbering_covers_the_pool(policy: ViewPolicy) -> None:
    views = make(noise(7), replace(policy, pool=20 if policy.pool else 0))
    assert (views.per_image, len(views)) == ((3, 21) if policy.pool else (1, 7))
    batch = views.batch(range(len(views)))
    assert batch.shape == (len(views), 3, 32, 32)
    assert batch.dtype == torch.float32
    assert torch.isfinite(batch).all()
    for outside in (-1, len(views)):
        with pytest.raises(IndexError):
            views.batch([0, outside])


@pytest.mark.parametrize("policy", VIEW_POLICIES.values(), ids=lambda policy: policy.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_does_not_depend_on_its_batch(policy: ViewPolicy, channels: int) -> None:
    settings = {"size": (channels, 20, 20), "mean": MEAN[:channels], "std": STD[:channels]}
    views = make(noise(64, (30, 26)), policy, **settings)
    together = views.batch(range(64))
    for number in range(64):
        assert torch.equal(views.batch([number])[0], together[number])
    order = torch.randperm(64)
    assert torch.equal(views.batch(order), together[order])
    assert torch.equal(views.batch([5]), views.batch([3, 5, 9])[1:2])


def coloured(image: Tensor, factors: Sequence[float], highest: float) -> Tensor:
    """Brightness, contrast around the mean luma, and saturation, one after another, clipped at 1 - highest, highest."""
    brightness, contrast, saturation = (torch.tensor(factor, dtype=torch.float32) for factor in factors)

    def luma(of: Tensor) -> Tensor:
        return of if len(of) == 1 else (of[0] * 0.299 + of[1] * 0.587 + of[2] * 0.114)[None]

    image = (image * brightness).clamp(1 - highest, highest)
    total = sum(int(value * 2**20) for value in luma(image).flatten().tolist())
    mean = torch.tensor(total / (2**20 * image[0].numel()), dtype=torch.float32)
    image = (image * contrast + mean * (1 - contrast)).clamp(1 - highest, highest)
    if len(image) == 1:
        return image.clamp(0, 1)
    return (image * saturation + luma(image) * (1 - saturation)).clamp(0, 1)


def outside_of_cut(height: int, width: int, share: float, y: float, x: float) -> Tensor:
    """1 where a cutmix view shows the first image."""
    weight = torch.ones(height, width)
    half_h, half_w = (int(side * np.sqrt(1 - share)) // 2 for side in (height, width))
    for row, column in itertools.product(range(height), range(width)):
        inside_rows = int(y * height) - half_h <= row < int(y * height) + half_h
        if inside_rows and int(x * width) - half_w <= column < int(x * width) + half_w:
            weight[row, column] = 0.0
    return weight


def one_by_one(views: Views, sources: Sequence[Tensor], mode: str, numbers: Sequence[int]) -> Tensor:
    """The views of a policy with resized crops, one after another, by plain numbers and masks."""
    policy, (_, height, width) = views.policy, views.size
    assert policy.crop_scale is not None
    low, high = policy.crop_scale

    def ingredient(source: Tensor, random: Sequence[float]) -> Tensor:
        flip, top, left, *rest = random
        factors, tries = rest[:3], rest[3:]
        rows, columns = source.shape[1:]
        boxes = []
        for area, aspect in zip(tries[::2], tries[1::2], strict=True):
            pixels = (low + (high - low) * area) * rows * columns
            ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * aspect)
            boxes.append((max(1, round(float(np.sqrt(pixels / ratio)))), max(1, round(float(np.sqrt(pixels * ratio))))))
        h, w = next((box for box in boxes if box[0] <= rows and box[1] <= columns), boxes[0])
        h, w = min(h, rows), min(w, columns)
        y, x = int(top * (rows - h + 1)), int(left * (columns - w + 1))
        box = source[None, :, y : y + h, x : x + w]
        box = box.clone() if policy.arithmetic == "8-bit" else box.float()
        image = torch.nn.functional.interpolate(box, (height, width), mode=mode, antialias=True)[0].float()
        image = image.clamp(0, 255) / 255
        if flip < policy.hflip:
            image = image.flip(-1)
        factors = [1 + policy.colour * (2 * factor - 1) for factor in factors]
        return coloured(image, factors, highest=1 if policy.arithmetic == "float" else 1e3)

    made = []
    for number in numbers:
        random = uniform_numbers(views.seed, np.array([number]), 5 + 2 * 26)[0].tolist()
        kind, partner, share, y, x = random[:5]
        own, n = number % len(sources), len(sources)
        view = ingredient(sources[own], random[5:31])
        if kind < policy.mixup + policy.cutmix:
            other = ingredient(sources[(own + 1 + int(partner * (n - 1))) % n], random[31:])
            mixup = kind < policy.mixup
            weight = torch.tensor(share) if mixup else outside_of_cut(height, width, share, y, x)
            view = view * weight + other * (1 - weight)
        made.append(view)
    mean, std = (torch.tensor(values[: views.size[0]]).view(-1, 1, 1) for values in (MEAN, STD))
    return (torch.stack(made) - mean) / std


@pytest.mark.parametrize("name", ["rich", "rich-endless"])
@pytest.mark.parametrize(("mode", "channels"), [("bicubic", 3), ("bilinear", 1)])
def test_views_are_what_a_plain_program_makes_one_by_one(name: str, mode: str, channels: int) -> None:
    images = noise(5, (30, 26))  # so small that none is shrunk
    settings: dict[str, Any] = {"size": (channels, 20, 18), "mean": MEAN[:channels], "std": STD[:channels]}
    views = make(images, VIEW_POLICIES[name], interpolation=mode, **settings)
    sources = [pil_to_tensor(image.convert("L" if channels == 1 else "RGB")) for image in images]
    numbers = [*range(60), 4001]
    found, expected = views.batch(numbers), one_by_one(views, sources, mode, numbers)
    if name == "rich":
        assert torch.equal(found, expected)
    else:  # the same affine map, multiplied out
        assert (found - expected).abs().max() < 2e-5


@pytest.mark.parametrize("policy", VIEW_POLICIES.values(), ids=lambda policy: policy.name)
def test_a_view_does_not_depend_on_threads(policy: ViewPolicy) -> None:
    """They are so large that several are rendered at once."""
    views = make(noise(10, (120, 130)), policy, size=(3, 96, 96))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(views.batch(range(10)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_boxes_resampled_in_8_bits_are_those_of_pillow() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8))
    policy = ViewPolicy("boxes", crop_scale=(1.0, 1.0), pool=40)  # a box of the whole image, as far as aspects allow
    plain, rounded = (
        make([image], replace(policy, arithmetic=how), size=(3, 8, 8), interpolation="bicubic").batch(range(40))
        for how in ("float", "8-bit")
    )
    assert 0 < (unit(plain) - unit(rounded)).abs().max() * 255 < 2.5
    levels = unit(rounded) * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    whole = pixels(image.resize((8, 8), Image.Resampling.BICUBIC)) * 255
    # where the first try fits in neither direction, the box is the whole image
    closest = (levels - whole).abs().amax((1, 2, 3)).min()
    assert closest < 1.5


def test_there_is_no_end_of_views_without_a_pool() -> None:
    views = make(noise(3), VIEW_POLICIES["rich-endless"], labels=None)
    assert views.per_image is None
    assert views.images == 3
    far = [0, 3, 3 * 10**12, 3 * 10**12 + 3]
    batch = views.batch(far)
    assert len({view.numpy().tobytes() for view in batch}) == 4
    assert torch.equal(views.batch(far[2:]), batch[2:])
    with pytest.raises(IndexError, match="numbered from 0"):
        views.batch([2**53])


def test_views_neither_use_nor_disturb_global_generators() -> None:
    images = noise(5)
    torch.manual_seed(0)
    first = make(images, VIEW_POLICIES["rich"]).batch(range(50))
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = global_states()
    second = make(images, VIEW_POLICIES["rich"]).batch(range(50))
    assert torch.equal(first, second)
    assert global_states() == before


def test_seeds_and_numbers_give_different_views() -> None:
    images = noise(4)
    rich = [make(images, VIEW_POLICIES["rich"], seed=seed).batch(range(100)) for seed in (0, 1, -1)]
    distinct = {view.numpy().tobytes() for views in rich for view in views}
    assert len(distinct) == 300


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("extent", [(50, 37), (32, 32), (20, 45)])
def test_plain_views_are_timms_evaluation_images(
    interpolation: str, crop_pct: float, crop_mode: str, extent: tuple[int, int]
) -> None:
    images = noise(3, extent)
    config: dict[str, Any] = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
    views = make(images, VIEW_POLICIES["plain"], **config).batch([2, 0, 1])
    transform = create_transform((3, 32, 32), is_training=False, mean=MEAN, std=STD, **config)
    assert torch.equal(views, torch.stack([transform(images[index]) for index in (2, 0, 1)]))


def test_grey_and_palette_images_become_what_the_model_takes() -> None:
    colour = noise(1)[0]
    mixed = [colour, colour.convert("L"), colour.convert("P"), colour.convert("RGBA")]
    rgb = unit(make(mixed, VIEW_POLICIES["plain"]).batch(range(4)))
    assert torch.allclose(rgb[1], pixels(colour.convert("L").convert("RGB")), atol=1e-6)
    assert torch.allclose(rgb[3], pixels(colour), atol=1e-6)
    grey = make(mixed, VIEW_POLICIES["plain"], size=(1, 32, 32), mean=[0.0], std=[1.0]).batch(range(4))
    expected = torch.from_numpy(np.array(colour.convert("L"))).double() / 255
    assert grey.shape == (4, 1, 32, 32)
    assert torch.allclose(grey[0, 0].double(), expected, atol=1e-6)


def test_crop_views_are_crops_of_the_padded_image() -> None:
    images = noise(3)
    views = unit(make(images, VIEW_POLICIES["crop"]).batch(range(300)))
    found = set()
    for number, view in enumerate(views):
        image = number % 3
        padded = torch.zeros(3, 40, 40, dtype=torch.float64)
        padded[:, 4:36, 4:36] = pixels(images[image])
        matches = [
            (image, top, left, mirrored)
            for top, left, mirrored in itertools.product(range(9), range(9), (False, True))
            if (view - padded[:, top : top + 32, left : left + 32].flip(-1 if mirrored else ())).abs().max() < 1e-6
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert {top for _, top, _, _ in found} == {left for _, _, left, _ in found} == set(range(9))
    assert 0.4 < sum(mirrored for *_, mirrored in found) / len(found) < 0.6


def test_resized_crops_are_resized_boxes_of_the_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8))
    policy = ViewPolicy("boxes", crop_scale=(0.25, 0.7), hflip=0.5, pool=60)
    views = make([image], policy, size=(1, 8, 8), mean=[0.0], std=[1.0]).batch(range(60))[:, 0]
    boxes = [
        (left, top, left + w, top + h)
        for h, w in itertools.product(range(2, 10), range(2, 12))
        for top, left in itertools.product(range(10 - h), range(12 - w))
    ]
    bilinear = Image.Resampling.BILINEAR
    resized = np.stack([np.array(image.crop(box).resize((8, 8), bilinear)) for box in boxes]).astype(np.float64)
    taken = []
    for view in views.double().numpy() * 255:
        # PIL rounds twice, once a direction
        error = np.minimum(*(np.abs(resized - side).max((1, 2)) for side in (view, view[:, ::-1])))
        assert error.min() < 1.6
        taken.append(boxes[int(error.argmin())])
    areas = np.array([(right - left) * (bottom - top) / 99 for left, top, right, bottom in taken])
    assert 0.2 < areas.min() < 0.35 < 0.6 < areas.max() < 0.77
    assert len({box[:2] for box in taken}) > 15


def test_large_images_are_neither_aliased_nor_blurred() -> None:
    # stripes of one pixel average out to grey
    stripes = np.zeros((400, 600, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    policy = ViewPolicy("boxes", crop_scale=(0.25, 1.0), pool=40)
    views = unit(make([Image.fromarray(stripes)], policy).batch(range(40)))
    assert (views.mean((1, 2, 3)) - 0.5).abs().max() < 0.02
    assert views.std((1, 2, 3)).max() < 0.1
    # four flat quarters stay flat but for the pixels along their borders
    blocks = noise(1, (2, 2))[0].resize((400, 600), Image.Resampling.NEAREST)
    corners = unit(make([blocks], policy).batch(range(40)))
    present = (corners.flatten(2)[..., None] - pixels(blocks)[:, ::599, ::399].flatten(1)[None, :, None]).abs()
    assert (present.amax(1).amin(-1) < 1e-2).double().mean() > 0.8


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_constant_images_stay_constant(interpolation: str) -> None:
    policy = ViewPolicy("boxes", crop_scale=(0.25, 1.0), hflip=0.5, pool=64)
    views = make([Image.new("RGB", (50, 40), (200, 30, 90))], policy, interpolation=interpolation)
    expected = torch.tensor([200, 30, 90], dtype=torch.float64).view(1, 3, 1, 1) / 255
    assert (unit(views.batch(range(64))) - expected).abs().max() < 1e-5


def test_colour_is_brightness_then_contrast_then_saturation() -> None:
    # mid-range pixels never clip, so a view is a x + b grey(x) + c; its three factors follow from a, b and c
    images = noise(2, low=100, high=140)
    views = unit(make(images, ViewPolicy("colour", colour=0.4, pool=40)).batch(range(40)))
    factors = []
    for number, view in enumerate(views):
        x = pixels(images[number % 2])
        grey = (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]).expand_as(x)
        system = torch.stack([x.flatten(), grey.flatten(), torch.ones(x.numel(), dtype=torch.float64)], dim=1)
        a, b, c = torch.linalg.lstsq(system, view.flatten()).solution.tolist()
        assert (system @ torch.tensor([a, b, c], dtype=torch.float64) - view.flatten()).abs().max() < 1e-5
        brightness = (c + (a + b) * grey.mean().item()) / grey.mean().item()
        factors.append((brightness, (a + b) / brightness, a / (a + b)))
    table = np.array(factors)
    assert (table > 0.6 - 1e-3).all()
    assert (table < 1.4 + 1e-3).all()
    assert (table.min(0) < 0.75).all()
    assert (table.max(0) > 1.25).all()


def test_grey_views_have_brightness_and_contrast_only() -> None:
    image = Image.new("L", (8, 8), 100)
    views = make([image], ViewPolicy("colour", colour=0.4, pool=20), size=(1, 8, 8), mean=[0.0], std=[1.0])
    batch = views.batch(range(20)).double() * 255
    assert (batch - batch[:, :, :1, :1]).abs().max() < 1e-3
    assert 60 - 1e-3 < batch.min() < batch.max() < 140 + 1e-3


def test_mixup_views_are_convex_combinations_of_two_images() -> None:
    images = noise(4)
    sources = torch.stack([pixels(image) for image in images]).flatten(1)
    weights, partners = [], set()
    for number, view in enumerate(unit(make(images, ViewPolicy("mixup", mixup=1.0, pool=80)).batch(range(80)))):
        found = torch.linalg.lstsq(sources.T, view.flatten()).solution
        assert (found @ sources - view.flatten()).abs().max() < 1e-6
        own = found[number % 4].item()
        partner = int(torch.where(torch.arange(4) == number % 4, -1.0, found).argmax())
        assert abs(own + found[partner].item() - 1) < 1e-5
        assert -1e-6 < own < 1 + 1e-6
        weights.append(own)
        partners.add((number % 4, partner))
    # uniform weights: mean 1/2, standard deviation of the mean 0.03
    assert abs(float(np.mean(weights)) - 0.5) < 0.15
    assert partners == {(own, other) for own in range(4) for other in range(4) if own != other}


def test_cutmix_views_show_a_box_of_another_image() -> None:
    images = noise(4)
    sources = torch.stack([pixels(image) for image in images])
    shares = []
    for number, view in enumerate(unit(make(images, ViewPolicy("cutmix", cutmix=1.0, pool=200)).batch(range(200)))):
        from_source = ((sources - view).abs().amax(1) < 1e-6).int()
        own = from_source[number % 4]
        others = from_source.clone()
        others[number % 4] = 0
        partner = others[int(others.sum((1, 2)).argmax())]
        assert torch.equal(own + partner, torch.ones_like(own))
        rows, columns = partner.any(1), partner.any(0)
        assert torch.equal(partner.bool(), rows[:, None] & columns[None, :])
        for line in (rows, columns):
            assert line.int().diff().abs().sum() <= 2
        shares.append(partner.double().mean().item())
    # a box around a uniform centre, its area uniform, clipped at the borders: 0.29 on average by quadrature
    side = np.sqrt((np.arange(1000) + 0.5) / 1000)[:, None]
    centre = (np.arange(1000) + 0.5)[None, :] / 1000
    along = (np.minimum(centre + side / 2, 1) - np.maximum(centre - side / 2, 0)).mean(1)
    assert abs(float(np.mean(shares)) - float((along**2).mean())) < 0.06


def test_shares_of_mixed_views() -> None:
    # black and white images: a cutmix view holds both values, a mixup view a grey one
    images = [Image.new("RGB", (32, 32), colour) for colour in ("black", "white")]
    views = unit(make(images, replace(VIEW_POLICIES["rich"], colour=0.0)).batch(range(2000)))
    low, high = views.flatten(1).amin(1), views.flatten(1).amax(1)
    mixup = ((low > 1e-4) & (high < 1 - 1e-4)).double().mean().item()
    cutmix = (high - low > 0.5).double().mean().item()
    assert abs(mixup - 0.25) < 0.05
    # some boxes are empty, cover all
    assert 0.17 < cutmix < 0.28


def test_a_single_image_can_be_mixed_with_itself() -> None:
    views = make(noise(1), VIEW_POLICIES["rich"]).batch(range(64))
    assert torch.isfinite(views).all()
    assert len({view.numpy().tobytes() for view in views}) == 64


def test_images_of_different_sizes() -> None:
    images = [*noise(2, (500, 375)), *noise(2, (40, 300)), *noise(1, (5, 5))]
    for policy in VIEW_POLICIES.values():
        assert torch.isfinite(make(images, policy).batch(range(5))).all()


def test_labels_belong_to_the_image_shown() -> None:
    views = make(noise(3), VIEW_POLICIES["crop"], labels=[7, 8, 9])
    labels = views.labels(torch.tensor([0, 4, 8, 3]))
    assert labels is not None
    assert labels.tolist() == [7, 8, 9, 7]
    assert labels.dtype == torch.int64
    assert make(noise(3), VIEW_POLICIES["rich"]).labels([0, 1]) is None


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no label"):
        make(noise(2), VIEW_POLICIES["rich"], labels=[0, 1])
    with pytest.raises(ValueError, match="2 images with 1 labels"):
        make(noise(2), VIEW_POLICIES["crop"], labels=[0])
    with pytest.raises(ValueError, match="no images"):
        make([], VIEW_POLICIES["plain"])
    with pytest.raises(RequestError, match="got 3 and 3"):
        make(noise(1), VIEW_POLICIES["plain"], size=(1, 32, 32))
    with pytest.raises(RequestError, match="got 4 channels"):
        make(noise(1), VIEW_POLICIES["plain"], size=(4, 32, 32))
