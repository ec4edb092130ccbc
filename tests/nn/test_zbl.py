"""ZBL repulsion: the values of ``mace-torch``, smooth to its end, a plain pair potential."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import covalent_radii as ase_radii

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, edge_vectors
from pimlip_zoo.nn.agnesi import AgnesiTransform
from pimlip_zoo.nn.elements import atomic_numbers, covalent_radii
from pimlip_zoo.nn.zbl import ZBL

SPECIES = ("H", "C", "N", "O")
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8}
REFERENCE = Path(__file__).parent.parent / "agreement" / "mace_zbl.npz"


def pair(first: str, second: str, distance: float) -> AtomGraph:
    frame = Frame(
        numbers=np.array([NUMBERS[first], NUMBERS[second]]),
        positions=np.array([[0.0, 0.0, 0.0], [0.0, 0.0, distance]]),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
    )
    return frame_to_sample(frame, SPECIES, 5.0).graph


def energy(zbl: ZBL, graph: AtomGraph) -> torch.Tensor:
    return zbl(graph, edge_vectors(graph))


@pytest.mark.parametrize("pair_name", ["H-H", "C-H", "N-O", "C-C"])
def test_energies_equal_those_of_mace(pair_name: str) -> None:
    zbl = ZBL(SPECIES, cutoff_order=5)
    with np.load(REFERENCE, allow_pickle=False) as stored:
        distances, expected = stored[f"{pair_name}/distances"], stored[f"{pair_name}/energies"]
    assert (expected != 0).sum() >= 3
    got = [float(energy(zbl, pair(*pair_name.split("-"), r)).sum()) for r in distances]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("first", "second"), [("H", "H"), ("H", "O"), ("N", "C")])
def test_energy_and_two_derivatives_vanish_at_the_sum_of_the_radii(first: str, second: str) -> None:
    end = ase_radii[NUMBERS[first]] + ase_radii[NUMBERS[second]]
    zbl = ZBL(SPECIES)
    for offset in (-1e-4, 0.0, 1e-3, 2.0):
        vector = torch.tensor([[0.0, 0.0, end + offset]], dtype=torch.float64, requires_grad=True)
        graph = pair(first, second, 1.0)._replace(edge_index=torch.tensor([[0], [1]]))
        value = zbl(graph, vector).sum()
        (slope,) = torch.autograd.grad(value, vector, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[0, 2], vector)
        if offset >= 0:
            assert value.item() == 0
            assert torch.count_nonzero(slope) == torch.count_nonzero(curvature) == 0
        else:
            assert 0 < value.item() < 1e-8
            assert abs(slope[0, 2].item()) < 1e-4
            assert abs(curvature[0, 2].item()) < 1.0


def test_half_of_the_energy_is_on_each_atom_and_it_only_repels() -> None:
    zbl = ZBL(SPECIES)
    values = [energy(zbl, pair("C", "O", r)) for r in (0.3, 0.5, 0.8, 1.2)]
    for value in values:
        torch.testing.assert_close(value[0], value[1], rtol=1e-14, atol=0)
    totals = [float(value.sum()) for value in values]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] > 0


def test_at_short_range_it_is_the_coulomb_repulsion_of_the_nuclei() -> None:
    value = float(energy(ZBL(SPECIES), pair("O", "O", 1e-4)).sum())
    assert value == pytest.approx(14.3996 * 64 / 1e-4, rel=5e-3)


@pytest.mark.parametrize("atoms", [0, 1])
def test_without_edges_the_energy_is_zero(atoms: int) -> None:
    graph = AtomGraph(
        positions=torch.zeros(atoms, 3, dtype=torch.float64),
        species=torch.zeros(atoms, dtype=torch.int64),
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        edge_shift=torch.zeros(0, 3, dtype=torch.float64),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        batch=torch.zeros(atoms, dtype=torch.int64),
        num_graphs=1,
    )
    assert torch.equal(energy(ZBL(SPECIES), graph), torch.zeros(atoms, dtype=torch.float64))


def test_scripted_equals_eager_and_precision_follows_the_vectors() -> None:
    zbl, graph = ZBL(SPECIES), pair("C", "N", 0.7)
    assert torch.equal(energy(torch.jit.script(zbl), graph), energy(zbl, graph))
    single = zbl(graph, edge_vectors(graph).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), energy(zbl.to(torch.float32), graph), rtol=1e-5, atol=0)


def test_order_and_strength_travel_with_the_weights() -> None:
    other = ZBL(SPECIES)
    other.load_state_dict(ZBL(SPECIES, cutoff_order=5, strength=2.5).state_dict())
    graph = pair("C", "N", 0.7)
    expected = 2.5 * energy(ZBL(SPECIES, cutoff_order=5), graph)
    torch.testing.assert_close(energy(other, graph), expected, rtol=1e-14, atol=0)


def test_the_reach_is_that_of_the_largest_pair() -> None:
    assert ZBL(("H", "C")).max_reach == pytest.approx(2 * ase_radii[6])


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(InputError, match="'Xx' is not a chemical element"):
        ZBL(("H", "Xx"))
    with pytest.raises(InputError, match="order"):
        ZBL(SPECIES, cutoff_order=1)
    with pytest.raises(InputError, match="strength"):
        ZBL(SPECIES, strength=0.0)
    with pytest.raises(InputError, match=r"repels up to 4\.88 Å"):
        ZBL(("Cs", "I"), cutoff=4.5)
    ZBL(("Cs", "I"), cutoff=4.9)


def test_numbers_and_radii_are_those_of_the_elements() -> None:
    assert atomic_numbers(("O", "H", "Cu")).tolist() == [8, 1, 29]
    np.testing.assert_array_equal(covalent_radii(("O", "Cu")).numpy(), ase_radii[[8, 29]])


def test_agnesi_falls_from_one_to_zero_and_knows_the_size_of_the_atoms() -> None:
    transform = AgnesiTransform(SPECIES)
    one_edge = torch.zeros(2, 500, dtype=torch.int64)
    of_hydrogen = pair("H", "H", 1.0)._replace(edge_index=one_edge)
    of_carbon = pair("C", "C", 1.0)._replace(edge_index=one_edge)
    length = torch.linspace(1e-3, 30.0, 500, dtype=torch.float64)
    hydrogen, carbon = transform(length, of_hydrogen), transform(length, of_carbon)
    for values in (hydrogen, carbon):
        assert bool((values[1:] < values[:-1]).all())
        assert 0.99 < float(values[0]) < 1
        assert 0 < float(values[-1]) < 0.05
    scale = float(ase_radii[6] / ase_radii[1])
    torch.testing.assert_close(transform(length * scale, of_carbon), hydrogen, rtol=1e-12, atol=0)
    assert torch.equal(torch.jit.script(transform)(length, of_hydrogen), hydrogen)
