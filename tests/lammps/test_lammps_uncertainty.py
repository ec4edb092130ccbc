"""In a real LAMMPS the uncertainty of each force is that of the posterior in Python."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SPECIES, geometries, graph_of, potential_of

import pimlip_zoo
from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.deploy.lammps.data import write_data
from pimlip_zoo.deploy.lammps.quote import lammps_word
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.deploy.native.archive import read_native, write_native
from pimlip_zoo.deploy.native.calculator import NativeCalculator
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.deploy.native.uncertainty import KEY, Directions, OtherWeights
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.last_layer import LastLayer
from pimlip_zoo.labelling.uncertainty import Calibration, Posterior

SCRIPT = """
units {units}
boundary {boundary}
plugin load {plugin}
read_data structure.data
pair_style pimlip {options}
pair_coeff * * {model} {elements}
fix u all pair 2 pimlip uncertainty {asked}
compute most all reduce max f_u
thermo_style custom step pe c_most
dump rows all custom 1 rows.txt id f_u fx fy fz
dump_modify rows sort id format float %.17g
timestep 1e-9
run {steps}
"""


def posterior_of(name, dtype=torch.float64):
    potential = potential_of(name, dtype)
    size = len(LastLayer(potential))
    root = torch.randn((size, size), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return Posterior(
        potential, 0.1 * root, Calibration(2.0, 1.0, 1.7, 9), Calibration(1.3, 1.2, 1.7, 9, 0.75)
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Exports a potential with its posterior, once."""
    folder, done = tmp_path_factory.mktemp("uncertain"), {}

    def export(name, dtype=torch.float64):
        if (name, dtype) not in done:
            posterior = posterior_of(name, dtype)
            found = posterior.forces
            directions = Directions(
                posterior.directions(), found.factor, found.exponent, found.quantile, found.shared
            )
            path = folder / f"{name}-{len(done)}.pimlip"
            with use_kernels("auto"):
                export_native(posterior.layer.potential, path, name=name, uncertainty=directions)
            done[name, dtype] = posterior, path
        return done[name, dtype]

    return export


def in_lammps(folder, atoms, model, plugin, *, ranks=1, options="", units="metal", steps=0, asked=1):
    types = write_data(folder / "structure.data", atoms, SPECIES)
    masses = "" if types.have_standard_masses else " masses any"
    (folder / "in.lammps").write_text(
        SCRIPT.format(
            units=units,
            steps=steps,
            asked=asked,
            boundary=" ".join("p" if p else "f" for p in atoms.pbc),
            plugin=lammps_word(plugin.resolve()),
            options=options + masses,
            model=lammps_word(model.resolve()),
            elements=" ".join(types.elements),
        )
    )
    run_lammps(folder / "in.lammps", ranks=ranks, timeout=300)
    return np.loadtxt(folder / "rows.txt", skiprows=9, max_rows=len(atoms), ndmin=2)


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
@pytest.mark.parametrize(
    ("name", "geometry", "ranks", "options"),
    [
        ("allegro", "a skewed triclinic cell", 1, ""),
        ("allegro", "a slab", 2, "chunk 7"),
        ("mace", "a cell thinner than the cutoff", 1, ""),
        ("mace", "a bulk crystal", 2, ""),
    ],
)
def test_lammps_is_as_certain_as_python(name, geometry, ranks, options, tmp_path, plugin, models):
    posterior, path = models(name)
    atoms = geometries()[geometry]
    rows = in_lammps(tmp_path, atoms, path, plugin, ranks=ranks, options=options)
    expected = posterior.forces_uncertainty(graph_of(atoms))
    assert expected.max() > 1e-3
    assert np.abs(rows[:, 1] - expected).max() < 1e-8 * expected.max()
    with torch.no_grad():
        forces = posterior.layer.potential(graph_of(atoms), forces=True, virial=False).forces.numpy()
    assert np.abs(rows[:, 2:] - forces).max() < 1e-9  # the trained weights are in place again


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_single_precision_and_the_units_of_the_run(tmp_path, plugin, models):
    posterior, path = models("allegro", torch.float32)
    atoms = geometries()["a molecule in a box"]
    expected = posterior.forces_uncertainty(graph_of(atoms))
    rows = in_lammps(tmp_path, atoms, path, plugin, units="real", steps=4)
    assert np.abs(rows[:, 1] / 23.060549 - expected).max() < 1e-4 * expected.max()
    dumped = (tmp_path / "rows.txt").read_text().count("ITEM: TIMESTEP")
    assert dumped == 5


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
@pytest.mark.parametrize("steps", [0, 3])
def test_what_was_not_asked_for_is_no_number(steps, tmp_path, plugin, models):
    _, path = models("allegro")
    rows = in_lammps(tmp_path, geometries()["a molecule in a box"], path, plugin, steps=steps, asked=0)
    assert len(rows) > 1
    assert np.isnan(rows[:, 1]).all()
    assert np.isfinite(rows[:, 2:]).all()


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_a_file_that_does_not_know_says_so(tmp_path, plugin, exported):
    with pytest.raises(InputError, match="export it again with --uncertainty"):
        pimlip_zoo.calculator(exported("allegro"), uncertainty=True)
    with pytest.raises(InputError, match="export RUN --format native --uncertainty"):
        in_lammps(tmp_path, geometries()["a molecule in a box"], exported("allegro"), plugin)


