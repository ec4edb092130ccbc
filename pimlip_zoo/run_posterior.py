"""The posterior of a run: kept beside its weights, or fitted to the data that the run was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.record import split_of_run
from pimlip_zoo.labelling.committee import CommitteeUncertainty
from pimlip_zoo.labelling.uncertainty import Posterior, fit_posterior, load_posterior, save_posterior
from pimlip_zoo.training.checkpoint import baseline_of, checkpoint_path, load_potential
from pimlip_zoo.weak_labels.pool import corrections

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


def uncertainty_function(
    runs: Sequence[Path], calculator: Calculator, *, trust: bool = False
) -> Callable[[Atoms], NDArray[np.float64]]:
    """(N,) eV/Å of the forces of a structure: by the posterior of one run, or the spread of several.

    The spread of run folders is calibrated on the validation structures of the first; that of checkpoints and native
    models is taken as it is.

    Args:
        runs: whose calculator it is.
        calculator: of these runs.
        trust: call the function that a run names as its cheap calculator.

    Raises:
        InputError: when the posterior has to be fitted and cannot be.
    """
    source: Posterior | CommitteeUncertainty
    if any(Path(run).is_file() for run in runs) and len(runs) > 1:

        def spread(atoms: Atoms) -> NDArray[np.float64]:
            members = calculator.calculators[-1] if hasattr(calculator, "calculators") else calculator
            found: NDArray[np.float64] = members.get_property("forces_std", atoms)
            return found

        return spread
    from pimlip_zoo.deploy.ase import SkinnedNeighbours

    if len(runs) > 1:
        members = [load_potential(run, difference=True) for run in runs]
        source, potential = CommitteeUncertainty(members, _data_of(runs[0], trust=trust)[1]), members[0]
    else:
        source = posterior_of(runs[0], trust=trust)
        potential = source.layer.potential
    neighbours = SkinnedNeighbours(potential.cutoff, 0.0)
    return lambda atoms: source.forces_uncertainty(neighbours.graph(atoms, potential.species))


def posterior_of(run: str | Path, *, trust: bool = False) -> Posterior:
    """The posterior of a run's best weights: the one that is kept beside them, or fitted now and kept.

    Args:
        run: run folder; a checkpoint alone only when its posterior is beside it.
        trust: call the function that the run names as its cheap calculator.

    Raises:
        InputError: when it has to be fitted and the data of the run are not known.
    """
    checkpoint = checkpoint_path(run)
    potential = load_potential(run, difference=True)
    kept = load_posterior(potential, checkpoint)
    if kept is not None:
        return kept
    train, valid = _data_of(run, trust=trust)
    posterior = fit_posterior(potential, train, valid)
    save_posterior(posterior, checkpoint)
    return posterior


def _data_of(run: str | Path, *, trust: bool) -> tuple[Sequence[Frame], Sequence[Frame]]:
    """Training and validation structures of a run, with the labels that it learnt."""
    if not (Path(run) / "config.yaml").exists():
        raise InputError(
            "the data that it was trained on are not known",
            file=run,
            hint="give the run folder, not a checkpoint",
        )
    train, valid = split_of_run(Path(run))
    baseline = baseline_of(run)
    if baseline is None:
        return train, valid
    return corrections(list(train), baseline, trust=trust), corrections(list(valid), baseline, trust=trust)
