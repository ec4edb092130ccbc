"""Options that several commands have."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Ensemble(str, Enum):
    """What is held constant."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


class Precision(str, Enum):
    """Of a model inside; what goes in and comes out is float64 always."""

    float32 = "float32"
    float64 = "float64"


Level = Annotated[
    str | None,
    typer.Option(
        help="Of a run on several levels of theory: which; that of the reference labels if not given."
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Call the function that the run names as its cheap calculator.")
]
