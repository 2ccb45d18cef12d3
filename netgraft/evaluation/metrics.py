"""The one definition of each figure that a result reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from netgraft.errors import RequestError, RunError
from netgraft.modules import eval_mode, macs_along

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

WARM_UP = 3  # forwards in front of a timing: memory pools, kernel choice, lazy initialisation


def predict(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a model on every image of a loader, in eval mode; each module's mode is as before afterwards.

    Args:
        model: (B, C, H, W) -> (B, K); images are cast to its floating-point type.
        loader: Yields images (B, C, H, W) and labels (B,), -1 where there is no label.
        device: Where the model moves and stays; where it lies if None.
        progress: Told the number of images of each finished batch.

    Returns:
        Logits (N, K), float32, and labels (N,), both on the CPU and in the loader's order.

    Raises:
        RequestError: The loader is empty.
    """
    if device is not None:
        model.to(device)
    where, dtype = placement(model)
    logits, labels = [], []
    with eval_mode(model), torch.inference_mode():
        for images, targets in loader:
            x = images.to(where, dtype, non_blocking=True)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            logits.append(model(x).float().cpu())
            labels.append(targets.cpu())
            if progress is not None:
                progress(len(images))
    if not logits:
        raise RequestError("expected at least one image to evaluate, got none; check the data set")
    # joined outside inference mode, so that the results may be used in training.
    return torch.cat(logits), torch.cat(labels)


def answers(logits: Tensor) -> Tensor:
    """Return the class with the largest logit of each image, (N,).

    Args:
        logits: (N, K), of at least one image.

    Raises:
        RequestError: Another shape.
        RunError: A logit is NaN.
    """
    if logits.ndim != 2 or not len(logits):
        raise RequestError(
            f"expected logits of shape (images, classes) with at least one image, got {tuple(logits.shape)}; "
            "pass what predict returned"
        )
    # argmax would name the place of the NaN, and the figure would look like an answer
    if logits.isnan().any():
        raise RunError("expected finite logits, got NaN, so no accuracy exists; look at the training loss")
    return logits.argmax(dim=1)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the percentage of images whose largest logit is at the label.

    Args:
        logits: (N, K).
        labels: Class indices (N,).

    Raises:
        RequestError: The shapes don't fit, or a label is outside 0..K-1 (-1: no label).
        RunError: A logit is NaN.
    """
    guesses = answers(logits)
    if labels.shape != guesses.shape:
        raise RequestError(
            f"expected one label for each of {len(guesses)} answers, got the shape {tuple(labels.shape)}; "
            "pass the labels that predict returned with the logits"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise RequestError(
            f"expected labels from 0 to {logits.shape[1] - 1}, one for each output of the model, "
            f"got {low} to {high}; use labelled data with the model's classes"
        )
    return _percent_equal(guesses, labels)


def is_at_chance(top1: float, images: int, classes: int) -> bool:
    """Return whether an accuracy may well be that of a guess, or of one with half as good odds again.

    A classifier whose classes are shuffled or whose input is garbled is right about as often as a guess,
    ``1 / classes``, or a little more. Those odds times 1.5, plus three standard errors of so many images, are what it
    hardly exceeds. Few images prove little: half way from chance to all right always counts as better.

    Args:
        top1: In percent.
        images: On how many.
        classes: Among how many the classifier chooses, whether or not the images show them all.

    Examples:
        >>> is_at_chance(12.0, 600, 10), is_at_chance(25.0, 600, 10)
        (True, False)
    """
    guess = 1 / classes
    lenient = 1.5 * guess / (1 + 0.5 * guess)
    bound = lenient + 3 * (lenient * (1 - lenient) / images) ** 0.5
    return top1 / 100 < min(bound, (1 + guess) / 2)


def agreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Return the percentage of images for which two models name the same class.

    Args:
        logits_a: Of one model, (N, K).
        logits_b: Of the other, on the same images.

    Raises:
        RequestError: The shapes differ.
        RunError: A logit is NaN.
    """
    if logits_a.shape != logits_b.shape:
        raise RequestError(
            f"expected the logits of two models on the same images and classes, got shapes "
            f"{tuple(logits_a.shape)} and {tuple(logits_b.shape)}; predict both with one loader"
        )
    return _percent_equal(answers(logits_a), answers(logits_b))


def macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-accumulates for one image.

    Half the operations that ``torch.utils.flop_counter`` counts: convolutions, linear layers and other matrix
    products, attention. Biases, norms, activations, pooling and sums of paths are free. A layer that runs
    twice counts twice. The model's mode and state stay as they are.

    Args:
        model: Takes images in.
        input_size: Of the image, (C, H, W).
    """
    where, dtype = placement(model)
    with eval_mode(model):
        [total] = macs_along([model], torch.zeros(1, *input_size, device=where, dtype=dtype))
    return total


def latency(
    model: nn.Module,
    input_size: tuple[int, int, int],
    batch: int,
    *,
    device: torch.device | str | None = None,
    repeats: int = 20,
) -> float:
    """Return the median milliseconds of a forward, in eval and inference mode.

    ``WARM_UP`` unmeasured forwards come first, and two more in front of each measured one; an accelerator is
    synchronised around each (:class:`torch.utils.benchmark.Timer`).

    Args:
        model: Takes images in.
        input_size: Of an image, (C, H, W).
        batch: Images a forward.
        device: As in :func:`predict`.
        repeats: Measured forwards.

    Raises:
        RequestError: ``batch`` or ``repeats`` is below 1.
    """
    if batch < 1 or repeats < 1:
        raise RequestError(f"expected batch and repeats of at least 1, got {batch} and {repeats}; raise them")
    if device is not None:
        model.to(device)
    where, dtype = placement(model)
    x = torch.zeros(batch, *input_size, device=where, dtype=dtype)
    return 1000 * _measured(model, x, repeats).median


def shortest_milliseconds(model: nn.Module, inputs: Tensor, *, repeats: int) -> float:
    """Return the shortest time of a forward of a model, or of one of its layers: other work can only make it longer.

    Args:
        model: In any mode.
        inputs: What it takes in.
        repeats: Measured forwards, after ``WARM_UP`` others.
    """
    return 1000 * min(_measured(model, inputs, repeats).times)


def _measured(model: nn.Module, inputs: Tensor, repeats: int) -> Measurement:
    with eval_mode(model), torch.inference_mode():
        for _ in range(WARM_UP):
            model(inputs)
        return _timed(model, inputs, repeats)


def _timed(model: nn.Module, images: Tensor, repeats: int) -> Measurement:
    # the import looks for a compiler, and warns on stderr of one for CUDA where there is no GPU
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    from torch.utils.benchmark import Measurement, Timer

    logger.setLevel(level)
    # its own default is one thread
    timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=torch.get_num_threads())
    [measured] = Measurement.merge(timer.timeit(1) for _ in range(repeats))
    return measured


def _percent_equal(a: Tensor, b: Tensor) -> float:
    return 100 * int((a == b).sum()) / len(a)


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and type of the first floating-point parameter; CPU and float32 for a model without any."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32
