"""The ``binarize`` command. One file per sub-command; torch is imported when one runs."""

from __future__ import annotations

from binarize.cli.app import main

__all__ = ["main"]
