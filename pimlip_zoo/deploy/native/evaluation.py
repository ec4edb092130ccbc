"""What is recorded of a potential: its energies and their gradient by edge vectors, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.build import CompilerError
from pimlip_zoo.compiled.native.program import Program
from pimlip_zoo.compiled.native.record import MEND, Evaluate, record
from pimlip_zoo.compiled.sweeps.pairs import share_radial
from pimlip_zoo.compiled.sweeps.run import Sweeps
from pimlip_zoo.compiled.sweeps.trace import Trace, trace_model
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.mlp import keep_slopes

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential


def steps_of(potential: Potential) -> Trace:
    """The steps of a potential's model, what opposite edges share and what perceptrons keep marked.

    Raises:
        InputError: when it cannot be taken apart.
    """
    if potential.is_direct:
        raise InputError("a direct force head has no native form", key="format", hint=MEND)
    trace = trace_model(potential.model)
    if trace is None:
        raise InputError(
            f"{type(potential.model).__name__} cannot be taken apart into steps", key="format", hint=MEND
        )
    share_radial(trace)
    keep_slopes(trace)
    return trace


def evaluation(potential: Potential, trace: Trace) -> Evaluate:
    """A potential evaluated by these steps of its model.

    Raises:
        InputError: when their kernels cannot be compiled.
    """
    repulsion, dtype = potential.repulsion, potential.model.dtype
    try:
        sweeps = Sweeps(potential.model, trace, share=False).prepare(training=False)
    except CompilerError as error:
        raise InputError(
            f"a native model needs a C compiler: {error}",
            key="format",
            hint="install gcc or clang, or use torchscript",
        ) from error
    scales, references = potential.scale.detach(), potential.energy_references.detach()

    def evaluate(
        vectors: Tensor, edge_index: Tensor, species: Tensor, is_local: Tensor
    ) -> tuple[Tensor, ...]:
        zeros = torch.zeros((len(species), 3), dtype=torch.float64)
        cell = torch.zeros((1, 3, 3), dtype=torch.float64)
        # Edges are opposite when their vectors are: these stand in for cell shifts.
        graph = AtomGraph(zeros, species, edge_index, vectors, cell, torch.zeros_like(species), 1)
        tape = sweeps.forward(graph, vectors.to(dtype))
        scale = scales[species]
        energy = scale * tape.values[sweeps.trace.result].to(torch.float64) + references[species]
        gradient = sweeps.adjoint(tape, (scale * is_local).to(dtype)).to(torch.float64)
        if repulsion is not None:
            with torch.enable_grad():
                leaf = vectors.detach().requires_grad_()
                added = repulsion(graph, leaf)
                (of_pairs,) = torch.autograd.grad((added * is_local).sum(), leaf)
            energy, gradient = energy + added.detach(), gradient + of_pairs
        return energy, gradient

    return evaluate


def recorded(potential: Potential, trace: Trace) -> Program:
    """A potential's energies and edge gradient as a program.

    Args:
        potential: what is evaluated.
        trace: the steps of its model, those of :func:`steps_of` or others in their place.

    Raises:
        InputError: when it cannot be written as one.
    """
    return record(
        evaluation(potential, trace),
        potential.model.dtype,
        cutoff=potential.cutoff,
        num_species=len(potential.species),
    )
