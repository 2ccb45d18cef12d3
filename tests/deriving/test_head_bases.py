"""Turned heads: the same model, with channels that are principal; against NumPy's SVD of what heads compute."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.head_bases import bases_of
from netgraft.deriving.turning import turned
from tests.support.attention import apart, redundant, swin, vit
from tests.support.derivable import images, network

MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (vit, 8),
    "of half the rank": (lambda: redundant(vit(), 8), 8),
    "swin": (swin, 16),
    "apart": (apart, 8),
    "said": (lambda: apart(said=True), 8),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_a_turned_model_computes_the_same_with_other_weights(kind: str) -> None:
    make, side = MODELS[kind]
    model = make().double()
    before = copy.deepcopy(model.state_dict())
    anatomy = Anatomy.of(model, images(2, side=side).double())
    other = turned(anatomy, [images(24, seed=4, side=side).double()])

    probe = images(8, seed=5, side=side).double()
    expected = model(probe)
    torch.testing.assert_close(other.model(probe), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = {name for name, value in other.model.state_dict().items() if not torch.equal(value, before[name])}
    layers = {rows.layer for each in anatomy.found.logits for rows in (each.queries, each.keys)}
    layers |= {rows.layer for each in anatomy.found.values for rows in (each.written, each.read)}
    assert {name.rpartition(".")[0] for name in changed} == layers
    assert len(layers) > 1
    assert other.places == anatomy.places


def test_a_model_without_attention_is_left_as_it_is() -> None:
    model = network("residual")
    other = turned(Anatomy.of(model, images()), [images(8)])
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in model.state_dict().items())


def root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    root_of_values: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return root_of_values


@torch.no_grad()
def test_channels_are_the_singular_ones_of_what_a_head_computes() -> None:
    model = apart()
    anatomy = Anatomy.of(model, images())
    views = images(60, seed=4)
    other = turned(anatomy, [views])
    taken: list[torch.Tensor] = []
    hook = model.get_submodule("attn").register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].double()))
    model(views)
    hook.remove()
    x = taken[0].reshape(-1, 12).numpy()
    with_one = np.concatenate([x, np.ones((len(x), 1))], 1)
    squares, covariance = with_one.T @ with_one / len(x), np.cov(x.T, bias=True)

    def weights(of: nn.Module, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        layer = of.get_submodule(f"attn.{name}")
        return layer.get_parameter("weight").double().numpy(), layer.get_parameter("bias").double().numpy()

    for head in range(2):
        rows = slice(8 * head, 8 * head + 8)
        (wq, bq), (wk, _) = weights(model, "q"), weights(model, "k")
        product = np.concatenate([wq[rows], bq[rows, None]], 1).T @ wk[rows]
        singular = np.linalg.svd(root(squares) @ product @ root(covariance), compute_uv=False)[:8]
        (wq, bq), (wk, _) = weights(other.model, "q"), weights(other.model, "k")
        queries = with_one @ np.concatenate([wq[rows], bq[rows, None]], 1).T
        keys = (x - x.mean(0)) @ wk[rows].T
        # each side has the root of a singular value in each channel, and no two channels go together
        for each in (queries, keys):
            got = each.T @ each / len(x)
            np.testing.assert_allclose(got, np.diag(singular), rtol=1e-3, atol=2e-3 * singular[0])

        columns = slice(6 * head, 6 * head + 6)
        (wv, _), (wo, _) = weights(model, "v"), weights(model, "proj")
        singular = np.linalg.svd(wo[:, columns] @ wv[columns] @ root(covariance), compute_uv=False)[:6]
        (wv, _), (wo, _) = weights(other.model, "v"), weights(other.model, "proj")
        for left in range(6):
            # Eckart and Young: nothing that is as narrow is nearer
            missing = wo[:, columns][:, left:] @ wv[columns][left:]
            error = np.trace(missing @ covariance @ missing.T)
            assert error == pytest.approx((singular[left:] ** 2).sum(), rel=2e-3)


@pytest.mark.parametrize("rank", [0, 3, 6])
def test_bases_of_any_rank_are_one_anothers_inverses(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    left, values, right = torch.linalg.svd(first.T @ second)
    # of the second side only what meets the first in ``rank`` directions
    values[rank:] = 0
    second = torch.linalg.inv(first.T) @ (left * values) @ right
    one, other = bases_of(first, second)

    torch.testing.assert_close(one.T @ other, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)
    spread = one @ first @ first.T @ one.T
    torch.testing.assert_close(spread[:rank, :rank], values[:rank].diag(), rtol=1e-9, atol=1e-9)
    others = other @ second @ second.T @ other.T
    torch.testing.assert_close(others, values.diag(), rtol=1e-9, atol=1e-9)
