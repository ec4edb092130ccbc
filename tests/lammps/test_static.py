"""``run 0`` in LAMMPS is the potential's own evaluation: geometries, architectures, ranks, modes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ghosts import ghosts
from toys import SPECIES, geometries, graph_of, potential_of, predict, relative, with_metadata

from pimlip_zoo.cli.export import ExportFormat
from pimlip_zoo.deploy.aot import export_aot
from pimlip_zoo.deploy.lammps.check import single_points
from pimlip_zoo.errors import InputError
from pimlip_zoo.registry import available_models

ARCHITECTURES = sorted(available_models())
FORMATS = ("torchscript", "native")
NATIVE = ("allegro", "mace", "mace-nonlinear", "nequip")
TOYS = ["pairs", "messages2", "messages3"]


def cases(*fast, names=ARCHITECTURES):
    """Names and formats; slow but for those given. What is written in plain torch alone may have no native form."""
    for file_format in FORMATS:
        for name in names:
            if file_format == "torchscript" or name in NATIVE:
                yield pytest.param(
                    name, file_format, marks=() if (name, file_format) in fast else pytest.mark.slow
                )


def differences(points, potential, structures):
    """Largest relative difference of every quantity over all structures."""
    worst = dict.fromkeys(("energy", "forces", "virial", "atomic energies"), 0.0)
    for point, atoms in zip(points, structures, strict=True):
        found = (point.energy, point.forces, point.virial, point.atomic_energy)
        for key, value, expected in zip(worst, found, predict(potential, atoms), strict=True):
            worst[key] = max(worst[key], relative(value, expected))
    return worst


@pytest.mark.parametrize(
    ("name", "file_format"),
    cases(*itertools.product([*TOYS, *ARCHITECTURES], FORMATS), names=[*TOYS, *ARCHITECTURES]),
    indirect=["file_format"],
)
def test_five_geometries_agree_in_float64(name, plugin, exported):
    structures = list(geometries().values())
    points = single_points(structures, model=exported(name), plugin=plugin, species=SPECIES)
    worst = differences(points, potential_of(name), structures)
    assert max(worst.values()) < 1e-10, worst


@pytest.mark.parametrize(
    ("name", "file_format"),
    cases(
        *(("pairs", "torchscript"), ("nequip", "torchscript"), ("allegro", "native")),
        names=["pairs", *ARCHITECTURES],
    ),
    indirect=["file_format"],
)
def test_five_geometries_agree_in_float32(name, plugin, exported):
    structures = list(geometries().values())
    model = exported(name, torch.float32)
    points = single_points(structures, model=model, plugin=plugin, species=SPECIES)
    worst = differences(points, potential_of(name, torch.float32), structures)
    assert max(worst.values()) < 2e-4, worst


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("pairs", 2),
        ("messages2", 2),
        ("messages3", 4),
        pytest.param("messages3", 2, marks=pytest.mark.slow),
        pytest.param("pairs", 4, marks=pytest.mark.slow),
        pytest.param("messages2", 4, marks=pytest.mark.slow),
    ],
)
def test_many_ranks_compute_what_one_computes(name, ranks, plugin, exported):
    structures = list(geometries().values())
    points = single_points(structures, model=exported(name), plugin=plugin, species=SPECIES, ranks=ranks)
    worst = differences(points, potential_of(name), structures)
    assert max(worst.values()) < 1e-10, worst
    for point, atoms in zip(points, structures, strict=True):
        # Rows are matched by where the atoms are, not only by their numbers.
        shift = np.linalg.solve(np.array(atoms.cell).T, (point.positions - atoms.positions).T).T
        assert np.abs(shift - np.round(shift)).max() < 1e-10


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("name", "file_format"), cases(("nequip", "native")), indirect=["file_format"])
def test_architectures_on_many_ranks(name, ranks, plugin, exported):
    structures = list(geometries().values())
    points = single_points(structures, model=exported(name), plugin=plugin, species=SPECIES, ranks=ranks)
    assert max(differences(points, potential_of(name), structures).values()) < 1e-10


def test_a_halo_of_several_hops_reaches_across_ranks_that_do_not_touch(plugin, exported):
    atoms = geometries()["a bulk crystal"] * (4, 1, 1)  # slabs of 10.2 Å under a halo of 10.5 Å
    points = single_points([atoms], model=exported("messages3"), plugin=plugin, species=SPECIES, ranks=4)
    assert max(differences(points, potential_of("messages3"), [atoms]).values()) < 1e-10


@pytest.mark.parametrize(
    ("name", "file_format", "ranks"),
    [
        ("pairs", "torchscript", 1),
        ("messages2", "torchscript", 1),
        ("messages2", "torchscript", 2),
        ("nequip", "native", 2),
    ],
    indirect=["file_format"],
)
def test_chunks_change_nothing(name, ranks, plugin, exported):
    structures = list(geometries().values())
    points = single_points(
        structures, model=exported(name), plugin=plugin, species=SPECIES, options="chunk 7", ranks=ranks
    )
    assert max(differences(points, potential_of(name), structures).values()) < 1e-10


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("name", "file_format"), [("messages2", "torchscript"), ("nequip", "native")], indirect=["file_format"]
)
def test_atomic_virials_sum_to_the_virial(name, ranks, plugin, exported):
    structures = list(geometries().values())
    points = single_points(
        structures, model=exported(name), plugin=plugin, species=SPECIES, ranks=ranks, atomic_virials=True
    )
    assert max(differences(points, potential_of(name), structures).values()) < 1e-10
    for point in points:
        assert relative(point.atomic_virial.sum(0), point.virial) < 1e-10


def atomic_virials_of(potential, atoms):
    """``sum_i (r_i - r_j) dU_i/dr_j`` by differentiating every atom's energy, images written out as atoms."""
    positions, tag, types = ghosts(atoms, potential.model.interaction_depth * potential.cutoff)
    cluster = Atoms([SPECIES[k] for k in types], positions=positions)
    graph = graph_of(cluster, potential.species, potential.cutoff)
    places = graph.positions.clone().requires_grad_()
    centre, neighbour = graph.edge_index
    energies = potential.scale[graph.species] * potential.model(graph, places[neighbour] - places[centre])
    virials = torch.zeros(len(atoms), 3, 3, dtype=torch.float64)
    for i in range(len(atoms)):
        (gradient,) = torch.autograd.grad(energies[i], places, retain_graph=True)
        away = graph.positions[i] - graph.positions
        virials.index_add_(0, torch.as_tensor(tag - 1), away[:, :, None] * gradient[:, None, :])
    return virials.numpy()


