"""Tables in native models: as near to the model as was asked for, and forces that are derivatives of the energy."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import pimlip_zoo as pz
from pimlip_zoo.cli.export import ExportFormat, export_potential
from pimlip_zoo.compiled.kernels import sum_by_centre
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.native.evaluation import steps_of
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.deploy.native.lengths import find_length_functions
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.mlp import ScalarMLP
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing import structure

pytestmark = pytest.mark.compiler

SPECIES = ("H", "C", "O")
MODELS = {
    "nequip": {"channels": 4, "radial_hidden": (8,), "num_layers": 2},
    "nequip pair cutoffs": {
        "channels": 2,
        "radial_hidden": (8,),
        "num_layers": 1,
        "l_max": 1,
        "species_cutoffs": (("H", "H", 2.2), ("O", "H", 3.1)),
    },
    "allegro": {"scalar_channels": 8, "tensor_channels": 4, "l_max": 1, "latent_hidden": (8,)},
    "allegro residual": {"scalar_channels": 6, "tensor_channels": 3, "l_max": 1, "update": "residual"},
    "mace": {"channels": 4, "l_max": 2, "radial_hidden": (8, 8), "correlation": 2},
    "mace agnesi": {
        "channels": 3,
        "l_max": 1,
        "radial_hidden": (8,),
        "correlation": 2,
        "normalization": "density",
        "distance_transform": "agnesi",
    },
}


def build(name: str, dtype=torch.float64) -> Potential:
    torch.manual_seed(0)
    info = get_model(name.split(maxsplit=1)[0])
    config = info.configure(**MODELS[name], cutoff=4.0, avg_num_neighbors=6.0)
    references, scale = torch.tensor([-1.0, -200.0, -3.0]), torch.tensor([0.7, 1.3, 2.1])
    potential = Potential(info.model(config, SPECIES), energy_references=references, scale=scale)
    return potential.set_dtype(dtype).eval()


def stated(path) -> dict:
    return json.loads(read_metadata(path)["radial_table"])


def with_calculator(name, calculator):
    atoms = frame_to_atoms(structure(name, SPECIES))
    atoms.calc = calculator
    return atoms


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """Tables so coarse that they are seen to be tables."""
    path = tmp_path_factory.mktemp("native") / "model.pimlip"
    potential = build("nequip")
    export_native(potential, path, table=1e-3)
    return potential, path


@pytest.mark.parametrize(
    "name", [n if n in ("nequip", "allegro") else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_a_file_is_as_near_to_the_model_as_was_asked_for(name, tmp_path):
    potential, path = build(name), tmp_path / "model.pimlip"
    export_native(potential, path, table=1e-7)
    said = stated(path)
    assert 0 < max(said["energy_error_eV"], said["force_error_eV_per_A"]) <= 1e-7
    assert said["species_pairs"] == (1 if name in ("nequip", "mace") else 9)
    for frame in ("molecule", "left_handed"):
        exact, found = (
            with_calculator(frame, PimlipCalculator(potential)),
            with_calculator(frame, pz.calculator(path)),
        )
        largest = max(1.0, np.abs(exact.get_forces()).max())
        assert np.abs(exact.get_forces() - found.get_forces()).max() < 1e-7 * largest
        np.testing.assert_allclose(
            found.get_potential_energies(), exact.get_potential_energies(), rtol=0, atol=1e-7 * largest
        )


def test_less_error_takes_more_knots(coarse, tmp_path):
    potential, path = coarse
    export_native(potential, tmp_path / "fine.pimlip", table=1e-9)
    few, many = stated(path), stated(tmp_path / "fine.pimlip")
    assert many["intervals"] > few["intervals"]
    assert many["force_error_eV_per_A"] <= 1e-9 < few["force_error_eV_per_A"] <= 1e-3


@pytest.mark.parametrize("name", ["molecule", "left_handed"])
def test_forces_and_stress_are_derivatives_of_the_tabulated_energy(coarse, name):
    atoms = with_calculator(name, pz.calculator(coarse[1], skin=0.0))
    start, forces = atoms.positions.copy(), atoms.get_forces()
    step, direction = 1e-3, np.random.default_rng(0).normal(size=start.shape)

    def energy(n):
        atoms.positions = start + n * step * direction
        return atoms.get_potential_energy() - energy_at_start

    energy_at_start = atoms.get_potential_energy()
    slope = (8 * (energy(1) - energy(-1)) - (energy(2) - energy(-2))) / (12 * step)
    assert slope == pytest.approx(-(forces * direction).sum(), abs=1e-8)


def test_single_precision_has_tables_too(tmp_path):
    potential, path = build("mace", torch.float32), tmp_path / "model.pimlip"
    report = export_native(potential, path, table=1e-4)
    assert report.deviation < 1e-5  # of the file from the tables that it was made from
    assert 0 < stated(path)["force_error_eV_per_A"] <= 1e-4


def test_what_rounding_forbids_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"1e-09 was allowed; most of that is rounding") as refused:
        export_native(build("nequip", torch.float32), tmp_path / "model.pimlip", table=1e-9)
    assert "--dtype float64" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_an_error_that_no_table_has_is_refused(tmp_path):
    with pytest.raises(InputError, match="tables of 4096 intervals are off by"):
        export_native(build("nequip"), tmp_path / "model.pimlip", table=1e-30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [0.0, -1e-4, float("nan")])
def test_an_error_that_is_no_error_is_refused(tmp_path, error):
    with pytest.raises(InputError, match="cannot be made"):
        export_native(build("nequip"), tmp_path / "model.pimlip", table=error)


def test_other_formats_have_no_tables(tmp_path):
    with pytest.raises(InputError, match="has no tables") as refused:
        export_potential(build("nequip"), tmp_path / "x.pth", format=ExportFormat.torchscript, table=1e-4)
    assert "--format native" in str(refused.value)


class Neighbourhood(AtomicEnergyModel):
    """A perceptron on sums over neighbours: nothing learned is a function of one length."""

    def __init__(self, config, species):
        super().__init__(config, species)
        self.edges = EdgeEmbedding(species, cutoff=config.cutoff, l_max=1, num_basis=4)
        self.readout = ScalarMLP((4, 6, 1))

    def forward(self, graph, vectors):
        radial, _ = self.edges(vectors, graph)
        total = sum_by_centre(radial, graph.edge_index[0], graph.species.shape[0])
        return self.readout(total).squeeze(-1)


def test_a_model_without_functions_of_lengths_is_refused(tmp_path):
    potential = Potential(Neighbourhood(ModelConfig(cutoff=4.0), SPECIES)).set_dtype(torch.float64).eval()
    with pytest.raises(InputError, match="nothing in this model is a function of distances alone"):
        export_native(potential, tmp_path / "model.pimlip", table=1e-4)


class Counting(Neighbourhood):
    """What a perceptron makes of a length, times how many neighbours there are."""

    def __init__(self, config, species):
        super().__init__(config, species)
        self.weigh = ScalarMLP((4, 6, 4))
        self.shift = nn.Parameter(torch.tensor(0.1))

    def forward(self, graph, vectors):
        radial, _ = self.edges(vectors, graph)
        centre, count = graph.edge_index[0], graph.species.shape[0]
        number = sum_by_centre(torch.ones_like(radial[:, :1]), centre, count)[centre]
        weighed = self.weigh(radial) * (self.shift * number)
        return self.readout(sum_by_centre(weighed, centre, count)).squeeze(-1)


def test_what_depends_on_more_than_a_length_is_computed(tmp_path):
    potential = Potential(Counting(ModelConfig(cutoff=4.0), SPECIES)).set_dtype(torch.float64).eval()
    found = find_length_functions(potential, steps_of(potential))
    assert found.shapes == ((4,),)  # the perceptron, and not its product with the number of neighbours
    assert not found.by_species
    assert export_native(potential, tmp_path / "model.pimlip", table=1e-6).deviation < 1e-10
