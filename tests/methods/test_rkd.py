"""Relations between a batch's embeddings, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from netgraft.plan import StepOutputs
from tests.support.method_pairs import method, pairing, random, values

B, K = 3, 10


def test_relations_are_those_of_the_last_maps_averages() -> None:
    objective = method("rkd", distance_weight=3.0, angle_weight=5.0).objective(pairing())
    [student_embedding], [teacher_embedding] = objective.features, objective.teacher_features
    assert student_embedding.block == teacher_embedding.block == 2
    maps = random(B, 6, 4, 4)
    for feature in (student_embedding, teacher_embedding):
        assert feature.connector is not None
        np.testing.assert_allclose(feature.connector(maps).numpy(), maps.numpy().mean(axis=(2, 3)))

    student, teacher, logits = random(4, 5), random(4, 7, seed=1), random(4, K)

    def huber(difference: float) -> float:
        return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5

    def distances(e: np.ndarray) -> np.ndarray:
        lengths = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
        return lengths / lengths[lengths > 0].mean()

    def angle(e: np.ndarray, i: int, j: int, k: int) -> float:
        if j in {i, k} or i == k:
            return 0.0
        a, b = e[i] - e[j], e[k] - e[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    s, t = student.numpy(), teacher.numpy()
    by_distance = np.mean([huber(a - b) for a, b in zip(distances(s).ravel(), distances(t).ravel(), strict=True)])
    by_angle = np.mean([huber(angle(s, *ijk) - angle(t, *ijk)) for ijk in np.ndindex(4, 4, 4)])
    terms = values(objective.terms(StepOutputs(logits, logits, None, (student,), (teacher,))))
    assert terms["distances"] == pytest.approx(3 * by_distance)
    assert terms["angles"] == pytest.approx(5 * by_angle)
