"""How far a percentage that was counted on some images may be from that of all such images."""

from __future__ import annotations

from netgraft.errors import RequestError


def wilson(hits: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a percentage, by its score test.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927); computed by
    ``scipy.stats``.

    Args:
        hits: Of the images.
        images: At least one.

    Returns:
        Lower and upper end in percent.

    Raises:
        RequestError: There are no images, or more hits than images.

    Examples:
        >>> low, high = wilson(90, 100)
        >>> f"{low:.1f} {high:.1f}"
        '82.6 94.5'
    """
    from scipy.stats import binomtest  # half a second that only a measurement needs

    if not 0 <= hits <= images or images < 1:
        raise RequestError(f"expected 0 to all hits on at least one image, got {hits} on {images}; count again")
    found = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)
