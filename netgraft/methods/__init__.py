"""Distillation methods, one a file: frozen dataclasses of hyper-parameters that turn a pairing into a plan."""
