"""Exported TorchScript files: what they say of themselves, and that a wrong one is never written."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.module import PairStyleModule
from pimlip_zoo.deploy.selfcheck import ExportError, check_structures
from pimlip_zoo.deploy.torchscript import export_torchscript, load_torchscript
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
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


def test_the_file_is_frozen_and_survives_another_freeze(tmp_path):
    path = tmp_path / "model.nequip.pth"
    export_torchscript(springs(), path)
    module = torch.jit.load(str(path))
    assert not module._c.hasattr("training")
    assert not list(module.parameters())


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
