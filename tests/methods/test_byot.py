"""Self distillation from the deepest classifier, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netgraft.grafting.pairing import Pairing
from netgraft.plan import StepOutputs
from netgraft.splitting.chain import BlockChain, Cut
from tests.support.method_pairs import (
    cross_entropy,
    cross_entropy_slope,
    divergence,
    layers,
    leaf,
    method,
    objective_of,
    pairing,
    random,
    slopes,
    values,
)

B, K = 4, 6

LABELS = [5, 0, 3, 3]


def test_shallow_classifiers_learn_from_the_deepest_which_learns_from_classes_alone() -> None:
    alpha, weight, temperature = 0.4, 0.05, 3.0
    output, deepest = leaf(B, K), leaf(B, 7, seed=1)
    embeddings = [leaf(B, 7, seed=seed) for seed in (2, 3)]
    shallow = [leaf(B, K, seed=seed) for seed in (4, 5)]
    features = (deepest, embeddings[0], shallow[0], embeddings[1], shallow[1])
    taught = objective_of("byot", soft_weight=alpha, feature_weight=weight)
    terms = taught(StepOutputs(output, None, torch.tensor(LABELS), features))
    z, d = output.detach().numpy(), deepest.detach().numpy()
    expected = {"classes": cross_entropy(z, LABELS)}
    for place, (embedding, logits) in enumerate(zip(embeddings, shallow, strict=True), 1):
        y, e = logits.detach().numpy(), embedding.detach().numpy()
        expected[f"classes {place}"] = (1 - alpha) * cross_entropy(y, LABELS)
        expected[f"soft {place}"] = alpha * divergence(z, y, temperature) / temperature**2
        expected[f"features {place}"] = weight * np.mean(np.sum((e - d) ** 2, axis=1)) / 2
        np.testing.assert_allclose(slopes(terms, embedding), weight * (e - d) / B, atol=1e-7)
    assert values(terms) == {name: pytest.approx(value) for name, value in expected.items()}
    np.testing.assert_allclose(slopes(terms, output), cross_entropy_slope(z, LABELS), atol=1e-7)
    assert not slopes(terms, deepest).any()


def test_shallow_classifiers_stand_at_every_block_end_but_the_last() -> None:
    taught = method("byot").objective(pairing("none"))
    assert [feature.block for feature in taught.features] == [2, 0, 0, 1, 1]
    maps = {0: random(B, 32, 4, 4), 1: random(B, 32, 2, 2), 2: random(B, 64, 1, 1)}
    shapes = []
    for feature in taught.features:
        assert feature.connector is not None
        shapes.append(tuple(feature.connector(maps[feature.block].float()).shape))
    # embeddings are as wide as the deepest maps, classifiers know the classes of the digits
    assert shapes == [(B, 64), (B, 64), (B, 10), (B, 64), (B, 10)]
    # a classifier is made of its embedding, which is trained once
    for embedding, classifier in (taught.features[1:3], taught.features[3:5]):
        assert embedding.connector is not None
        assert classifier.connector is not None
        assert layers(embedding.connector) < layers(classifier.connector)


@pytest.mark.parametrize("convolution", [True, False])
def test_classifiers_know_the_classes_of_any_head(convolution: bool) -> None:
    def chain() -> BlockChain:
        pool, last = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 7, 1) if convolution else nn.Linear(4, 7)
        head = nn.Sequential(pool, last, nn.Flatten()) if convolution else nn.Sequential(pool, nn.Flatten(), last)
        cuts = [Cut(f"s{number}", (width, 2, 2), "NCHW") for number, width in enumerate((3, 5, 4))]
        layers = [nn.Conv2d(a, b, 1) for a, b in ((1, 3), (3, 5), (5, 4))]
        return BlockChain([*layers, head], [*(cut.name for cut in cuts), "head"], cuts)

    features = method("byot").objective(Pairing(chain(), chain())).features
    assert [feature.block for feature in features] == [2, 0, 0, 1, 1]
    for number, width in ((2, 3), (4, 5)):
        connector = features[number].connector
        assert connector is not None
        assert connector(torch.randn(2, width, 2, 2)).shape == (2, 7)
