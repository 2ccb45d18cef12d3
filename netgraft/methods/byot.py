"""Be your own teacher (Zhang et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.grafting.pairing import Pairing
from netgraft.losses import Hint, SoftTargets
from netgraft.methods.baseline import THE_DEFAULTS, Baseline, Objective
from netgraft.methods.connectors import Embedding
from netgraft.methods.features import behind, ends, to_maps
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import Feature, StepOutputs


class ShallowEmbedding(nn.Sequential):
    """Shallow maps (B, C, H, W) -> an embedding of the deepest width (B, D).

    Args:
        channels: Width C of the shallow maps.
        deepest: Width D of the deepest ones.
    """

    def __init__(self, channels: int, deepest: int) -> None:
        super().__init__(
            nn.Conv2d(channels, deepest, kernel_size=1, bias=False),
            nn.BatchNorm2d(deepest),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


@dataclass(frozen=True)
class BYOT(Baseline):
    """Be your own teacher; see ``about``.

    ``CE(deepest) + sum_i (1 - alpha) CE_i + alpha KL_i + lambda / 2 ||F_i - F_deepest||^2``, embeddings ``F`` being
    averages over the maps. KL is of softened probabilities and, other than elsewhere, not multiplied by ``tau^2``.

    Source: Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv 1905.08094, equations 3 to 6, with ``alpha`` and
    ``tau`` of the first author's program, https://github.com/ArchipLab-LinfengZhang/pytorch-self-distillation-final,
    and ``lambda`` of its later version. That one takes the distance itself, over the whole batch, where the article
    and this take its square.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Classifiers at every block end learn from classes and from the deepest one; they are discarded at "
        "the end.",
        category="self",
        matches="logits and features",
        phases="1",
        labels="classes",
        article="Zhang et al., ICCV 2019, arXiv 1905.08094",
        year=2019,
        teacher=False,
    )
    presets: ClassVar[Mapping[str, Preset]] = {"default": THE_DEFAULTS}

    soft_weight: float = hyperparameter(
        0.3, "of a shallow classifier: divergence from the deepest, instead of classes (alpha)"
    )
    feature_weight: float = hyperparameter(0.03, "of a shallow embedding: distance from the deepest (lambda)")
    temperature: float = hyperparameter(3.0, "what logits are divided by in front of the softmax")

    def __post_init__(self) -> None:
        super().__post_init__()
        with checked():
            SoftTargets(self.temperature)

    def objective(self, pairing: Pairing) -> Objective:
        """Return embeddings and logits of every block end but the last, and the average of the last maps.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare.
        """
        *shallow, last = ends(pairing)
        width = pairing.widths[last][1]
        classes = _classes(pairing)

        def feature(number: int, connector: nn.Module) -> Feature:
            cut = pairing.student.cuts[number]
            return Feature(number, behind(to_maps(cut, cut.size), connector))

        features = [feature(last, Embedding())]
        for number in shallow:
            embedding = ShallowEmbedding(pairing.widths[number][1], width)
            features.append(feature(number, embedding))
            features.append(feature(number, nn.Sequential(embedding, nn.Linear(width, classes))))
        return Objective(self._terms, tuple(features))

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        deepest, *shallow = batch.features
        output = batch.output.float()
        terms = {"classes": F.cross_entropy(output, batch.classes)}
        soft, distance = SoftTargets(self.temperature), Hint("sample")
        for place, (embedding, logits) in enumerate(zip(shallow[::2], shallow[1::2], strict=True), 1):
            terms[f"classes {place}"] = (1 - self.soft_weight) * F.cross_entropy(logits.float(), batch.classes)
            terms[f"soft {place}"] = self.soft_weight / self.temperature**2 * soft(logits, output.detach())
            terms[f"features {place}"] = self.feature_weight * distance(embedding, deepest.detach())
        return terms


def _classes(pairing: Pairing) -> int:
    """Outputs of the student's last linear layer, or of the last 1x1 convolution that takes its place."""
    layers = [m for m in pairing.student[-1].modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    last = layers[-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels
