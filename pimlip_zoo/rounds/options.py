"""What ``rounds.yaml`` says, and the training that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pimlip_zoo.config import RunConfig, fields_at, load_config
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.labelling.acquisition import ACQUISITIONS
from pimlip_zoo.yaml_file import dotted, read_yaml

_Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SamplingOptions(_Section):
    """Where structures come from."""

    pool: str | None = None
    """DATA of structures to choose from, the same in all rounds."""
    start: str | None = None
    """DATA of structures where dynamics start; what these find is chosen from, together with a pool if there is one."""
    calculator: str = "gfn2"
    """The cheap level, of the dynamics of the first round; later ones use the potential of the round before."""
    structures: int = Field(200, gt=0)
    """Sampled in a round."""
    temperatures: tuple[_Limit, ...] = Field((300.0, 600.0, 900.0), min_length=1)
    """K. The first round has all; the potential begins with the lowest and gets one more in each round."""
    timestep: float = Field(0.5, gt=0, allow_inf_nan=False)
    stride: int = Field(100, gt=0)
    """Steps between two structures that are kept: 50 fs, so that 200 structures are more than one vibration."""
    strain: float = Field(0.0, ge=0, lt=0.5)
    """Dynamics of crystals start in cells with strains of up to this much in each component."""


class Labels(_Section):
    """Who computes them."""

    calculator: str
    """As ``label --calculator``."""
    level: str | None = None
    workers: int = Field(1, gt=0, le=1024)
    seconds: _Limit | None = None
    """Limit of a calculation."""
    memory: _Limit | None = None
    """MB, limit of a calculation."""


class Choosing(_Section):
    """How structures are chosen."""

    first: str | None = None
    """The acquisition of the first round; None: ``cluster`` for one molecule, else ``coverage``."""
    later: str = "mixed"
    """That of all others."""
    number: int = Field(20, gt=0)
    """In a round."""
    valid: int = Field(10, gt=0)
    """Structures that are labelled in the first round to choose the weights by; drawn at random."""


class Stop(_Section):
    """When it is enough; the first that is met."""

    rounds: int = Field(3, gt=0)
    labels: int | None = Field(None, gt=0)
    """Training structures."""
    forces: _Limit | None = None
    """eV/Å, root mean square error on the tests, or else on the validation structures."""
    uncertainty: _Limit | None = None
    """eV/Å, root mean square uncertainty of the forces in the pool of the round: what is left to be learnt there."""


class Rounds(_Section):
    """What ``rounds.yaml`` says."""

    out: Path = Path("rounds")
    sample: SamplingOptions
    label: Labels
    select: Choosing = Choosing()
    train: dict[str, Any] = {}
    """Options of the training, as in a configuration of ``train``."""
    test: str | None = None
    """DATA with labels."""
    stop: Stop = Stop()
    seed: int = Field(0, ge=0, lt=2**31)


def load_rounds(file: Path) -> Rounds:
    """Read the file.

    Raises:
        InputError: for a file that cannot be read, an unknown key or a value that is not possible.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError("is no table of options", file=file)
    try:
        rounds = Rounds.model_validate(content)
    except ValidationError as error:
        # What is misspelt is said before what is missing: often it is the same.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            *place, last = map(str, first["loc"])
            hint = did_you_mean(last, fields_at(Rounds, place))
            raise InputError("no such option", file=file, key=key, hint=hint) from error
        message = "is missing" if first["type"] == "missing" else first["msg"]
        raise InputError(message, file=file, key=key) from error
    if rounds.sample.pool is None and rounds.sample.start is None:
        raise InputError(
            "needs start or pool", file=file, key="sample", hint="start: molecule.xyz, or pool: DATA"
        )
    if rounds.sample.start is None and (idle := sorted(rounds.sample.model_fields_set - {"pool", "start"})):
        raise InputError(
            "is for sampled structures, and the pool has them",
            file=file,
            key=f"sample.{idle[0]}",
            hint="give start, too",
        )
    _check_owned(rounds, file)
    ACQUISITIONS.get(rounds.select.later, key="select.later")
    at_first = rounds.select.first
    if at_first is not None and ACQUISITIONS.get(at_first, key="select.first").needs_run:
        raise InputError(f"{at_first} needs a trained potential", file=file, key="select.first")
    training_config(rounds, "given", "given", 1)  # what the training does not know is said now
    return rounds


_OWNED = {
    "data.train": "the structures of the training are those that were labelled",
    "data.valid": "validation structures are drawn in the first round: select.valid",
    "data.valid_fraction": "validation structures are drawn in the first round: select.valid",
    "data.max_valid": "validation structures are drawn in the first round: select.valid",
    "data.test": "give test beside train",
    "seed": "give seed beside train",
}
"""Options of the training that the rounds set, and what to do instead."""


def _check_owned(rounds: Rounds, file: Path) -> None:
    for key in dotted(rounds.train):
        if key in _OWNED:
            raise InputError("is set by the rounds", file=file, key=f"train.{key}", hint=_OWNED[key])


def training_config(rounds: Rounds, train: str, valid: str, number: int) -> RunConfig:
    """The configuration of a round's training, on these labels.

    Raises:
        InputError: for an option that the training does not have.
    """
    settings = [("seed", rounds.seed + number), ("data.energy_references", "least_squares")]
    flat = [*settings, *dotted(rounds.train).items(), ("data.train", train), ("data.valid", valid)]
    return load_config(None, flat)


def lasting_options(rounds: Rounds) -> dict[str, Any]:
    """The options that may not change on the way."""
    passing: Any = {"out": True, "stop": True, "label": {"workers", "seconds", "memory"}}
    return rounds.model_dump(mode="json", exclude=passing)
