"""Connectors between a student's and a teacher's maps at one cut, trained with the student and then discarded."""

from __future__ import annotations

from torch import Tensor, nn

from netgraft.grafting.adapters import check_widths


class Embedding(nn.Sequential):
    """Global average of maps (B, C, H, W) -> (B, C)."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Regressor(nn.Conv2d):
    """A 1x1 convolution with bias (B, in, H, W) -> (B, out, H, W): FitNets' convolutional regressor at equal sizes.

    It doesn't end in a ReLU, so that it can match responses of both signs.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, section 2.2.

    Args:
        in_channels: Width of the student's maps.
        out_channels: Width of the teacher's.

    Raises:
        ValueError: A width is no integer of at least 1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        check_widths(in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel_size=1)


class NormalizedRegressor(nn.Sequential):
    """A 1x1 convolution with bias, a batch norm and a ReLU (B, in, H, W) -> (B, out, H, W).

    Like every batch norm, in training it needs more than one position in batch and map together.

    Source: RepDistiller's regressor of hints (Tian, Krishnan and Isola, "Contrastive Representation Distillation",
    ICLR 2020, its program), at equal sizes.

    Args:
        in_channels: Width of the student's maps.
        out_channels: Width of the teacher's.

    Raises:
        ValueError: A width is no integer of at least 1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        check_widths(in_channels, out_channels)
        super().__init__(nn.Conv2d(in_channels, out_channels, kernel_size=1), nn.BatchNorm2d(out_channels), nn.ReLU())


class BoundaryConnector(nn.Sequential):
    """A bias-free 1x1 convolution and a batch norm (B, in, H, W) -> (B, out, H, W).

    Like every batch norm, in training it needs more than one position in batch and map together.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019.

    Args:
        in_channels: Width of the student's maps.
        out_channels: Width of the teacher's.

    Raises:
        ValueError: A width is no integer of at least 1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        check_widths(in_channels, out_channels)
        super().__init__(nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False), nn.BatchNorm2d(out_channels))


class Translator(nn.Sequential):
    """Three 3x3 convolutions (B, in, H, W) -> (B, m, H, W) from a student's maps to its factor.

    Each is followed by a batch norm and a leaky ReLU of slope 0.1. Widths: in -> in -> m -> m.

    Source: Kim, Park and Kwak, NeurIPS 2018, section 3.2. The authors' program has no batch norms, RepDistiller's has.

    Args:
        in_channels: Width of the student's maps.
        factor_channels: Width m of the factor.
        norm: Whether there are batch norms.

    Raises:
        ValueError: A width is no integer of at least 1.
    """

    def __init__(self, in_channels: int, factor_channels: int, *, norm: bool = True) -> None:
        check_widths(in_channels, factor_channels)
        super().__init__(
            _layer(nn.Conv2d, in_channels, in_channels, norm),
            _layer(nn.Conv2d, in_channels, factor_channels, norm),
            _layer(nn.Conv2d, factor_channels, factor_channels, norm),
        )


class Paraphraser(nn.Module):
    """An autoencoder of a teacher's maps (B, C, H, W) whose code is the factor to transfer, (B, m, H, W).

    The encoder has three 3x3 convolutions of widths C -> C -> m -> m, the decoder three transposed ones of widths
    m -> m -> C -> C, each followed by a batch norm and a leaky ReLU of slope 0.1. It is trained to reconstruct, before
    the student is trained.

    Source: Kim, Park and Kwak, NeurIPS 2018, section 3.1. The authors' program,
    https://github.com/Jangho-Kim/Factor-Transfer-pytorch, has no batch norms, nor has RepDistiller's.

    Args:
        channels: Width C of the teacher's maps.
        rate: Paraphrase rate k; the factor has ``m = round(C * k)`` channels, at least 1.
        norm: Whether there are batch norms.

    Raises:
        ValueError: The width is no integer of at least 1, or the rate no finite number above 0.
    """

    def __init__(self, channels: int, rate: float = 0.5, *, norm: bool = True) -> None:
        check_widths(channels)
        if not 0 < rate < float("inf"):
            raise ValueError(f"rate must be a finite number above 0, not {rate!r}")
        super().__init__()
        self.factor_channels = max(1, round(channels * rate))
        self.encoder = Translator(channels, self.factor_channels, norm=norm)
        self.decoder = nn.Sequential(
            _layer(nn.ConvTranspose2d, self.factor_channels, self.factor_channels, norm),
            _layer(nn.ConvTranspose2d, self.factor_channels, channels, norm),
            _layer(nn.ConvTranspose2d, channels, channels, norm),
        )

    def encode(self, maps: Tensor) -> Tensor:
        """Return the factor (B, m, H, W) of maps (B, C, H, W)."""
        return self.encoder(maps)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the reconstruction (B, C, H, W) of maps (B, C, H, W)."""
        return self.decoder(self.encode(maps))


def _layer(
    convolution: type[nn.Conv2d | nn.ConvTranspose2d], in_channels: int, out_channels: int, norm: bool
) -> nn.Sequential:
    # a batch norm's shift makes a bias of the convolution superfluous
    layers = [convolution(in_channels, out_channels, kernel_size=3, padding=1, bias=not norm)]
    norms = [nn.BatchNorm2d(out_channels)] if norm else []
    return nn.Sequential(*layers, *norms, nn.LeakyReLU(0.1))
