"""What is compiled when: everything that a step needs, together, before the first one."""

import os
import time

import pytest
import torch
from torch import nn

from pimlip_zoo.compiled.kernels import build, library
from pimlip_zoo.compiled.kernels.generate import kernel_head, prelude
from pimlip_zoo.compiled.sweeps import Levels, predict_structures, sweeps_of
from pimlip_zoo.compiled.sweeps.run import _build_quietly as build_quietly
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import collate
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing.structures import STRUCTURES, structure

pytestmark = pytest.mark.compiler
SPECIES = ("H", "C", "O")
OPTIONS = {
    "nequip": {"num_layers": 2, "channels": 4, "l_max": 1},
    "allegro": {"l_max": 1, "scalar_channels": 8, "tensor_channels": 3},
    "mace": {"channels": 3, "l_max": 1, "correlation": 2, "radial_hidden": (8,)},
}


def batch():
    frames = [structure(name, SPECIES) for name in STRUCTURES]
    return collate([frame_to_sample(frame, SPECIES, 3.5) for frame in frames]).graph


@pytest.mark.parametrize("name", sorted(OPTIONS))
@pytest.mark.parametrize("training", [True, False])
def test_a_step_compiles_nothing_that_was_not_compiled_before_it(name, training, monkeypatch):
    info, graph = get_model(name), batch()
    model = info.model(info.configure(**OPTIONS[name], cutoff=3.5, avg_num_neighbors=5.0), SPECIES)
    with torch.set_grad_enabled(training):
        sweeps = sweeps_of(model, torch.float32)
        monkeypatch.setattr(library, "compile_kernels", lambda sources: pytest.fail("compiled in a step"))
        ones = torch.ones(len(graph.species), dtype=torch.float64)
        levels = Levels(ones, torch.zeros_like(ones))
        found = predict_structures(sweeps, graph, levels, torch.float32, forces=True, virial=False)
        if training:
            (found.energy.square().sum() + found.forces.square().sum()).backward()


class WithMemory(AtomicEnergyModel):
    """Changes its buffers and draws random numbers whenever it trains."""

    def __init__(self):
        super().__init__(ModelConfig(cutoff=3.5), SPECIES)
        self.edges = EdgeEmbedding(SPECIES, cutoff=3.5, l_max=1, num_basis=4)
        self.normal, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)

    def forward(self, graph, vectors):
        radial, _ = self.edges(vectors, graph)
        message = self.drop(self.normal(radial))
        atoms = message.new_zeros((graph.species.shape[0], 4)).index_add(0, graph.edge_index[0], message)
        return self.head(atoms).squeeze(-1)


def test_finding_out_what_to_compile_changes_neither_buffers_nor_random_numbers():
    model = WithMemory().train()
    before, state = [b.clone() for b in model.buffers()], torch.get_rng_state()
    assert sweeps_of(model, torch.float32) is not None
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def source(dtype, factor):
    machine = build.target(dtype)
    helper = f"static T times(T x) {{ return {factor} * x; }}"
    loop = "for (int64_t i = 0; i < rows; i++) out0[i] = times(x0[i]);"
    return "\n".join([*prelude(machine, [machine.lanes]), helper, *kernel_head(), loop, "}", ""])


class Scaled(library.KernelLibrary):
    def source(self, kernel, machine):
        return source(*kernel)


def test_kernels_of_one_file_keep_their_own_types_and_helpers(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = [(dtype, factor) for dtype in (torch.float32, torch.float64) for factor in (2, 3)]
    kernels = Scaled(torch.float32)
    kernels.prepare(*wanted)
    assert len(list(tmp_path.rglob("*.so"))) == 4
    assert len({path.stat().st_ino for path in tmp_path.rglob("*.so")}) == 1
    for dtype, factor in wanted:
        x, out = torch.randn(5, dtype=dtype), torch.empty(5, dtype=dtype)
        kernels.call(
            (dtype, factor),
            rows=5,
            work=0,
            lists=(None,) * 3,
            operands=(x, *(None,) * 7),
            results=(out, None, None),
        )
        assert torch.equal(out, factor * x)


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build.os, "link", refuse)
    build.compile_kernels([source(torch.float32, factor) for factor in (2, 3)])
    assert len({path.stat().st_ino for path in tmp_path.rglob("*.so")}) == 2


def test_kernels_that_nobody_loads_for_months_are_removed_when_others_are_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for factor in (2, 3):
        build.compile_kernels([source(torch.float32, factor)])
    long_ago = time.time() - 100 * 86_400
    for path in build.cache_folder().glob("*.so"):
        os.utime(path, (long_ago, long_ago))
    # One of the old ones is wanted again beside a new one.
    kernels = build.compile_kernels([source(torch.float32, factor) for factor in (2, 4)])
    left = list(build.cache_folder().glob("*.so"))
    assert len(kernels) == len(left) == 2
    assert all(path.stat().st_mtime > long_ago + 86_400 for path in left)


def test_a_kernel_that_cannot_be_compiled_is_an_error_that_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.CompilerError, match=r"failed: .*error"):
        build.compile_kernels([source(torch.float32, 2), source(torch.float32, "no such name")])
    assert not list(tmp_path.rglob("*.so"))


def test_what_is_compiled_ahead_is_waited_for_and_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    placed, place = [], build._place
    monkeypatch.setattr(build, "_place", lambda built, path: (placed.append(path.name), place(built, path)))
    info = get_model("nequip")
    # No other test has these numbers of channels: nothing is loaded yet.
    config = info.configure(num_layers=1, channels=7, l_max=1, cutoff=3.5, avg_num_neighbors=5.0)
    potential = Potential(info.model(config, SPECIES))
    potential.compile_ahead()
    assert sweeps_of(potential.model, torch.float32) is not None
    assert len(placed) > 10
    assert len(placed) == len(set(placed))


def test_a_compiler_that_is_missing_is_no_matter_ahead(monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    build.compiler.cache_clear()
    try:
        build_quietly([(Scaled(torch.float32), (torch.float32, 2))])
    finally:
        build.compiler.cache_clear()
    assert not caplog.records
