"""Ethanol in the gas phase: Langevin dynamics with GFN2-xTB, labelled with GFN2-xTB.

C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019), through tblite. Every split
has trajectories of its own, each with its own seed and its own starting torsion angles.

The same seed gives the same start and the same random forces, but not the same frames: the last bit of a
force depends on the machine, the libraries and even on how arrays happen to lie in memory, and dynamics
amplifies it to another trajectory within some picoseconds. What is reproduced is a sample of the same
ensembles. The label of a given geometry is reproducible everywhere to about 1e-8 eV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from packing import snap

from pimlip_zoo.datasets.builtin_format import PackedSet
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ase import Atoms

__all__ = [
    "DEFAULT_SEED",
    "PLAN",
    "SplitPlan",
    "dynamics",
    "gfn2_atom_energies",
    "label_gfn2",
    "make_ethanol",
]

DEFAULT_SEED = 2024

_TIMESTEP = 0.5  # fs
_FRICTION = 0.01  # 1/fs
_EQUILIBRATION = 2000.0  # fs
_INTERVAL = 50.0  # fs between frames
# Labels are converged further than dynamics needs: 1e-8 eV, and independent of the previous frame.
_LABEL_ACCURACY = 0.01
# Unpaired electrons of the ground states 2S, 3P, 3P.
_UNPAIRED = {"H": 1, "C": 2, "O": 2}


@dataclass(frozen=True)
class SplitPlan:
    """What a split is made of."""

    temperature: float
    """K."""
    frames: int
    """How many frames the split has, spread evenly over its trajectories."""
    trajectories: int = 2
    """How many independent trajectories they come from."""


PLAN = {
    "train": SplitPlan(300.0, 1000),
    "valid": SplitPlan(300.0, 200),
    "test_300K": SplitPlan(300.0, 200),
    "test_600K": SplitPlan(600.0, 200),
    "test_1200K": SplitPlan(1200.0, 200),
}


def make_ethanol(
    *,
    seed: int = DEFAULT_SEED,
    plan: dict[str, SplitPlan] | None = None,
    equilibration: float = _EQUILIBRATION,
    progress: Callable[[str, int, int], None] | None = None,
) -> PackedSet:
    """Run the trajectories and label their frames.

    Args:
        seed: each trajectory has its own generator, derived from this and the place of its split.
        plan: splits by name; by default those of the built-in set.
        equilibration: fs that are thrown away at the start of each trajectory.
        progress: called with the name of the split, frames done and frames in total.

    Raises:
        InputError: when tblite is not installed.
    """
    _calculator()
    plan = PLAN if plan is None else plan
    total = sum(split.frames for split in plan.values())
    done = 0
    splits: dict[str, list[Frame]] = {}
    for place, (name, split) in enumerate(plan.items()):
        frames: list[Frame] = []
        shares = np.diff(np.linspace(0, split.frames, split.trajectories + 1).astype(int))
        for trajectory, share in enumerate(shares):
            generator = np.random.default_rng([seed, place, trajectory])
            start = _start(generator)
            for time, atoms in dynamics(start, split.temperature, int(share), equilibration, generator):
                info = {
                    "config_type": f"md_{split.temperature:.0f}K",
                    "trajectory": f"{name}_{trajectory}",
                    "time_fs": time,
                }
                frames.append(label_gfn2(atoms, info))
                done += 1
                if progress is not None:
                    progress(name, done, total)
        # Shuffled, so that the first n frames are a fair sample of the split.
        order = np.random.default_rng([seed, place]).permutation(len(frames))
        splits[name] = [frames[i] for i in order]
    return PackedSet(splits, gfn2_atom_energies(_UNPAIRED), _provenance(seed, plan))


def label_gfn2(atoms: Atoms, info: dict[str, Any] | None = None) -> Frame:
    """Energy and forces of a neutral closed-shell molecule, from a fresh self-consistent calculation."""
    atoms = atoms.copy()
    atoms.positions = snap(atoms.positions - atoms.positions.mean(axis=0))
    atoms.calc = _calculator(accuracy=_LABEL_ACCURACY, cache_api=False)
    forces = np.array(atoms.get_forces())
    return Frame(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions.copy(),
        energy=float(atoms.get_potential_energy()),
        forces=forces,
        info=dict(info or {}),
    )


def gfn2_atom_energies(unpaired: dict[str, int]) -> dict[str, float]:
    """Energies in eV of free atoms with spin-polarised GFN2-xTB (spGFN2).

    For closed shells spGFN2 equals GFN2, so these are references of the same energy surface. Without spin
    polarisation the open-shell atoms lie 1-1.5 eV too high and ethanol would be overbound by 10 eV.

    Args:
        unpaired: number of unpaired electrons by chemical symbol.
    """
    from ase import Atoms

    energies = {}
    for symbol, electrons in unpaired.items():
        atom = Atoms(symbol)
        atom.calc = _calculator(accuracy=_LABEL_ACCURACY, multiplicity=electrons + 1, spin_polarization=1.0)
        energies[symbol] = float(atom.get_potential_energy())
    return energies


def dynamics(
    atoms: Atoms, temperature: float, frames: int, equilibration: float, generator: np.random.Generator
) -> Iterator[tuple[float, Atoms]]:
    """Snapshots of Langevin dynamics with their time in fs, counted from the end of the equilibration."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    atoms.calc = _calculator()
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=generator)
    langevin = Langevin(
        atoms,
        timestep=_TIMESTEP * units.fs,
        temperature_K=temperature,
        friction=_FRICTION / units.fs,
        fixcm=False,
        rng=generator,
    )
    langevin.run(round(equilibration / _TIMESTEP))
    for i in range(frames):
        langevin.run(round(_INTERVAL / _TIMESTEP))
        yield (i + 1) * _INTERVAL, atoms.copy()


