"""The student as it starts: only statistics change."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from netgraft.training.sampling import batch_indices
from tests.support.method_pairs import method, prepare_run


def test_untrained_takes_statistics_and_changes_nothing_else() -> None:
    steps, batch = 5, 3
    prepared = prepare_run("digits", method("none", steps=steps, batch_size=batch))
    blocks = prepared.pairing.student.blocks()
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    [convolution] = [layer for layer in blocks[1].modules() if isinstance(layer, nn.Conv2d)][:1]
    norms = [layer for layer in blocks[1].modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms[0].running_mean is not None
    assert norms[0].running_var is not None
    mean, variance = (value.double().numpy().copy() for value in (norms[0].running_mean, norms[0].running_var))
    for step in range(steps):
        views = prepared.views.batch(
            batch_indices(prepared.runner.seed, 0, step, images=4, per_image=4, batch_size=batch)
        )
        with torch.no_grad():
            maps = convolution(blocks[0].eval()(views)).double().numpy()
        # an exponential average of each channel's mean and unbiased variance, with momentum 0.1
        mean = 0.9 * mean + 0.1 * maps.mean(axis=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1).var(axis=1, ddof=1)
    prepared.run()
    np.testing.assert_allclose(norms[0].running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norms[0].running_var.numpy(), variance, rtol=1e-4)
    assert {int(norm.get_buffer("num_batches_tracked")) for norm in norms} == {steps}
    changed = {name for name, value in prepared.model.state_dict().items() if not torch.equal(value, before[name])}
    kinds = {"running_mean", "running_var", "num_batches_tracked"}
    statistics = {name for name in before if name.rpartition(".")[2] in kinds}
    inherited = {name for name in before if name.startswith("features.") and int(name.split(".")[1]) < 6}
    assert changed == statistics - inherited
    assert inherited & statistics
