"""Few-shot knowledge distillation for timm image classifiers: network grafting, and baselines under one protocol.

Names are imported on first use, so that ``import netgraft`` costs nothing; ``__init__.pyi`` beside this file lists
them. ``import netgraft.zoo`` registers the CIFAR-size models with timm.
"""

import lazy_loader

__version__ = "0.2.0.dev0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
