"""Exported TorchScript files: what they say of themselves, and that a wrong one is never written."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.module import PairStyleModule
from pimlip_zoo.deploy.selfcheck import ExportError, check_structures, position_inputs
from pimlip_zoo.deploy.torchscript import export_torchscript, load_torchscript
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, stress_from_virial
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import available_models


class Springs(AtomicEnergyModel):
    """Pairs; ``script_error`` is added by the scripted code alone, as an export that went wrong would."""

    def __init__(self, config, species, script_error=0.0):
        super().__init__(config, species)
        self.strength = nn.Parameter(torch.tensor([0.5, 1.5, 2.5])[: len(species)])
        self.script_error = float(script_error)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        x = (vectors * vectors).sum(1) / self.cutoff**2
        pairs = self.strength[graph.species[graph.edge_index[1]]] * (1.0 - x).clamp(min=0.0) ** 3
        if torch.jit.is_scripting():
            pairs = pairs * (1.0 + self.script_error)
        energy = torch.zeros(graph.species.shape[0], dtype=pairs.dtype, device=pairs.device)
        return energy.index_add(0, graph.edge_index[0], pairs)


class Unscriptable(Springs):
    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        energies = {**{"energy": vectors[:, 0]}}  # noqa: PIE800
        return energies["energy"]


def springs(**options) -> Potential:
    return Potential(
        Springs(ModelConfig(cutoff=3.0), ("H", "C", "O"), **options),
        energy_references=torch.tensor([-1.0, -2.0, -3.0]),
        scale=0.5,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_metadata_say_what_every_pair_style_asks(tmp_path, dtype):
    path = tmp_path / "model.nequip.pth"
    report = export_torchscript(springs(), path, name="springs", dtype=dtype, training={"steps": 12})
    metadata = read_metadata(path)
    assert metadata == report.metadata
    assert float(metadata["r_max"]) == 3.0
    assert metadata["type_names"] == "H C O"
    assert metadata["num_types"] == metadata["n_species"] == "3"
    assert metadata["allow_tf32"] == "0"
    assert metadata["nequip_version"]
    assert metadata["model_name"] == "springs"
    assert metadata["model_dtype"] == str(dtype).removeprefix("torch.")
    assert json.loads(metadata["model_config"])["cutoff"] == 3.0
    assert json.loads(metadata["training"]) == {"steps": 12}
    assert len(metadata["weights_sha256"]) == 64


def test_the_hash_tells_weights_apart(tmp_path):
    first = export_torchscript(springs(), tmp_path / "a.nequip.pth").metadata["weights_sha256"]
    again = export_torchscript(springs(), tmp_path / "b.nequip.pth").metadata["weights_sha256"]
    changed = springs()
    with torch.no_grad():
        changed.model.strength[1] += 1e-6
    other = export_torchscript(changed, tmp_path / "c.nequip.pth").metadata["weights_sha256"]
    assert first == again
    assert first != other


@pytest.mark.parametrize(("error", "dtype"), [(1e-8, torch.float64), (2e-3, torch.float32)])
def test_a_file_that_differs_is_not_written(tmp_path, error, dtype):
    path = tmp_path / "model.nequip.pth"
    path.write_text("the one before")
    with pytest.raises(ExportError, match="the exported model differs"):
        export_torchscript(springs(script_error=error), path, dtype=dtype)
    assert path.read_text() == "the one before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_potential_is_left_as_it_was(tmp_path):
    potential = springs()
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    training = potential.training
    export_torchscript(potential, tmp_path / "model.nequip.pth", dtype=torch.float64)
    assert potential.training == training
    assert potential.model.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in potential.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in potential.state_dict().items())


def test_an_architecture_that_cannot_be_scripted_is_refused_in_one_line(tmp_path):
    potential = Potential(Unscriptable(ModelConfig(cutoff=3.0), ("H",)))
    with pytest.raises(InputError, match="Unscriptable cannot be converted to TorchScript"):
        export_torchscript(potential, tmp_path / "model.nequip.pth")


def test_paths_and_precisions_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        export_torchscript(springs(), tmp_path / "nowhere" / "model.nequip.pth")
    with pytest.raises(InputError, match=r"cannot export to torch.float16"):
        export_torchscript(springs(), tmp_path / "model.nequip.pth", dtype=torch.float16)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "model.nequip.pth"
    export_torchscript(springs(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="not a complete TorchScript file"):
        load_torchscript(path)
    with pytest.raises(InputError, match="not a complete exported model"):
        read_metadata(path)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "model.nequip.pth"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    for read in (load_torchscript, read_metadata):
        with pytest.raises(InputError, match="no metadata of pimlip-zoo"):
            read(path)


def nequip_loads(path):
    """What nequip's ASE calculator and its model for torch-sim do with a file: they freeze it whatever it is."""
    asked = {"r_max": None, "type_names": None, "per_edge_type_cutoff": None, "allow_tf32": None}
    module = torch.jit.load(str(path), _extra_files=asked, map_location="cpu")
    assert float(asked["r_max"]) == 3.0
    assert asked["type_names"].decode().split(" ") == ["H", "C", "O"]
    assert not bool(int(asked["allow_tf32"]))
    return torch.jit.freeze(module).to("cpu").eval()


