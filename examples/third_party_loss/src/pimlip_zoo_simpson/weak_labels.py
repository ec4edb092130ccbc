"""A calculator and a recipe: springs that know nothing but distances, and a start from what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from pydantic import PositiveFloat, PositiveInt

from pimlip_zoo.weak_labels import CalculatorOptions, Recipe, StageOptions, calculator, recipe

if TYPE_CHECKING:
    from ase import Atoms

    from pimlip_zoo.experiment import Outcome
    from pimlip_zoo.experiment.stages import Run


class SpringOptions(CalculatorOptions):
    """Options of the springs."""

    stiffness: PositiveFloat = 1.0
    """eV/Å², of the spring between two neighbours."""
    length: PositiveFloat = 1.5
    """Å, where they pull as much as they push."""


class Springs(Calculator):
    """A spring between any two atoms of a molecule that weakens with their distance."""

    implemented_properties = ("energy", "forces")

    def __init__(self, options: SpringOptions) -> None:
        super().__init__()
        self.options = options

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: tuple[str, ...] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Energy (eV) ``Σ k (r - l)² e^{-r/l} / 2`` over pairs, and its forces (eV/Å)."""
        super().calculate(atoms, properties, system_changes)
        k, length = self.options.stiffness, self.options.length
        positions = self.atoms.get_positions()
        vectors = positions[None] - positions[:, None]
        r = np.linalg.norm(vectors, axis=2) + np.eye(len(positions))
        x, decay = r - length, np.exp(-r / length) * (1.0 - np.eye(len(positions)))
        slope = k * decay * (x - 0.5 * x**2 / length)
        self.results["energy"] = float(0.25 * k * (x**2 * decay).sum())
        self.results["forces"] = ((slope / r)[:, :, None] * vectors).sum(axis=1)


@calculator("springs", package="pimlip-zoo-simpson", options=SpringOptions, charged=False)
def springs(**options: float) -> Calculator:
    """Springs between the atoms of a molecule: the cheapest physics there is."""
    return Springs(SpringOptions(**options))


class WarmStartOptions(StageOptions):
    """Options of the recipe, beside the length and the learning rate of its stage."""

    steps: PositiveInt = 500
    """Of the stage before the run."""
    validation: PositiveInt = 5
    """Structures of the pool that the stage is validated on."""


@recipe("warm_start", options=WarmStartOptions)
class WarmStart(Recipe[WarmStartOptions]):
    """Learn the cheap forces of sampled structures first, and go on from there; cheap energies are left out."""

    def train(self, run: Run) -> Outcome:
        """The stage ``warm``, then the run."""
        if not run.begun:
            held = self.options.validation
            pool = [replace(frame, energy=None) for frame in run.pool(shift=False)]
            run.scale_to(pool)
            samples = run.samples(pool)
            config = run.stage_config(self.options, len(samples) - held)
            stage = replace(
                run.experiment,
                config=config,
                labels=("forces",),
                train=samples[held:],
                valid=samples[:held],
                weak=(),
            )
            outcome = run.stage("warm", stage)
            if outcome.signal is not None:
                return outcome
            run.take_weights("warm")
        return run.train()

    def steps_before(self) -> int:
        """Those of the stage."""
        return self.options.steps
