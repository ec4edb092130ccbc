"""Reads exported files back, whichever kind they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.native.archive import SUFFIX
from pimlip_zoo.deploy.torchscript import load_torchscript


def load_exported(
    path: str | os.PathLike[str],
) -> tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, str]]:
    """The function of an exported file, with the inputs of ``pair_style pimlip``, and its metadata.

    Raises:
        InputError: when it cannot be read.
    """
    metadata = read_metadata(path)
    if Path(path).suffix == ".pt2":
        from pimlip_zoo.deploy.aot import load_compiled

        return load_compiled(path), metadata
    if Path(path).suffix == SUFFIX:
        from pimlip_zoo.deploy.native.export import pair_style_function
        from pimlip_zoo.deploy.native.library import NativeModel

        return pair_style_function(NativeModel(path)), metadata
    return load_torchscript(path)