def test_damage_is_found(models):
    _, path = models("allegro")
    content = read_native(path)
    assert content.others is not None
    for text, other in (
        ("9 " + content.others.text, content.others.content),
        (content.others.text + " 5", content.others.content),
        (content.others.text + f" {len(content.weights)}:8", content.others.content),
        (content.others.text, content.others.content[:-1]),
    ):
        with pytest.raises(InputError, match="uncertainty is damaged"):
            OtherWeights.read(text, other, len(content.weights))


@pytest.mark.parametrize(
    "numbers", ["-1 1 1", "0 1 1", "1 -1 1", "1 1 0", "1 1 -2", "nan 1 1", "1 inf 1", "1 1 1 -1", "1 1 1 nan"]
)
def test_an_uncertainty_that_is_negative_or_grows_with_certainty_is_refused(numbers):
    assert OtherWeights.read("1 2.0 1.0 1.5 0:8", bytes(16), 8).factor == 2.0
    with pytest.raises(InputError, match="uncertainty is damaged"):
        OtherWeights.read(f"1 {numbers} 0:8", bytes(16), 8)


@pytest.mark.parametrize("text", ["0 2.0 1.0 1.5 0:16", "1 2.0 1.0 1.5 0:4 0:4", "1 2.0 1.0 1.5 4:4 2:4"])
def test_an_uncertainty_without_directions_or_of_weights_that_overlap_is_refused(text):
    assert OtherWeights.read("1 2.0 1.0 1.5 4:4 0:4", bytes(16), 16).directions == 1
    with pytest.raises(InputError, match="uncertainty is damaged"):
        OtherWeights.read(text, bytes(16), 16)


def test_the_ase_calculator_of_the_file_says_the_same(models):
    posterior, path = models("mace")
    for atoms in (geometries()["a molecule in a box"], geometries()["a skewed triclinic cell"]):
        atoms.calc = pimlip_zoo.calculator(path, uncertainty=True)
        forces = atoms.get_forces()
        expected = posterior.forces_uncertainty(graph_of(atoms))
        assert atoms.calc.results["forces_uncertainty"] == pytest.approx(expected, rel=1e-8)
        atoms.calc = NativeCalculator(path)
        assert atoms.get_forces() == pytest.approx(forces, abs=1e-12)
        assert "forces_uncertainty" not in atoms.calc.results


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_a_file_without_the_shared_exponent_is_read_as_before(tmp_path, plugin, models):
    """As files were written before there was one."""
    posterior, path = models("allegro")
    content, older = read_native(path), tmp_path / "older.pimlip"
    count, factor, exponent, quantile, shared, *parts = content.others.text.split()
    assert float(shared) == 0.75
    text = " ".join([count, factor, exponent, quantile, *parts])
    assert OtherWeights.read(text, content.others.content, len(content.weights)).shared == 0.0
    write_native(older, replace(content, metadata={**content.metadata, KEY: text}))
    atoms, found = geometries()["a bulk crystal"], posterior.forces
    with_it = posterior.forces_uncertainty(graph_of(atoms))
    bare = Posterior(posterior.layer.potential, posterior.root, posterior.energy, replace(found, shared=0.0))
    expected = bare.forces_uncertainty(graph_of(atoms))
    assert not np.allclose(with_it, expected, rtol=0.01)
    rows = in_lammps(tmp_path, atoms, older, plugin)
    assert np.abs(rows[:, 1] - expected).max() < 1e-8 * expected.max()
    atoms.calc = NativeCalculator(older, uncertainty=True)
    atoms.get_forces()
    assert atoms.calc.results["forces_uncertainty"] == pytest.approx(expected, rel=1e-8)
