"""The teacher without batch norms computes what the teacher computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import benchmarks.studies.fuse_batch_norms
from benchmarks.studies.fuse_batch_norms import main, without_batch_norm
from netgraft.models.loading import load_teacher


def busy_teacher() -> nn.Module:
    """Batch norms that shift and scale as those of a trained network do."""
    torch.manual_seed(0)
    model = timm.create_model("cifar_vgg16_bn", num_classes=7)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value, low, high in (
                (layer.weight, 0.5, 2.0),
                (layer.bias, -1.0, 1.0),
                (layer.running_mean, -1.0, 1.0),
                (layer.running_var, 0.5, 2.0),
            ):
                assert value is not None
                nn.init.uniform_(value, low, high)
    return model.eval().double()


@torch.no_grad()
def test_the_logits_are_the_same() -> None:
    model = busy_teacher()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    plain = without_batch_norm(model).double().eval()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    expected = model(images)
    assert expected.std() > 0.01
    # stored in float32
    torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-5)


def test_the_file_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = busy_teacher().float()
    monkeypatch.setattr(benchmarks.studies.fuse_batch_norms, "teacher", lambda: model)
    main([str(tmp_path / "plain.safetensors")])
    images = torch.randn(2, 3, 32, 32)
    loaded = load_teacher("cifar_vgg16", weights=tmp_path / "plain.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arguments", [[], ["a.pt"], ["a.safetensors", "b.safetensors"]])
def test_anything_but_one_safetensors_file_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"expected the name of one \.safetensors file"):
        main(arguments)
