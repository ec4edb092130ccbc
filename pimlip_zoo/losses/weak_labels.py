"""The options of weak labels."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

__all__ = ["PoolConfig", "Section", "WeakLabelsConfig"]


class Section(BaseModel):
    """A part of the configuration, which knows its options."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)


class PoolConfig(Section):
    """How structures around the training set are sampled."""

    structures: PositiveInt = 1500
    """How many are sampled and labelled."""
    method: Literal["md", "displaced", "both", "given"] = "md"
    """given: the structures of ``weak.unlabelled`` as they are, and displaced ones where these are too few."""
    temperatures: tuple[PositiveFloat, ...] = (300.0, 600.0, 900.0)
    """K, of the Langevin dynamics with the cheap calculator; structures are shared equally."""
    timestep: PositiveFloat = 0.5
    """fs."""
    stride: PositiveInt = 20
    """Steps between two structures that are kept."""
    friction: PositiveFloat = 0.02
    """1/fs."""
    amplitudes: tuple[PositiveFloat, ...] = (0.03, 0.08)
    """Å by component, of normal displacements."""
    max_force: PositiveFloat = 50.0
    """eV/Å: structures with a larger force on an atom are thrown away."""
    seed: int = Field(default=0, ge=0)
    """Of the sampling."""


class WeakLabelsConfig(Section):
    """Energies and forces from cheap physics."""

    method: Literal["pretrain", "second_head", "shared_head", "delta", "distill"] = "pretrain"
    """How they are used; docs/weak-supervision.md says when which helps."""
    calculator: str = "gfn2"
    """gfn2, gfn1, emt, ``run:RUN``, or ``MODULE:FACTORY``: a function that is imported and called, and returns an ASE
    calculator."""
    pool: PoolConfig = PoolConfig()
    """How the structures are sampled that are labelled."""
    steps: PositiveInt = 5000
    """Of a stage before the run: pre-training, or the difference model that teaches."""
    learning_rate: PositiveFloat | None = None
    """Of a stage before the run; None: the run's."""
    rate_after: float | None = Field(default=None, gt=0, le=1)
    """pretrain: factor of the learning rate in the run that follows. None: 1, or 0.1 where reference energies are the
    only labels, since a fast run on these forgets the forces that it was taught."""
    terms: Literal["after", "throughout"] = "after"
    """pretrain: whether the consistency losses begin with the reference labels or with the weak ones."""
    teachers: PositiveInt = 1
    """distill: difference models of different seeds, whose mean teaches."""
    agreement: PositiveFloat | None = None
    """distill: eV/Å, spread of the teachers' forces at which a structure counts half; None: all count the same."""
    iterations: PositiveInt = 1
    """distill: rounds of sampling; each after the first samples with the student of the one before."""
    weight: PositiveFloat = 1.0
    """second_head, shared_head: factor of the loss on weak labels."""
    batch_size: PositiveInt = 10
    """second_head, shared_head: weakly labelled structures in a step."""
    stress: bool | None = None
    """Learn the cheap level's stress of crystals, too, where it has one; None: where the run learns stress."""
    cache: str | None = None
    """Folder of labelled pools, found again by hash; None: ``$PIMLIP_ZOO_CACHE`` or the user's cache."""
