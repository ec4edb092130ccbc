"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Mapping
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


def check_ensemble(ensemble: str, given: Mapping[str, tuple[object, str]]) -> None:
    """Refuse options that belong to another ensemble, which they would not make the one that is run.

    Args:
        ensemble: that is run.
        given: by option its value, None where it is not given, and the ensemble that has it.

    Raises:
        InputError: naming that ensemble.
    """
    from pimlip_zoo.errors import InputError

    for option, (value, owner) in given.items():
        if value is not None and owner != ensemble:
            raise InputError(f"{ensemble} has none", key=option, hint=f"--ensemble {owner}, or leave it out")