def test_the_file_is_frozen_and_survives_another_freeze(tmp_path):
    path = tmp_path / "model.nequip.pth"
    export_torchscript(springs(), path)
    module = torch.jit.load(str(path))
    assert module.training is False  # asked by who freezes it again
    assert not list(module.parameters())
    graph = dict(check_structures(3.0, 3))["a periodic crystal"]
    once, twice = module(position_inputs(graph)), nequip_loads(path)(position_inputs(graph))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structures_in_a_batch_get_their_own_energies_virials_and_stresses(tmp_path, dtype):
    export_torchscript(springs(), tmp_path / "model.nequip.pth", dtype=dtype)
    module = nequip_loads(tmp_path / "model.nequip.pth")
    graphs = [graph for _, graph in check_structures(3.0, 3)]
    starts = torch.tensor([0, *(len(graph.species) for graph in graphs)]).cumsum(0)
    together = {
        "pos": torch.cat([graph.positions for graph in graphs]),
        "atom_types": torch.cat([graph.species for graph in graphs]),
        "edge_index": torch.cat([g.edge_index + n for g, n in zip(graphs, starts[:-1], strict=True)], dim=1),
        "edge_cell_shift": torch.cat([graph.edge_shift for graph in graphs]),
        "cell": torch.cat([graph.cell for graph in graphs]),
        "pbc": torch.ones((len(graphs), 3), dtype=torch.bool),
        "batch": torch.repeat_interleave(torch.arange(len(graphs)), starts.diff()),
        "num_atoms": starts.diff(),
    }
    # The order of edges is the caller's: nequip's is another one.
    mixed = torch.randperm(together["edge_index"].shape[1], generator=torch.Generator().manual_seed(0))
    together["edge_index"], together["edge_cell_shift"] = (
        together["edge_index"][:, mixed],
        together["edge_cell_shift"][mixed],
    )
    found = module(together)
    expected = springs().set_dtype(dtype)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    for number, graph in enumerate(graphs):
        right = expected(graph)
        atoms = slice(int(starts[number]), int(starts[number + 1]))
        assert torch.allclose(found["total_energy"][number], right.energy, rtol=limit, atol=limit)
        assert torch.allclose(found["forces"][atoms], right.forces, rtol=limit, atol=limit)
        assert torch.allclose(found["virial"][number], right.virial[0], rtol=limit, atol=limit)
        assert torch.allclose(found["atomic_energy"][atoms, 0], right.atomic_energy, rtol=limit, atol=limit)
        if graph.cell.any():
            stress = stress_from_virial(right.virial, graph.cell)[0]
            assert torch.allclose(found["stress"][number], stress, rtol=limit, atol=limit)
        else:
            assert found["stress"][number].isnan().all()


def test_a_molecule_of_nequips_calculator_has_no_cell_and_a_message_passing_model_takes_it(tmp_path):
    info = available_models()["nequip"]
    torch.manual_seed(0)
    potential = Potential(
        info.model(info.configure("small", cutoff=3.0, avg_num_neighbors=9.0), ("H", "C", "O"))
    )
    export_torchscript(potential, tmp_path / "model.nequip.pth", dtype=torch.float64)
    module = nequip_loads(tmp_path / "model.nequip.pth")
    graph = dict(check_structures(3.0, 3))["an open cluster"]
    data = {"pos": graph.positions, "edge_index": graph.edge_index, "atom_types": graph.species}
    found = module({**data, "pbc": torch.zeros((1, 3), dtype=torch.bool)})
    right = potential.set_dtype(torch.float64)(graph)
    assert "stress" not in found
    assert torch.allclose(found["total_energy"][0], right.energy, rtol=1e-12)
    assert torch.allclose(found["forces"], right.forces, rtol=1e-10, atol=1e-12)
    with pytest.raises(torch.jit.Error, match="pair_style allegro evaluates wrongly"):
        module(data)  # as pair_style allegro asks


def test_check_structures_cover_what_they_promise():
    graphs = dict(check_structures(3.0, 3))
    assert {len(graph.species) for graph in graphs.values()} >= {1, 2}
    assert graphs["one atom"].edge_index.shape[1] == 0
    assert graphs["atoms without edges"].edge_index.shape[1] == 0
    assert graphs["one atom and its images"].edge_index.shape[1] > 0
    thin = graphs["a skewed cell thinner than the cutoff"]
    images = thin.edge_shift[thin.edge_index[0] == thin.edge_index[1]]
    assert len(images) > 0
    for graph in graphs.values():
        assert (graph.edge_index[0].diff() >= 0).all()


@pytest.mark.parametrize("name", sorted(available_models()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_architecture_can_be_scripted(name, dtype):
    info = available_models()[name]
    potential = Potential(info.model(info.configure("small", avg_num_neighbors=9.0), ("H", "O")))
    torch.jit.freeze(torch.jit.script(PairStyleModule(potential.set_dtype(dtype).eval())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_changed_bit_of_the_weights_is_noticed(tmp_path, dtype):
    path = tmp_path / "a.nequip.pth"
    export_torchscript(springs(), path, dtype=dtype)
    raw = path.read_bytes()
    numbers = torch.tensor([0.5, 1.5, 2.5], dtype=dtype).numpy().tobytes()
    place = raw.index(numbers)
    for at in (place, place + len(numbers) - 1):
        for bit in (0, 7):
            changed = bytearray(raw)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            for reader in (load_torchscript, read_metadata):
                with pytest.raises(InputError, match=r"a\.nequip\.pth: not a complete .*CRC-32"):
                    reader(path)
