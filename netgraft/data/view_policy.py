"""How views are made of images, as data that prints itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

from netgraft.errors import RequestError

MOST_PADDING = 2048  # pixels

MOST_VIEWS = 10**9  # their order alone takes 12 GB

ARITHMETICS = ("float", "8-bit")


@dataclass(frozen=True)
class ViewPolicy:
    """How the views are made.

    Attributes:
        name: Of the policy.
        crop_scale: Range of a random resized crop's area, as a part of the image; None for no such crop.
        pad: Zeros around the input-size image, in pixels, before a random crop of the input size; 0 for no such
            crop.
        hflip: Probability of a mirrored image.
        colour: Brightness, contrast and saturation are each scaled by a factor from 1 - colour to 1 + colour.
        mixup: Probability that a view is a mixup of two images, with a weight that is uniform from 0 to 1
            (Beta(1, 1)).
        cutmix: Probability that a view is a cutmix of two images (Yun et al., ICCV 2019).
        pool: How many views in all; never fewer than one an image. None for no end of them: every step of a run sees
            views that no step has seen.
        arithmetic: ``float`` resizes boxes in float32, and clips after each change of colour; ``8-bit`` is faster: it
            resizes in fixed point, rounded to 8 bits, as image libraries do, and changes brightness, contrast and
            saturation by one affine map, clipped once.

    Raises:
        ValueError: A value outside its range, or both kinds of crop.

    Examples:
        >>> print(ViewPolicy("mild", pad=4, hflip=0.5, colour=0.2, pool=2048))
        mild: random crops after 4 pixels of zeros, mirrored 50%, colour 0.2; 2,048 views
        >>> ViewPolicy("mild", hflip=2.0)
        Traceback (most recent call last):
        ValueError: hflip must be a probability, not 2.0; give a number from 0 to 1
    """

    name: str
    crop_scale: tuple[float, float] | None = None
    pad: int = 0
    hflip: float = 0.0
    colour: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    pool: int | None = 16384
    arithmetic: str = "float"

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be a range within (0, 1], not {self.crop_scale}")
        if self.crop_scale is not None and self.pad:
            raise ValueError("a view is cropped by crop_scale or by pad, not by both; leave one out")
        if not (0 <= self.pad <= MOST_PADDING and (self.pool is None or 0 <= self.pool <= MOST_VIEWS)):
            raise RequestError(
                f"pad must be from 0 to {MOST_PADDING:,} and pool None or from 0 to {MOST_VIEWS:,}, got {self.pad} and "
                f"{self.pool}; give others"
            )
        if self.arithmetic not in ARITHMETICS:
            raise RequestError(f"arithmetic must be one of {', '.join(ARITHMETICS)}, not {self.arithmetic!r}")
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour must lie within [0, 1], not {self.colour}")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip must be a probability, not {self.hflip}; give a number from 0 to 1")
        if not (self.mixup >= 0 and self.cutmix >= 0 and self.mixup + self.cutmix <= 1):  # nor NaN
            raise ValueError(f"mixup and cutmix must share one probability, got {self.mixup} and {self.cutmix}")

    @property
    def mixes(self) -> bool:
        """Whether a view may be made of two images."""
        return self.mixup + self.cutmix > 0

    def __str__(self) -> str:
        parts = []
        if self.crop_scale is not None:
            how = "" if self.arithmetic == "float" else f" ({self.arithmetic})"
            parts.append(f"random resized crops of {self.crop_scale[0]:.0%} to {self.crop_scale[1]:.0%}{how}")
        if self.pad:
            parts.append(f"random crops after {self.pad} pixels of zeros")
        if self.hflip:
            parts.append(f"mirrored {self.hflip:.0%}")
        if self.colour:
            parts.append(f"colour {self.colour:g}")
        if self.mixup:
            parts.append(f"mixup {self.mixup:.0%}")
        if self.cutmix:
            parts.append(f"cutmix {self.cutmix:.0%}")
        what = ", ".join(parts) or "images as they are"
        views = "no view twice" if self.pool is None else f"{self.pool:,} views" if self.pool else "one view an image"
        return f"{self.name}: {what}; {views}"


_RICH = ViewPolicy("rich", crop_scale=(0.25, 1.0), hflip=0.5, colour=0.4, mixup=0.25, cutmix=0.25)

VIEW_POLICIES: dict[str, ViewPolicy] = {
    "rich": _RICH,
    "rich-endless": replace(_RICH, name="rich-endless", pool=None, arithmetic="8-bit"),
    "crop": ViewPolicy("crop", pad=4, hflip=0.5),
    "plain": ViewPolicy("plain", pool=0),
}


def find_policy(name: str) -> ViewPolicy:
    """Return a named policy.

    Raises:
        RequestError: There is none of that name.
    """
    if name not in VIEW_POLICIES:
        raise RequestError(f"there is no view policy {name!r}; choose from {', '.join(VIEW_POLICIES)}")
    return VIEW_POLICIES[name]
