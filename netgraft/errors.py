"""The three ways in which work ends early; a command line turns each into an exit code."""

from __future__ import annotations


class RequestError(ValueError):
    """The request was wrong: says what was expected, what came and what to do (exit code 2)."""


class RunError(RuntimeError):
    """A correct request failed while running, such as a loss that became NaN (exit code 1)."""


class InterruptedRunError(RuntimeError):
    """The run was asked to stop and has saved itself (exit code 130)."""