@pytest.mark.parametrize(
    ("name", "file_format", "settings"),
    [
        ("pairs", "torchscript", {"newton": "off"}),
        ("messages2", "torchscript", {"ranks": 2}),
        ("nequip", "native", {"options": "chunk 3"}),
        ("nequip", "native", {"ranks": 2}),
        ("allegro", "native", {"newton": "off"}),
        ("mace", "native", {}),
    ],
    indirect=["file_format"],
)
def test_atomic_virials_are_derivatives_of_all_atomic_energies(name, settings, plugin, exported):
    structures = [geometries()[key] for key in ("a cell thinner than the cutoff", "a molecule in a box")]
    points = single_points(
        structures, model=exported(name), plugin=plugin, species=SPECIES, atomic_virials=True, **settings
    )
    for point, atoms in zip(points, structures, strict=True):
        assert relative(point.atomic_virial, atomic_virials_of(potential_of(name), atoms)) < 1e-10


@pytest.mark.parametrize(
    ("name", "file_format"), [("allegro", "native"), ("messages2", "torchscript")], indirect=["file_format"]
)
def test_atomic_virials_in_float32(name, plugin, exported):
    atoms = geometries()["a skewed triclinic cell"]
    model = exported(name, torch.float32)
    (point,) = single_points([atoms], model=model, plugin=plugin, species=SPECIES, atomic_virials=True)
    expected = atomic_virials_of(potential_of(name), atoms)
    assert relative(point.atomic_virial, expected) < 2e-4


@pytest.mark.slow
def test_atomic_virials_of_compiled_models(tmp_path, plugin):
    pytest.importorskip("torch._inductor")
    model = export_aot(potential_of("messages2"), tmp_path / "m.pimlip.pt2", name="messages2").path
    structures = [
        geometries()["a cell thinner than the cutoff"],
        Atoms("O", positions=[[5.0, 5.0, 5.0]], cell=np.eye(3) * 10, pbc=True),
    ]
    points = single_points(structures, model=model, plugin=plugin, species=SPECIES, atomic_virials=True)
    for point, atoms in zip(points, structures, strict=True):
        assert relative(point.atomic_virial, atomic_virials_of(potential_of("messages2"), atoms)) < 1e-10