def _start(generator: np.random.Generator) -> Atoms:
    """Ethanol with the hydroxyl and the methyl group turned by random angles."""
    from ase.build import molecule

    atoms = molecule("CH3CH2OH")
    heavy = [i for i, symbol in enumerate(atoms.symbols) if symbol != "H"]
    methyl, methylene, oxygen = sorted(heavy, key=lambda i: (atoms.symbols[i] == "O", -_hydrogens(atoms, i)))
    hydroxyl = next(i for i in _bonded_hydrogens(atoms, oxygen))
    hydrogens = _bonded_hydrogens(atoms, methyl)
    atoms.rotate_dihedral(hydroxyl, oxygen, methylene, methyl, generator.uniform(0, 360), indices=[hydroxyl])
    turn = generator.uniform(0, 120)
    atoms.rotate_dihedral(oxygen, methylene, methyl, hydrogens[0], turn, indices=hydrogens)
    return atoms


def _bonded_hydrogens(atoms: Atoms, centre: int) -> list[int]:
    distances = atoms.get_distances(centre, range(len(atoms)))
    return [i for i, d in enumerate(distances) if atoms.symbols[i] == "H" and d < 1.25]


def _hydrogens(atoms: Atoms, centre: int) -> int:
    return len(_bonded_hydrogens(atoms, centre))


def _calculator(**options: object) -> Any:
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise InputError(
            "GFN2-xTB labels need tblite, which is not installed", hint="pip install 'pimlip-zoo[xtb]'"
        ) from error
    return TBLite(method="GFN2-xTB", verbosity=0, **options)


def _provenance(seed: int, plan: dict[str, SplitPlan]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "name": "ethanol-gfn2",
        "description": "ethanol in the gas phase, Langevin dynamics",
        "level_of_theory": "GFN2-xTB, electronic temperature 300 K (J. Chem. Theory Comput. 15, 1652 (2019))",
        "atom_energies": "spin-polarised GFN2-xTB, ground states H 2S, C 3P, O 3P",
        "made_with": {"tblite": version("tblite"), "ase": version("ase"), "numpy": version("numpy")},
        "made_by": "scripts/builtin_data ethanol-gfn2",
        "seed": seed,
        "units": {"length": "Å", "energy": "eV", "forces": "eV/Å", "time_fs": "fs"},
        "licence": "MIT, as the package",
        "dynamics": {
            "thermostat": "Langevin",
            "timestep_fs": _TIMESTEP,
            "friction_per_fs": _FRICTION,
            "equilibration_fs": _EQUILIBRATION,
            "interval_fs": _INTERVAL,
        },
        "splits": {
            name: {
                "frames": split.frames,
                "temperature_K": split.temperature,
                "trajectories": split.trajectories,
            }
            for name, split in plan.items()
        },
    }
