"""CIFAR-size models, built from timm's own classes and registered with timm when this module is imported.

Every name works with ``timm.create_model(name, num_classes=..., in_chans=..., drop_rate=...)``, including
``features_only=True`` and ``local-dir:`` folders. Only ``digits_vgg7_bn`` has pretrained weights, which
ship with the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from timm.layers import ClassifierHead
from timm.models import (
    VGG,
    EfficientNet,
    ResNet,
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._efficientnet_builder import decode_arch_def
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)

CIFAR10_STD = (0.2470, 0.2435, 0.2616)

# Of the first 1,197 of scikit-learn's handwritten digits, stored as bytes and scaled to [0, 1].
DIGITS_MEAN = (0.3064,)

DIGITS_STD = (0.3753,)


# As in timm.models.vgg: the width of a 3x3 convolution, or "M" for a 2x2 max pool.
VGGConfig: TypeAlias = list[int | str]


VGG16: VGGConfig = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]

VGG16_HALF: VGGConfig = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 256, 256, 256, "M", 256, 256, 256, "M"]

VGG8: VGGConfig = [32, 32, "M", 64, 64, "M", 128, 128, "M"]

VGG8_HALF: VGGConfig = [32, 32, "M", 32, 32, "M", 64, 64, "M"]


# Table 2 of the article with stride 1 in the 24-channel stage: ends at 32, 32, 16, 8, 8, 4 and 4 pixels.
MOBILENETV2 = [
    ["ds_r1_k3_s1_c16"],
    ["ir_r2_k3_s1_e6_c24"],
    ["ir_r3_k3_s2_e6_c32"],
    ["ir_r4_k3_s2_e6_c64"],
    ["ir_r3_k3_s1_e6_c96"],
    ["ir_r3_k3_s2_e6_c160"],
    ["ir_r1_k3_s1_e6_c320"],
]


def _placement(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}


class HiddenHead(ClassifierHead):
    """timm's head with a hidden layer, and no activation: pool, linear, batch norm perhaps, dropout, linear.

    Maps ``(B, in_features, H, W)`` become logits ``(B, num_classes)``.

    Source: the published code of arXiv 2012.04915 (https://github.com/zju-vipa/NetGraft, ``network/vgg_block.py``).

    Args:
        in_features: Width of the maps.
        hidden: Width of the hidden layer.
        num_classes: Number of logits; 0 for what the last layer would take in.
        norm: Whether a batch norm follows the hidden layer.
        pool_type: To one value a channel, as timm names it.
        drop_rate: In front of the last layer.
        placement: ``device`` and ``dtype``.

    Raises:
        ValueError: The pool leaves more than one value a channel.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        num_classes: int,
        *,
        norm: bool = False,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        **placement: Any,
    ) -> None:
        super().__init__(hidden, num_classes, pool_type=pool_type, drop_rate=drop_rate, **placement)
        self._check_pool()
        self.hidden = nn.Linear(in_features, hidden, **placement)
        self.norm: nn.Module = nn.BatchNorm1d(hidden, **placement) if norm else nn.Identity()

    def _check_pool(self) -> None:
        if not self.global_pool.pool_type or self.global_pool.feat_mult() != 1:
            raise ValueError(
                f"a hidden layer takes one value a channel, which the pool {self.global_pool.pool_type!r} doesn't "
                "leave; choose avg or max, or leave head_hidden out"
            )

    def reset(self, num_classes: int, pool_type: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Replace the last layer; arguments and errors as timm's and the class's own."""
        super().reset(num_classes, pool_type, *args, **kwargs)
        self._check_pool()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits, or to what the last layer takes in, ``(B, hidden)``."""
        x = self.drop(self.norm(self.hidden(self.global_pool(x))))
        return x if pre_logits else self.fc(x)


class SmallVGG(VGG):
    """timm's VGG with its classifier straight on the last pool: no 4096-wide layers.

    Images ``(B, in_chans, H, W)`` become logits ``(B, num_classes)``; H and W at least 2 to the number of pools. With
    ``head_hidden`` the classifier has a hidden layer of this width, ``head_norm`` with a batch norm behind it.
    """

    def __init__(
        self,
        cfg: VGGConfig,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        head_hidden: int | None = None,
        head_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        # The base builds its 4096-wide layers in any case; a hidden width of 1 keeps them small.
        super().__init__(
            cfg,
            num_classes,
            mlp_ratio=1 / 4096,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **kwargs,
        )
        self.add_module("pre_logits", nn.Identity())
        self.head_hidden, self.head_norm = head_hidden, head_norm
        self.head: ClassifierHead
        if head_hidden is None:
            self.head = ClassifierHead(
                self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **_placement(kwargs)
            )
        else:
            self.head = HiddenHead(
                self.num_features,
                head_hidden,
                num_classes,
                norm=head_norm,
                pool_type=global_pool,
                drop_rate=drop_rate,
                **_placement(kwargs),
            )
        self.head_hidden_size = self.head.num_features
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)


class SmallResNet(ResNet):
    """timm's ResNet with a 3x3 stride-1 stem, no stem pooling, any first width and any number of stages.

    Images ``(B, in_chans, H, W)`` become logits ``(B, num_classes)``.
    """

    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        layers: tuple[int, ...],
        channels: tuple[int, ...],
        in_chans: int = 3,
        **kwargs: Any,
    ) -> None:
        # Only the deep stem lets the base start at a width other than 64; its convolutions are replaced here.
        block: Any = BasicBlock
        super().__init__(
            block,
            layers,
            channels=channels,
            in_chans=in_chans,
            stem_type="deep",
            stem_width=channels[0] // 2,
            **kwargs,
        )
        stem = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **_placement(kwargs))
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", stem)
        self.add_module("maxpool", nn.Identity())
        self.stage_names: tuple[str, ...] = tuple(info["module"] for info in self.feature_info[1:])
        self.feature_info[0]["reduction"] = 1
        for info in self.feature_info[1:]:
            info["reduction"] //= 4

    def _stage(self, name: str, x: Tensor) -> Tensor:
        stage = getattr(self, name)
        return checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to the last stage's maps ``(B, num_features, H / r, W / r)``."""
        x = self.act1(self.bn1(self.conv1(x)))
        for name in self.stage_names:
            x = self._stage(name, x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the chosen entries of ``feature_info``, after the last maps unless ``intermediates_only``.

        There is no last norm, so ``norm`` changes nothing.

        Raises:
            AssertionError: ``output_fmt`` is not NCHW; timm's own models raise it too.
        """
        assert output_fmt == "NCHW", f"output_fmt must be NCHW, not {output_fmt}"
        chosen, last = feature_take_indices(len(self.feature_info), indices)
        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in chosen else []
        for index, name in enumerate(self.stage_names[:last] if stop_early else self.stage_names, start=1):
            x = self._stage(name, x)
            if index in chosen:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last chosen entry of ``feature_info``, and the head with them."""
        chosen, last = feature_take_indices(len(self.feature_info), indices)
        dropped = self.stage_names[last:]
        for name in dropped:
            delattr(self, name)
        self.stage_names = self.stage_names[:last]
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or dropped:
            self.reset_classifier(0, "")
        return chosen


class SmallMobileNet(EfficientNet):
    """timm's EfficientNet with a stride-1 stem.

    Images ``(B, in_chans, H, W)`` become logits ``(B, num_classes)``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv_stem.stride = (1, 1)
        for info in self.feature_info:
            info["reduction"] //= 2


def _cfg(first_conv: str, classifier: str, pool: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 32, 32),
        "pool_size": (pool, pool),
        "num_classes": 10,
        "mean": CIFAR10_MEAN,
        "std": CIFAR10_STD,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
        **kwargs,
    }


def _vgg_cfg(**kwargs: Any) -> dict[str, Any]:
    return _cfg("features.0", "head.fc", pool=1, **kwargs)


def _digits_cfg(**kwargs: Any) -> dict[str, Any]:
    return _vgg_cfg(input_size=(1, 8, 8), mean=DIGITS_MEAN, std=DIGITS_STD, **kwargs)


# register_model reads a model's entry from the variable of this name.
default_cfgs = generate_default_cfgs(
    {
        "cifar_vgg16": _vgg_cfg(),
        "cifar_vgg16_half": _vgg_cfg(),
        "cifar_vgg16_head512": _vgg_cfg(),
        "cifar_vgg16_half_head512": _vgg_cfg(),
        "cifar_vgg16_bn": _vgg_cfg(),
        "cifar_vgg16_bn_half": _vgg_cfg(),
        "cifar_vgg16_bn_head512": _vgg_cfg(),
        "cifar_vgg16_bn_half_head512": _vgg_cfg(),
        # ships with the package; README.md beside this file says how it was trained
        "digits_vgg7_bn": _digits_cfg(file=str(Path(__file__).parent / "digits_vgg7_bn.safetensors")),
        "digits_vgg7_bn_half": _digits_cfg(),
        "cifar_resnet8": _cfg("conv1", "fc", pool=8),
        "cifar_resnet20": _cfg("conv1", "fc", pool=8),
        "cifar_resnet32": _cfg("conv1", "fc", pool=8),
        "cifar_resnet56": _cfg("conv1", "fc", pool=8),
        "cifar_resnet110": _cfg("conv1", "fc", pool=8),
        "cifar_resnet18": _cfg("conv1", "fc", pool=4),
        "cifar_resnet34": _cfg("conv1", "fc", pool=4),
        "cifar_mobilenetv2": _cfg("conv_stem", "classifier", pool=4),
    }
)


def _vgg(variant: str, pretrained: bool, layout: VGGConfig, **kwargs: Any) -> SmallVGG:
    taps = layout.count("M") + 1
    feature_cfg = {"flatten_sequential": True, "out_indices": tuple(range(taps))}
    return build_model_with_cfg(
        SmallVGG,
        variant,
        pretrained,
        model_cfg=layout,
        feature_cfg=feature_cfg,
        **kwargs,
    )


_TEACHER_HEAD = {"head_hidden": 512, "head_norm": True}

_STUDENT_HEAD = {"head_hidden": 512}


def _resnet(
    variant: str, pretrained: bool, layers: tuple[int, ...], channels: tuple[int, ...], **kwargs: Any
) -> SmallResNet:
    feature_cfg = {"out_indices": tuple(range(len(channels) + 1))}
    return build_model_with_cfg(
        SmallResNet, variant, pretrained, feature_cfg=feature_cfg, layers=layers, channels=channels, **kwargs
    )


def _he_resnet(variant: str, pretrained: bool, blocks: int, **kwargs: Any) -> SmallResNet:
    return _resnet(variant, pretrained, (blocks,) * 3, (16, 32, 64), **kwargs)


@register_model
def cifar_vgg16(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """VGG-16 (arXiv 1409.1556, column D) for 32x32 images: 13 convolutions, one linear, no batch norm."""
    return _vgg("cifar_vgg16", pretrained, VGG16, **kwargs)


@register_model
def cifar_vgg16_half(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``cifar_vgg16`` with the last two stages 256 wide: the student of arXiv 2012.04915."""
    return _vgg("cifar_vgg16_half", pretrained, VGG16_HALF, **kwargs)


@register_model
def cifar_vgg16_bn(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``cifar_vgg16`` with batch norm behind each convolution; 14.73 M parameters."""
    return _vgg("cifar_vgg16_bn", pretrained, VGG16, **{"norm_layer": nn.BatchNorm2d, **kwargs})


@register_model
def cifar_vgg16_bn_half(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``cifar_vgg16_bn`` with the last two stages 256 wide."""
    return _vgg("cifar_vgg16_bn_half", pretrained, VGG16_HALF, **{"norm_layer": nn.BatchNorm2d, **kwargs})


@register_model
def cifar_vgg16_head512(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``cifar_vgg16`` with the head of the teacher in the published code of arXiv 2012.04915.

    A linear layer, 512 wide, a batch norm and another linear layer behind the last pool.
    """
    return _vgg("cifar_vgg16_head512", pretrained, VGG16, **{**_TEACHER_HEAD, **kwargs})


@register_model
def cifar_vgg16_half_head512(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``cifar_vgg16_half`` with the head of the student there: two linear layers, 512 wide between them."""
    return _vgg("cifar_vgg16_half_head512", pretrained, VGG16_HALF, **{**_STUDENT_HEAD, **kwargs})


@register_model
def cifar_vgg16_bn_head512(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``cifar_vgg16_head512`` with batch norm behind each convolution."""
    norm = {"norm_layer": nn.BatchNorm2d}
    return _vgg("cifar_vgg16_bn_head512", pretrained, VGG16, **{**norm, **_TEACHER_HEAD, **kwargs})


@register_model
def cifar_vgg16_bn_half_head512(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``cifar_vgg16_half_head512`` with batch norm behind each convolution."""
    norm = {"norm_layer": nn.BatchNorm2d}
    return _vgg("cifar_vgg16_bn_half_head512", pretrained, VGG16_HALF, **{**norm, **_STUDENT_HEAD, **kwargs})


@register_model
def digits_vgg7_bn(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """Six 3x3 convolutions with batch norm in three stages, one linear layer; 8x8 grey images."""
    return _vgg("digits_vgg7_bn", pretrained, VGG8, **{"norm_layer": nn.BatchNorm2d, **kwargs})


@register_model
def digits_vgg7_bn_half(pretrained: bool = False, **kwargs: Any) -> SmallVGG:
    """``digits_vgg7_bn`` with the same first stage and the others half as wide."""
    return _vgg("digits_vgg7_bn_half", pretrained, VGG8_HALF, **{"norm_layer": nn.BatchNorm2d, **kwargs})


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-8 of the family of He et al. (arXiv 1512.03385, section 4.2), n = 1.

    Stages of 16, 32 and 64 channels. Where a stage changes the width, the shortcut is a 1x1 convolution
    (option B); the article's CIFAR networks pad with zeros (option A) and have 2,752 parameters fewer.
    """
    return _he_resnet("cifar_resnet8", pretrained, 1, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-20: as ``cifar_resnet8`` (shortcuts are 1x1 convolutions, option B) with n = 3."""
    return _he_resnet("cifar_resnet20", pretrained, 3, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-32: as ``cifar_resnet8`` (shortcuts are 1x1 convolutions, option B) with n = 5."""
    return _he_resnet("cifar_resnet32", pretrained, 5, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-56: as ``cifar_resnet8`` (shortcuts are 1x1 convolutions, option B) with n = 9."""
    return _he_resnet("cifar_resnet56", pretrained, 9, **kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-110: as ``cifar_resnet8`` (shortcuts are 1x1 convolutions, option B) with n = 18."""
    return _he_resnet("cifar_resnet110", pretrained, 18, **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ImageNet's ResNet-18 (arXiv 1512.03385, table 1) with a 3x3 stride-1 stem and no stem pooling."""
    return _resnet("cifar_resnet18", pretrained, (2, 2, 2, 2), (64, 128, 256, 512), **kwargs)


@register_model
def cifar_resnet34(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ImageNet's ResNet-34 (arXiv 1512.03385, table 1) with a 3x3 stride-1 stem and no stem pooling."""
    return _resnet("cifar_resnet34", pretrained, (3, 4, 6, 3), (64, 128, 256, 512), **kwargs)


@register_model
def cifar_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> SmallMobileNet:
    """MobileNetV2 (arXiv 1801.04381, table 2) with stride 1 in the stem and in the 24-channel stage."""
    return build_model_with_cfg(
        SmallMobileNet,
        "cifar_mobilenetv2",
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
        **{"block_args": decode_arch_def(MOBILENETV2), "act_layer": nn.ReLU6, **kwargs},
    )