def test_direct_forces_come_from_their_head(plugin, exported):
    structures = list(geometries().values())
    points = single_points(
        structures, model=exported("nequip:direct"), plugin=plugin, species=SPECIES, ranks=2
    )
    assert max(differences(points, potential_of("nequip:direct"), structures).values()) < 1e-10


@pytest.mark.parametrize(
    ("name", "file_format"), [("messages2", "torchscript"), ("nequip", "native")], indirect=["file_format"]
)
def test_newton_off_is_right_on_one_rank_and_refused_on_two(name, plugin, exported):
    atoms = geometries()["a skewed triclinic cell"]
    settings = {"model": exported(name), "plugin": plugin, "species": SPECIES, "newton": "off"}
    points = single_points([atoms], **settings)
    assert max(differences(points, potential_of(name), [atoms]).values()) < 1e-10
    with pytest.raises(InputError, match="needs `newton on`"):
        single_points([atoms], ranks=2, **settings)


@pytest.mark.parametrize(
    ("name", "file_format"),
    [("messages2", "torchscript"), *((name, "native") for name in NATIVE)],
    indirect=["file_format"],
)
def test_atoms_out_of_sight_and_ranks_without_atoms(name, plugin, exported):
    one = Atoms("O", positions=[[5.0, 5.0, 5.0]], cell=np.eye(3) * 10, pbc=True)
    apart = Atoms("HO", positions=[[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]], cell=np.eye(3) * 20, pbc=True)
    expected = [predict(potential_of(name), atoms)[0] for atoms in (one, apart)]
    if name == "messages2":
        assert expected == [-3.0, -4.0]  # the reference energies
    for ranks in (1, 4):  # ranks without atoms among them
        points = single_points(
            [one, apart], model=exported(name), plugin=plugin, species=SPECIES, ranks=ranks
        )
        assert [point.energy for point in points] == pytest.approx(expected, abs=1e-12)
        assert all(np.abs(point.forces).max() == 0.0 for point in points)


@pytest.mark.parametrize("file_format", FORMATS, indirect=True)
def test_the_ase_calculator_says_the_same(file_format, plugin, exported):
    from pimlip_zoo.deploy.ase import PimlipCalculator
    from pimlip_zoo.deploy.native.calculator import NativeCalculator

    atoms = geometries()["a skewed triclinic cell"].copy()
    native = file_format is ExportFormat.native
    atoms.calc = NativeCalculator(exported("nequip")) if native else PimlipCalculator(potential_of("nequip"))
    (point,) = single_points([atoms], model=exported("nequip"), plugin=plugin, species=SPECIES)
    stress = -point.virial / atoms.get_volume()
    assert relative(point.energy, atoms.get_potential_energy()) < 1e-10
    assert relative(point.forces, atoms.get_forces()) < 1e-10
    assert np.abs(stress - atoms.get_stress(voigt=False)).max() / np.abs(stress).max() < 1e-10


def test_a_halo_of_too_few_hops_would_be_seen(tmp_path, plugin, exported):
    # The same file, lying about how far it sees: what the tests above would miss if trimming went wrong.
    atoms = geometries()["a bulk crystal"] * (4, 1, 1)
    liar = with_metadata(exported("messages3"), tmp_path / "short.nequip.pth", interaction_depth="2")
    points = single_points([atoms], model=liar, plugin=plugin, species=SPECIES, ranks=2)
    assert differences(points, potential_of("messages3"), [atoms])["forces"] > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairs", *ARCHITECTURES])
def test_compiled_models_agree(name, tmp_path, plugin):
    pytest.importorskip("torch._inductor")
    model = export_aot(potential_of(name), tmp_path / f"{name}.pimlip.pt2", name=name).path
    structures = [
        *geometries().values(),
        Atoms("O", positions=[[5.0, 5.0, 5.0]], cell=np.eye(3) * 10, pbc=True),
    ]
    for ranks in (1, 2):
        points = single_points(structures, model=model, plugin=plugin, species=SPECIES, ranks=ranks)
        assert max(differences(points, potential_of(name), structures).values()) < 1e-10
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="it is not a complete compiled model"):
        single_points(structures[:1], model=model, plugin=plugin, species=SPECIES)
