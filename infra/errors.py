"""Errors that the command line understands."""

from infra.bundle.errors import InputError, nearest

__all__ = ["InputError", "RunError", "nearest"]


class RunError(RuntimeError):
    """Say that a run failed though its input was right; the command line exits with 1."""
