"""Copper, aluminium and their alloys in periodic cells, labelled with ASE's effective-medium potential.

K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996), as in ``ase.calculators.emt``. There is
no dynamics: every structure is built from random numbers, so a seed gives the same set wherever NumPy's
generator does, up to rounding in the last digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from packing import snap

from pimlip_zoo.datasets.builtin_format import PackedSet
from pimlip_zoo.datasets.frame import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ase import Atoms
    from numpy.typing import NDArray

__all__ = ["DEFAULT_SEED", "KINDS", "PLAN", "label_emt", "make_cual"]

DEFAULT_SEED = 2024

# Equilibrium lattice constants of the potential, Å.
_LATTICE = {"Cu": 3.59, "Al": 3.995}
_CLOSEST = 1.9  # Å
_LARGEST_FORCE = 12.0  # eV/Å

PLAN = {"train": 1.0, "valid": 0.2, "test": 0.4}
"""Frames of a split, relative to the numbers in :data:`KINDS`."""


def make_cual(
    *,
    seed: int = DEFAULT_SEED,
    plan: Mapping[str, float] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PackedSet:
    """Build and label the structures.

    Args:
        seed: each kind of structure in each split has its own generator, derived from this.
        plan: relative size of each split; by default that of the built-in set.
        progress: called with the name of the split, frames done and frames in total.
    """
    plan = PLAN if plan is None else plan
    counts = {
        name: {k: max(1, round(n * size)) for k, (n, _) in KINDS.items()} for name, size in plan.items()
    }
    total = sum(sum(kinds.values()) for kinds in counts.values())
    done = 0
    splits: dict[str, list[Frame]] = {}
    for place, (name, kinds) in enumerate(counts.items()):
        frames = []
        for kind_place, (kind, count) in enumerate(kinds.items()):
            generator = np.random.default_rng([seed, place, kind_place])
            for _ in range(count):
                frames.append(_accepted(kind, generator))
                done += 1
                if progress is not None:
                    progress(name, done, total)
        # Shuffled, so that the first n frames are a fair sample of the split.
        order = np.random.default_rng([seed, place]).permutation(len(frames))
        splits[name] = [frames[i] for i in order]
    return PackedSet(splits, _emt_atom_energies(), _provenance(seed, counts))


def label_emt(atoms: Atoms, info: dict[str, Any] | None = None) -> Frame:
    """Energy, forces, and stress where the cell has a volume."""
    from ase.calculators.emt import EMT

    atoms = atoms.copy()
    atoms.positions = snap(atoms.positions)
    atoms.calc = EMT()
    return Frame(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions.copy(),
        cell=np.array(atoms.cell),
        pbc=np.array(atoms.pbc),
        energy=float(atoms.get_potential_energy()),
        forces=np.array(atoms.get_forces()),
        stress=np.array(atoms.get_stress(voigt=False)) if atoms.cell.rank == 3 else None,
        info=dict(info or {}),
    )


def _accepted(kind: str, generator: np.random.Generator) -> Frame:
    """The first structure of that kind whose atoms are not closer than matter is."""
    build = KINDS[kind][1]
    while True:
        atoms = build(generator)
        if _closest_distance(atoms) < _CLOSEST:
            continue
        frame = label_emt(atoms, {"config_type": kind})
        if frame.forces is not None and np.abs(frame.forces).max() < _LARGEST_FORCE:
            return frame


def _closest_distance(atoms: Atoms) -> float:
    from ase.neighborlist import neighbor_list

    distances = neighbor_list("d", atoms, 4.0)
    return float(distances.min()) if len(distances) else np.inf


def _emt_atom_energies() -> dict[str, float]:
    from ase import Atoms

    return {symbol: float(label_emt(Atoms(symbol)).energy or 0.0) for symbol in _LATTICE}


# Structures of each kind.


def _primitive(generator: np.random.Generator) -> Atoms:
    """One atom: fcc, bcc or simple cubic."""
    from ase.build import bulk

    symbol = str(generator.choice(["Cu", "Al"]))
    structure = str(generator.choice(["fcc", "fcc", "bcc", "sc"]))
    # The same volume per atom in each structure, less for simple cubic with its shorter bonds.
    per_cell = {"fcc": 4, "bcc": 2, "sc": 1}[structure]
    a = _LATTICE[symbol] * (per_cell / 4 * (1.1 if structure == "sc" else 1.0)) ** (1 / 3)
    return _strained(bulk(symbol, structure, a=a), generator, 0.06)


def _bulk(generator: np.random.Generator) -> Atoms:
    """Two to four atoms of one element: hcp, or the cube of fcc."""
    from ase.build import bulk

    symbol = str(generator.choice(["Cu", "Al"]))
    if generator.random() < 0.3:
        a = _LATTICE[symbol] / np.sqrt(2)
        atoms = bulk(symbol, "hcp", a=a, c=a * generator.uniform(1.58, 1.68))
    else:
        atoms = bulk(symbol, "fcc", a=_LATTICE[symbol], cubic=True)
    return _rattled(_strained(atoms, generator, 0.05), generator, 0.12)


def _ordered_alloy(generator: np.random.Generator) -> Atoms:
    """L1_2 (Cu3Al and CuAl3), L1_0 or B2."""
    from ase.build import bulk

    major, minor = generator.permutation(["Cu", "Al"])
    structure = str(generator.choice(["L1_2", "L1_0", "B2"]))
    if structure == "B2":
        atoms = bulk("Cu", "sc", a=1.0).repeat((1, 1, 2))
        atoms.set_cell(np.eye(3))
        atoms.positions[1] = 0.5
        atoms.symbols = [major, minor]
        return _at_equilibrium_volume(atoms, generator, 0.05, 0.1)
    atoms = bulk("Cu", "fcc", a=1.0, cubic=True)
    atoms.symbols = [minor, major, major, major] if structure == "L1_2" else [minor, minor, major, major]
    return _at_equilibrium_volume(atoms, generator, 0.05, 0.1)


def _random_alloy(generator: np.random.Generator) -> Atoms:
    """32 atoms on fcc sites at any composition."""
    return _fcc_solution(2, generator)


def _supercell(generator: np.random.Generator) -> Atoms:
    """108 atoms, one element or an alloy."""
    return _fcc_solution(3, generator)


def _vacancy(generator: np.random.Generator) -> Atoms:
    """31 atoms on 32 sites."""
    atoms = _fcc_solution(2, generator, pure=generator.random() < 0.6)
    del atoms[int(generator.integers(len(atoms)))]
    return atoms


def _skewed(generator: np.random.Generator) -> Atoms:
    """Two to eight atoms in a skewed, often left-handed cell that is thinner than usual cutoffs."""
    from ase.build import bulk, make_supercell

    shape = generator.integers(-1, 3, size=(3, 3))
    while not 2 <= abs(round(np.linalg.det(shape))) <= 8:
        shape = generator.integers(-1, 3, size=(3, 3))
    if np.linalg.det(shape) < 0:  # make_supercell wants a right-handed one; the hand is turned below
        shape = shape[[1, 0, 2]]
    atoms = make_supercell(bulk("Cu", "fcc", a=1.0), shape)
    atoms.symbols = generator.choice(["Cu", "Al"], size=len(atoms))
    atoms = _at_equilibrium_volume(atoms, generator, 0.04, 0.1)
    if generator.random() < 0.5:
        atoms.set_cell(np.array(atoms.cell)[[1, 0, 2]])
    return atoms


def _slab(generator: np.random.Generator) -> Atoms:
    """(111), (100) or (110) surface, some with an adatom, open along the normal, with vacuum in the cell."""
    from ase.build import add_adsorbate, fcc100, fcc110, fcc111

    symbol = str(generator.choice(["Cu", "Al"]))
    face, sites = [(fcc111, "fcc"), (fcc100, "hollow"), (fcc110, "hollow")][int(generator.integers(3))]
    size = (2, 2, int(generator.integers(2, 5)))
    atoms = face(symbol, size, a=_LATTICE[symbol], vacuum=float(generator.uniform(4.0, 8.0)))
    if generator.random() < 0.3:
        add_adsorbate(atoms, str(generator.choice(["Cu", "Al"])), 1.9, sites)
    if generator.random() < 0.4:
        # Impurities of the other element, few enough that the lattice stays the host's.
        chosen = generator.random(len(atoms)) < 0.15
        atoms.symbols[chosen] = "Al" if symbol == "Cu" else "Cu"
    atoms.pbc = (True, True, False)
    atoms.info.clear()
    return _rattled(_strained(atoms, generator, 0.03), generator, 0.12)


def _slab_without_normal(generator: np.random.Generator) -> Atoms:
    """A slab whose cell has no third vector at all, hence no volume and no stress."""
    atoms = _slab(generator)
    cell = np.array(atoms.cell)
    cell[2] = 0.0
    atoms.set_cell(cell)
    return atoms


KINDS: Mapping[str, tuple[int, Callable[[np.random.Generator], Atoms]]] = {
    "primitive": (30, _primitive),
    "bulk": (30, _bulk),
    "ordered_alloy": (30, _ordered_alloy),
    "skewed": (25, _skewed),
    "random_alloy": (30, _random_alloy),
    "vacancy": (25, _vacancy),
    "slab": (40, _slab),
    "slab_without_normal": (10, _slab_without_normal),
    "supercell": (10, _supercell),
}
"""How many training frames there are of each kind, and what builds one."""


def _fcc_solution(repeats: int, generator: np.random.Generator, *, pure: bool | None = None) -> Atoms:
    from ase.build import bulk

    atoms = bulk("Cu", "fcc", a=1.0, cubic=True).repeat(repeats)
    pure = generator.random() < 0.3 if pure is None else pure
    fraction = float(generator.integers(2)) if pure else generator.random()
    atoms.symbols = np.where(generator.random(len(atoms)) < fraction, "Al", "Cu")
    return _at_equilibrium_volume(atoms, generator, 0.04, 0.15)


def _at_equilibrium_volume(
    atoms: Atoms, generator: np.random.Generator, strain: float, rattle: float
) -> Atoms:
    """Scaled so that each atom has the volume it has in its own fcc crystal, then strained and rattled."""
    volume = sum(_LATTICE[symbol] ** 3 / 4 for symbol in atoms.symbols)
    scale = (volume / abs(atoms.get_volume())) ** (1 / 3)
    atoms.set_cell(np.array(atoms.cell) * scale, scale_atoms=True)
    return _rattled(_strained(atoms, generator, strain), generator, rattle)


def _strained(atoms: Atoms, generator: np.random.Generator, largest: float) -> Atoms:
    """All six strain components drawn from ±largest, the volume change shared by the three lengths."""
    strain: NDArray[np.float64] = generator.uniform(-largest, largest, size=(3, 3))
    strain = (strain + strain.T) / 2 + generator.uniform(-largest, largest) / 2 * np.eye(3)
    atoms.set_cell(np.array(atoms.cell) @ (np.eye(3) + strain), scale_atoms=False)
    atoms.positions = atoms.positions @ (np.eye(3) + strain)
    return atoms


def _rattled(atoms: Atoms, generator: np.random.Generator, largest: float) -> Atoms:
    """Normal displacements with a standard deviation drawn from 0 to largest, in Å."""
    sigma = generator.uniform(0.0, largest)
    atoms.positions = atoms.positions + generator.normal(scale=sigma, size=(len(atoms), 3))
    return atoms


def _provenance(seed: int, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "name": "cual-emt",
        "description": "periodic copper, aluminium and their alloys: bulk, strained, vacancies, slabs",
        "level_of_theory": "effective-medium potential as in ASE (Surf. Sci. 366, 394 (1996))",
        "atom_energies": "the same potential, one atom without neighbours",
        "made_with": {"ase": version("ase"), "numpy": version("numpy")},
        "made_by": "scripts/builtin_data cual-emt",
        "seed": seed,
        "units": {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å³, dE/dε / V"},
        "licence": "MIT, as the package",
        "splits": {
            name: {"frames": sum(kinds.values()), "kinds": dict(kinds)} for name, kinds in counts.items()
        },
    }
