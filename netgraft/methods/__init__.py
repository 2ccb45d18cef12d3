"""Distillation methods, one a file: frozen dataclasses of hyper-parameters that make plans."""
