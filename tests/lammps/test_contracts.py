"""The exported file under the contracts of ``pair_style nequip`` and ``allegro``, present and legacy.

Those pair styles are not built here. Their side of the contract, that is keys, dtypes, order of the atoms, folding
and per-type cutoffs, is played by the functions below.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ghosts import ghosts, pairs_within
from toys import SPECIES, geometries, graph_of, potential_of, predict, relative

from pimlip_zoo.deploy.selfcheck import position_inputs
from pimlip_zoo.registry import available_models

ARCHITECTURES = sorted(available_models())


class PairStyle:
    """What the pair styles of others do with a file: load, read metadata, freeze, call, take the results."""

    def __init__(self, path, *, legacy):
        keys = ["r_max", "type_names", "per_edge_type_cutoff"]
        keys += ["nequip_version", "n_species"] if legacy else ["num_types", "allow_tf32"]
        extra = dict.fromkeys(keys, "")
        self.module = torch.jit.load(str(path), _extra_files=extra)
        meta = {k: v.decode() if isinstance(v, bytes) else v for k, v in extra.items()}
        if self.module._c.hasattr("training"):  # "not frozen yet"
            self.module = torch.jit.freeze(self.module)
        self.cutoff = float(meta["r_max"])
        if legacy:
            assert meta["nequip_version"] != ""
        else:
            int(meta["allow_tf32"])  # std::stoi: anything else ends LAMMPS without a word
        count = int(float(meta["n_species" if legacy else "num_types"]))
        assert meta["type_names"].split()[:count] == list(SPECIES)
        matrix = meta["per_edge_type_cutoff"]
        self.per_type = np.array(matrix.split(), dtype=float).reshape(count, count) if matrix else None

    def call(self, data):
        return {key: value.detach() for key, value in self.module(data).items()}


def nequip(path, atoms, *, legacy=False):
    """One rank, ghosts folded to local atoms; the legacy style orders by tag and passes float32."""
    style = PairStyle(path, legacy=legacy)
    x, tag, types = ghosts(atoms, style.cutoff)
    n = len(atoms)
    order = np.random.default_rng(1).permutation(n) if legacy else np.arange(n)  # LAMMPS sorts atoms at will
    x_local, tags = x[:n][order], tag[:n][order]
    image = np.concatenate([order, np.arange(n, len(x))])
    edges = pairs_within(x[image], types[image], n, style.cutoff, style.per_type)
    row = np.empty(n + 1, dtype=np.int64)
    row[tags] = tags - 1 if legacy else np.arange(n)
    positions = np.empty((n, 3))
    positions[row[tags]] = x_local
    centre, neighbour = row[tag[image][edges[0]]], row[tag[image][edges[1]]]
    inverse = np.linalg.inv(np.array(atoms.cell))
    shift = np.round((x[image][edges[1]] - positions[neighbour]) @ inverse)
    kinds = np.empty(n, dtype=np.int64)
    kinds[row[tags]] = types[:n][order]
    dtype = torch.float32 if legacy else torch.float64
    cell = torch.tensor(np.array(atoms.cell), dtype=dtype)
    out = style.call(
        {
            "pos": torch.tensor(positions, dtype=dtype),
            "edge_index": torch.tensor(np.stack([centre, neighbour])),
            "edge_cell_shift": torch.tensor(shift, dtype=dtype),
            "cell": cell if legacy else cell.unsqueeze(0),
            "atom_types": torch.tensor(kinds),
        }
    )
    assert out["forces"].shape == (n, 3)
    assert out["forces"].dtype == torch.float64
    energies = out["atomic_energy"].numpy()[:, 0]
    energy = float(out["total_energy"].reshape(-1)[0]) if legacy else energies.sum()
    back = row[np.arange(1, n + 1)]
    return energy, out["forces"].numpy()[back], out["virial"].numpy()[0], energies[back]


def allegro(path, atoms, *, legacy=False):
    """Local and ghost atoms; the forces on ghosts are sent back to their atoms."""
    style = PairStyle(path, legacy=legacy)
    x, tag, types = ghosts(atoms, style.cutoff)
    n = len(atoms)
    edges = pairs_within(x, types, n, style.cutoff, style.per_type)
    out = style.call(
        {
            "pos": torch.tensor(x, dtype=torch.float32 if legacy else torch.float64),
            "edge_index": torch.tensor(edges),
            "atom_types": torch.tensor(types),
        }
    )
    assert out["forces"].shape == (len(x), 3)
    forces = np.zeros((n, 3))
    np.add.at(forces, tag - 1, out["forces"].numpy())
    energies = out["atomic_energy"].numpy()[:n, 0]
    return energies.sum(), forces, out["virial"].numpy()[0], energies


@pytest.mark.parametrize(
    "name",
    [
        "pairs",
        "messages2",
        "nequip",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES if n != "nequip"),
    ],
)
def test_pair_style_nequip(name, exported):
    structures = geometries()
    if name in ARCHITECTURES:
        del structures["a bulk crystal"]  # TorchScript takes its time to specialise to it
    for atoms in structures.values():
        values = nequip(exported(name), atoms)
        for found, expected in zip(values, predict(potential_of(name), atoms), strict=True):
            assert relative(found, expected) < 1e-10


@pytest.mark.parametrize(
    "name", ["messages2", *(pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES)]
)
def test_legacy_pair_style_nequip(name, exported):
    for geometry in ("a molecule in a box", "a skewed triclinic cell", "a cell thinner than the cutoff"):
        atoms = geometries()[geometry]
        values = nequip(exported(name), atoms, legacy=True)
        for found, expected in zip(values, predict(potential_of(name), atoms), strict=True):
            assert relative(found, expected) < 2e-4  # positions come as float32


@pytest.mark.parametrize(
    ("name", "legacy"),
    [
        ("pairs", False),
        ("pairs", True),
        pytest.param("allegro", False, marks=pytest.mark.slow),
        pytest.param("allegro", True, marks=pytest.mark.slow),
    ],
)
def test_pair_style_allegro(name, legacy, exported):
    for geometry in ("a slab", "a skewed triclinic cell", "a cell thinner than the cutoff"):
        atoms = geometries()[geometry]
        values = allegro(exported(name), atoms, legacy=legacy)
        for found, expected in zip(values, predict(potential_of(name), atoms), strict=True):
            assert relative(found, expected) < (2e-4 if legacy else 1e-10)


@pytest.mark.parametrize("name", ["messages2", "nequip"])
def test_message_passing_under_a_local_pair_style_is_refused(name, exported):
    for legacy in (False, True):
        with pytest.raises(Exception, match="message-passing model"):
            allegro(exported(name), geometries()["a slab"], legacy=legacy)


@pytest.mark.parametrize("name", ["pairs", pytest.param("nequip", marks=pytest.mark.slow)])
def test_float32_inside_is_float64_outside(name, exported):
    atoms = geometries()["a bulk crystal"]
    values = nequip(exported(name, torch.float32), atoms)
    for found, expected in zip(values, predict(potential_of(name), atoms), strict=True):
        assert relative(found, expected) < 2e-4


def test_many_steps_with_changing_sizes(exported):
    # The profiling executor recompiles in the first calls, and again when sizes change.
    structures = list(geometries().values())
    path, potential = exported("messages2"), potential_of("messages2")
    style = torch.jit.load(str(path))
    for step in range(12):
        atoms = structures[step % 5]
        out = style(position_inputs(graph_of(atoms)))
        assert relative(out["forces"].detach(), predict(potential, atoms)[1]) < 1e-10


def test_atoms_without_edges(exported):
    module = torch.jit.load(str(exported("messages2")))
    for count in (1, 2):
        out = module(
            {
                "pos": torch.arange(3.0 * count, dtype=torch.float64).reshape(count, 3) * 9,
                "edge_index": torch.zeros((2, 0), dtype=torch.int64),
                "edge_cell_shift": torch.zeros((0, 3), dtype=torch.float64),
                "cell": torch.eye(3, dtype=torch.float64)[None] * 99,
                "atom_types": torch.full((count,), 2),
            }
        )
        assert out["total_energy"].item() == pytest.approx(-3.0 * count)
        assert out["forces"].abs().max() == 0.0


def test_no_grad_is_refused_rather_than_answered_with_zeros(exported):
    module = torch.jit.load(str(exported("pairs")))
    with torch.no_grad(), pytest.raises(Exception, match="no_grad"):
        module(position_inputs(graph_of(geometries()["a slab"])))
