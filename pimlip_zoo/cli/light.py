"""Imports that commands without torch can do without."""

from __future__ import annotations

import importlib
import sys


def import_without_torch(name: str) -> None:
    """Import a package that looks for torch, and works without it, as if there were none: torch takes seconds.

    For commands that own their process and hand it arrays only; where torch is there already, nothing is hidden.

    Args:
        name: of the package, such as vesin.
    """
    if name in sys.modules or "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # the import system's own way to say: not there
    try:
        importlib.import_module(name)
    finally:
        del sys.modules["torch"]
