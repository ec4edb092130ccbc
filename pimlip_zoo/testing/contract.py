"""The contract of an architecture: symmetry, derivatives, locality, shapes, physics, scripting, learning.

The class is collected by pytest through a subclass that names a registered model. Tolerances are those of float64
unless a test says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import AtomGraph, Predictions, collate, edge_vectors, graph_to, sum_by_structure
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.testing.structures import STRUCTURES, as_graph, structure

PERIODIC = ("crystal", "triclinic", "left_handed", "thin")


class ArchitectureContract:
    """Tests of one registered architecture; subclass it and set :attr:`model`."""

    model: ClassVar[str] = "nequip"
    """Registered name."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options that make the model small, so that the tests are fast."""
    species: ClassVar[Sequence[str]] = ("H", "C", "O")
    """At least two."""

    # ---- symmetry

    def test_rotations_reflections_and_translations_turn_the_forces_and_leave_the_energy(self) -> None:
        for potential, tolerance in self.precisions(1e-9):
            for name in ("molecule", "triclinic", "slab"):
                frame = structure(name, self.species)
                before = self.predict(potential, frame)
                for seed, sign in ((1, 1.0), (2, -1.0)):
                    rotation = _orthogonal(seed, sign)
                    moved = replace(
                        frame, positions=frame.positions @ rotation.T + 0.37, cell=frame.cell @ rotation.T
                    )
                    after = self.predict(potential, moved)
                    turn = torch.as_tensor(rotation)
                    _close(after.energy, before.energy, tolerance)
                    _close(after.forces, before.forces @ turn.T, tolerance)
                    _close(after.virial, turn @ before.virial @ turn.T, tolerance)

    def test_permuting_atoms_permutes_the_forces(self) -> None:
        for potential, tolerance in self.precisions(1e-10):
            frame = structure("triclinic", self.species)
            order = np.random.default_rng(0).permutation(len(frame.numbers))
            before = self.predict(potential, frame)
            after = self.predict(
                potential, replace(frame, numbers=frame.numbers[order], positions=frame.positions[order])
            )
            _close(after.energy, before.energy, tolerance)
            _close(after.forces, before.forces[torch.as_tensor(order)], tolerance)

    # ---- derivatives

    def test_forces_are_the_derivative_of_the_energy(self) -> None:
        potential = self.potential()
        for name in ("molecule", "thin"):
            frame = structure(name, self.species)
            forces = self.predict(potential, frame).forces
            for atom in range(min(len(frame.numbers), 3)):
                for axis in range(3):
                    slope = _slope(lambda h: self._energy_at(potential, frame, atom, axis, h))  # noqa: B023
                    _close(forces[atom, axis], -slope, 1e-7)

    def test_virial_is_the_derivative_by_strain(self) -> None:
        potential = self.potential()
        for name in ("triclinic", "left_handed", "thin"):
            frame = structure(name, self.species)
            virial = self.predict(potential, frame).virial[0]
            for i, j in ((0, 0), (1, 2), (0, 2)):
                slope = _slope(lambda h: self._energy_strained(potential, frame, i, j, h))  # noqa: B023
                _close(virial[i, j], -slope, 1e-7)

    def test_a_loss_on_forces_has_the_right_gradient(self) -> None:
        potential = self.potential(train=True)
        graph = as_graph(structure("molecule", self.species), self.species, potential.cutoff)
        loss = potential(graph).forces.square().sum()
        loss.backward()
        gradients = [(p, p.grad) for p in potential.model.parameters() if p.grad is not None]
        parameter, largest = max(gradients, key=lambda pair: float(pair[1].abs().max()))
        assert torch.isfinite(largest).all()
        place = int(largest.abs().argmax())
        gradient = largest.flatten()[place]
        values = []
        for h in (1e-5, -2e-5):
            with torch.no_grad():
                parameter.view(-1)[place] += h
            values.append(potential(graph).forces.square().sum().detach())
        _close(gradient, (values[0] - values[1]) / 2e-5, 1e-6 * max(1.0, float(gradient.abs())))

    def test_forces_can_be_differentiated_by_positions(self) -> None:
        potential = self.potential()
        graph = as_graph(structure("molecule", self.species), self.species, potential.cutoff)
        positions = graph.positions.clone().requires_grad_(True)
        forces = potential(graph._replace(positions=positions)).forces
        (hessian_row,) = torch.autograd.grad(forces[0, 0], positions)
        assert torch.isfinite(hessian_row).all()
        shifted = [
            potential(graph._replace(positions=_moved(graph.positions, 1, 2, h))).forces
            for h in (1e-5, -1e-5)
        ]
        _close(hessian_row[1, 2], (shifted[0] - shifted[1])[0, 0] / 2e-5, 1e-6)

    # ---- locality

    def test_edges_beyond_the_cutoff_change_nothing(self) -> None:
        for potential, tolerance in self.precisions(1e-12):
            for name in ("molecule", "triclinic"):
                frame = structure(name, self.species)
                near = potential(as_graph(frame, self.species, potential.cutoff))
                far = potential(as_graph(frame, self.species, potential.cutoff + 1.5))
                _close(far.energy, near.energy, tolerance)
                _close(far.forces, near.forces, tolerance)
                _close(far.virial, near.virial, tolerance)

    def test_energy_force_and_its_derivative_vanish_smoothly_at_the_cutoff(self) -> None:
        potential = self.potential()
        alone = self.predict(potential, _dimer(self.species, potential.cutoff + 1.0))
        for gap, bound in ((1e-2, 1e-3), (1e-3, 1e-5), (1e-5, 1e-9)):
            pair = self.predict(potential, _dimer(self.species, potential.cutoff - gap))
            assert abs(float(pair.energy - alone.energy)) < bound
            assert float(pair.forces.abs().max()) < bound
        _close(alone.forces, torch.zeros_like(alone.forces), 0.0)
        graph = as_graph(_dimer(self.species, potential.cutoff - 1e-5), self.species, potential.cutoff)
        positions = graph.positions.requires_grad_(True)
        forces = potential(graph._replace(positions=positions)).forces
        for force in forces.flatten():
            (row,) = torch.autograd.grad(force, positions, retain_graph=True)
            assert float(row.abs().max()) < 1e-3

    def test_atoms_beyond_the_receptive_field_do_not_matter(self) -> None:
        potential = self.potential()
        step = 0.95 * potential.cutoff
        count = potential.model.interaction_depth + 2
        chain = np.zeros((count, 3))
        chain[:, 0] = step * np.arange(count)
        numbers = np.resize(structure("molecule", self.species).numbers, count)
        graph = as_graph(Frame(numbers=numbers, positions=chain), self.species, potential.cutoff)
        positions = graph.positions.requires_grad_(True)
        energies = potential(graph._replace(positions=positions)).atomic_energy
        (gradient,) = torch.autograd.grad(energies[0], positions)
        _close(gradient[-1], torch.zeros(3, dtype=gradient.dtype), 0.0)

    def test_structures_of_a_batch_do_not_see_each_other(self) -> None:
        for potential, tolerance in self.precisions(1e-11):
            samples = [
                frame_to_sample(structure(name, self.species, seed=i), self.species, potential.cutoff)
                for i, name in enumerate(STRUCTURES)
            ]
            together = potential(collate(samples).graph)
            apart = [potential(sample.graph) for sample in samples]
            _close(together.energy, torch.cat([p.energy for p in apart]), tolerance)
            _close(together.forces, torch.cat([p.forces for p in apart]), tolerance)
            _close(together.virial, torch.cat([p.virial for p in apart]), tolerance)
            graph = collate(samples).graph
            positions = graph.positions.requires_grad_(True)
            energy = potential(graph._replace(positions=positions)).energy
            (gradient,) = torch.autograd.grad(energy[0], positions)
            _close(gradient[graph.batch > 0], torch.zeros_like(gradient[graph.batch > 0]), 0.0)

    # ---- shapes

    def test_every_kind_of_structure_is_valid_and_left_as_it_was(self) -> None:
        for dtype in (torch.float64, torch.float32):
            potential = self.potential(dtype=dtype)
            for name in STRUCTURES:
                graph = as_graph(structure(name, self.species), self.species, potential.cutoff)
                before = copy.deepcopy(graph)
                result = potential(graph)
                assert result.energy.shape == (1,)
                assert result.forces.shape == graph.positions.shape
                assert result.virial.shape == (1, 3, 3)
                assert all(torch.isfinite(value).all() for value in result)
                assert torch.equal(before.positions, graph.positions)
                assert torch.equal(before.edge_index, graph.edge_index)
                assert torch.equal(before.cell, graph.cell)

    def test_no_atoms_at_all_is_a_batch_of_nothing(self) -> None:
        potential = self.potential()
        graph = as_graph(structure("atom", self.species), self.species, potential.cutoff)
        empty = AtomGraph(
            graph.positions[:0],
            graph.species[:0],
            graph.edge_index,
            graph.edge_shift,
            graph.cell[:0],
            graph.batch[:0],
            0,
        )
        result = potential(empty)
        assert result.energy.shape == (0,)
        assert result.forces.shape == (0, 3)

    # ---- physics

    def test_an_isolated_atom_has_its_reference_energy(self) -> None:
        for potential, tolerance in self.precisions(1e-12):
            for index, symbol in enumerate(self.species):
                frame = structure("atom", [symbol])
                result = self.predict(potential, frame)
                _close(result.forces, torch.zeros_like(result.forces), 0.0)
                if self.atoms_apart_have_reference_energies:
                    _close(result.energy, potential.energy_references[index : index + 1], tolerance)
                else:
                    moved = self.predict(potential, replace(frame, positions=frame.positions + 1.3))
                    _close(result.energy, moved.energy, 0.0)

    def test_a_supercell_has_the_energy_of_its_cells(self) -> None:
        from ase import Atoms

        for potential, tolerance in self.precisions(1e-9):
            for name in PERIODIC:
                frame = structure(name, self.species)
                atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=True)
                atoms = atoms * (2, 1, 2)
                large = Frame(
                    numbers=atoms.numbers.astype(np.int64),
                    positions=atoms.positions,
                    cell=atoms.cell.array,
                    pbc=frame.pbc,
                )
                energy = self.predict(potential, large).energy
                _close(energy, 4 * self.predict(potential, frame).energy, tolerance)

    def test_separated_fragments_add_up(self) -> None:
        for potential, tolerance in self.precisions(1e-10):
            frame = structure("molecule", self.species)
            far = frame.positions + np.array([3 * potential.cutoff + 5.0, 0, 0])
            pair = Frame(
                numbers=np.concatenate([frame.numbers] * 2), positions=np.concatenate([frame.positions, far])
            )
            energy = self.predict(potential, pair).energy
            _close(energy, 2 * self.predict(potential, frame).energy, tolerance)

    # ---- precision, scripting, learning

    def test_float32_agrees_with_float64(self) -> None:
        double = self.potential()
        single = copy.deepcopy(double).set_dtype(torch.float32)
        graph = as_graph(structure("triclinic", self.species), self.species, double.cutoff)
        a, b = double(graph), single(graph)
        scale = max(1.0, float(a.forces.detach().abs().max()))
        _close(b.energy, a.energy, 1e-4 * scale)
        _close(b.forces, a.forces, 1e-4 * scale)

    def test_changing_the_precision_back_and_forth_loses_no_constant(self) -> None:
        potential = self.potential()
        graph = as_graph(structure("molecule", self.species), self.species, potential.cutoff)
        weights = copy.deepcopy(potential.state_dict())
        before = potential(graph)
        potential.set_dtype(torch.float32).set_dtype(torch.float64)
        potential.load_state_dict(weights)
        _close(potential(graph).energy, before.energy, 1e-12)

    def test_scripted_saved_and_loaded_it_is_the_same_function(self) -> None:
        import io

        potential = self.potential()
        model = potential.model.eval()
        buffer = io.BytesIO()
        scripted = torch.jit.script(model)
        torch.jit.save(torch.jit.freeze(scripted) if not model.training else scripted, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        for name in ("molecule", "triclinic", "atom"):
            graph = as_graph(structure(name, self.species), self.species, potential.cutoff)
            vectors = edge_vectors(graph).requires_grad_(True)
            # Several times: TorchScript makes its own derivatives only after it has seen a few calls.
            for _ in range(3):
                energies = [function(graph, vectors) for function in (model, loaded)]
                _close(energies[1], energies[0], 1e-12)
                if len(vectors) > 0:
                    gradients = [torch.autograd.grad(energy.sum(), vectors)[0] for energy in energies]
                    _close(gradients[1], gradients[0], 1e-11)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_compiled_it_is_the_same_function(self, dtype: torch.dtype) -> None:
        exact = self.potential().model.eval()
        model = copy.deepcopy(exact).to(dtype)
        torch.compiler.reset()
        compiled = torch.compile(model)
        for name in ("molecule", "triclinic"):
            graph = as_graph(structure(name, self.species), self.species, model.cutoff)
            reference, plain, made = (
                _energies_and_gradient(function, graph, vectors)
                for function, vectors in (
                    (exact, edge_vectors(graph)),
                    (model, edge_vectors(graph).to(dtype)),
                    (compiled, edge_vectors(graph).to(dtype)),
                )
            )
            for truth, ours, theirs in zip(reference, plain, made, strict=True):
                scale = max(1.0, float(truth.abs().max()))
                if dtype == torch.float64:
                    _close(theirs, ours, 1e-12 * scale)
                    continue
                # Of two orders of the same sums neither is nearer to the truth: it may err as the other does.
                rounding = float((ours.double() - truth).abs().max())
                error = float((theirs.double() - truth).abs().max())
                assert error <= 3.0 * rounding + 4.0 * torch.finfo(dtype).eps * scale, (error, rounding)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
    def test_a_gpu_computes_what_the_cpu_computes(self) -> None:
        for potential, tolerance in self.precisions(1e-9):
            graph = as_graph(structure("triclinic", self.species), self.species, potential.cutoff)
            on_cpu = potential(graph)
            on_gpu = potential.cuda()(graph_to(graph, "cuda"))
            for name in ("energy", "forces", "virial"):
                _close(getattr(on_gpu, name).cpu(), getattr(on_cpu, name), tolerance)

    def test_it_learns_five_structures_by_heart(self) -> None:
        torch.manual_seed(0)
        potential = self.potential(train=True)
        names = ("molecule", "crystal", "triclinic", "dimer", "slab")
        batch = collate(
            [frame_to_sample(structure(n, self.species), self.species, potential.cutoff) for n in names]
        )
        with torch.no_grad():
            references = sum_by_structure(potential.energy_references[batch.graph.species], batch.graph)
        target = references + torch.randn(5, dtype=torch.float64)
        optimizer = torch.optim.Adam(potential.model.parameters(), lr=0.01)
        first = last = float("inf")
        for step in range(300):
            optimizer.zero_grad()
            energy = potential(batch.graph, forces=False, virial=False).energy
            loss = (energy - target).square().mean()
            loss.backward()
            optimizer.step()
            last = float(loss.detach())
            first = last if step == 0 else first
        assert last < 1e-3 * max(first, 1.0)

    def test_direct_forces_turn_with_the_structure(self) -> None:
        if not self.offers_direct_head:
            return
        potential = self.potential(force_head="direct")
        frame = structure("triclinic", self.species)
        rotation = _orthogonal(5, -1.0)
        before = self.predict(potential, frame)
        after = self.predict(
            potential, replace(frame, positions=frame.positions @ rotation.T, cell=frame.cell @ rotation.T)
        )
        assert float(before.forces.abs().max()) > 0
        _close(after.forces, before.forces @ torch.as_tensor(rotation).T, 1e-9)
        atom = self.predict(potential, structure("atom", self.species))
        _close(atom.forces, torch.zeros_like(atom.forces), 1e-12)

    # ---- how

    offers_direct_head: ClassVar[bool] = True
    """Whether ``force_head="direct"`` is an option of the architecture."""

    atoms_apart_have_reference_energies: ClassVar[bool] = True
    """Whether an atom without neighbours has its reference energy; if not, another one of its species alone."""

    def potential(
        self, *, dtype: torch.dtype = torch.float64, train: bool = False, **options: Any
    ) -> Potential:
        """A small potential with random weights and references that differ by species."""
        torch.manual_seed(1)
        info = get_model(self.model)
        config = info.configure(**{"avg_num_neighbors": 6.0, **self.options, **options})
        references = -1.5 - torch.arange(len(self.species), dtype=torch.float64)
        model = info.model(config, tuple(self.species)).to(dtype)
        potential = Potential(model, energy_references=references, scale=0.7)
        return potential.train(train)

    def precisions(self, tolerance: float) -> Iterator[tuple[Potential, float]]:
        """The potential in float64 with that tolerance, and in float32 with 1e-4."""
        yield self.potential(), tolerance
        yield self.potential(dtype=torch.float32), 1e-4

    def predict(self, potential: Potential, frame: Frame) -> Predictions:
        """Evaluate without keeping the graph of derivatives."""
        with torch.no_grad():
            return potential(as_graph(frame, self.species, potential.cutoff))

    def _energy_at(self, potential: Potential, frame: Frame, atom: int, axis: int, h: float) -> Tensor:
        positions = frame.positions.copy()
        positions[atom, axis] += h
        return self.predict(potential, replace(frame, positions=positions)).energy[0]

    def _energy_strained(self, potential: Potential, frame: Frame, i: int, j: int, h: float) -> Tensor:
        strain = np.eye(3)
        strain[i, j] += h / 2
        strain[j, i] += h / 2
        strained = replace(frame, positions=frame.positions @ strain, cell=frame.cell @ strain)
        return self.predict(potential, strained).energy[0]


def _slope(function: Callable[[float], Tensor], h: float = 3e-4) -> Tensor:
    """Central difference of fourth order."""
    near, far = function(h) - function(-h), function(2 * h) - function(-2 * h)
    return (8.0 * near - far) / (12.0 * h)


def _energies_and_gradient(
    function: Callable[[AtomGraph, Tensor], Tensor], graph: AtomGraph, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies of atoms, and the gradient of their sum by the edge vectors."""
    vectors = vectors.detach().requires_grad_(True)
    energies = function(graph, vectors)
    return energies.detach(), torch.autograd.grad(energies.sum(), vectors)[0]


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        actual.to(torch.float64), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


def _moved(positions: Tensor, atom: int, axis: int, h: float) -> Tensor:
    moved = positions.clone()
    moved[atom, axis] += h
    return moved


def _orthogonal(seed: int, sign: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * (sign / np.sign(np.linalg.det(matrix)))


def _dimer(species: Sequence[str], distance: float) -> Frame:
    numbers = structure("molecule", species).numbers[:2]
    direction = np.array([1.0, 2.0, -2.0]) / 3.0
    return Frame(numbers=numbers, positions=np.stack([np.zeros(3), distance * direction]))
