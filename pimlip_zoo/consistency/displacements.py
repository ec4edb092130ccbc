"""How atoms are displaced for the weak losses.

A displacement has no mean: a rigid shift changes no energy and would only use up the amplitude. What comes
out never exceeds ``max_displacement``, so that a neighbour list widened by ``max_relative_displacement``
holds every pair of every displaced copy.

Another distribution is another class; from outside this package by the entry-point group ``pimlip_zoo.displacements``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from pydantic import PositiveFloat
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Batch, Predictions, edge_vectors, sum_by_structure
from pimlip_zoo.losses.base import PotentialLike
from pimlip_zoo.registry import BASELINE, Registered, Registry
from pimlip_zoo.section import Section


class Context(NamedTuple):
    """What a displacement may depend on beside the structure."""

    potential: PotentialLike
    """The potential that is being trained."""
    batch: Batch
    """Structures with labels."""
    predictions: Predictions
    """Of the potential on the undisplaced structures."""


class Displacement:
    """A distribution of displacements.

    Args:
        amplitude: Å, the ε that weights ``λ = C ε²`` refer to; what it bounds is said by each kind.
        max_displacement: Å, no atom moves further.

    Raises:
        InputError: when the amplitude is not positive.
    """

    needs_force_labels = False
    needs_predictions = False
    """Whether a displacement depends on the potential's predictions, so that these have to be made before."""

    def __init__(self, amplitude: float, max_displacement: float) -> None:
        if not (amplitude > 0 and math.isfinite(amplitude)):
            raise InputError(
                f"the amplitude of the displacements is {amplitude}",
                key="amplitude",
                hint="give a length > 0 in Å",
            )
        self.amplitude = float(amplitude)
        self.max_displacement = float(max_displacement)

    @property
    def max_relative_displacement(self) -> float:
        """Å, by how much the vector of a pair can change; what neighbour lists are widened by."""
        return 2.0 * self.max_displacement

    def sample(self, graph: AtomGraph, generator: torch.Generator, context: Context | None = None) -> Tensor:
        """Draw a displacement of every atom.

        Args:
            graph: the structures.
            generator: source of randomness, on any device.
            context: labels, predictions, the potential; only some kinds need it.

        Returns:
            (N, 3) Å, in the dtype of the positions, without gradient and without mean in every structure.
        """
        with torch.no_grad():
            return limit(self.draw(graph, generator, context), graph, self.max_displacement)

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:
        """What :meth:`sample` limits: (N, 3) Å without mean."""
        raise NotImplementedError

    def sample_several(
        self, count: int, graph: AtomGraph, generator: torch.Generator, context: Context | None = None
    ) -> list[Tensor]:
        """Independent displacements, each of the same distribution as :meth:`sample`'s: ``count`` of (N, 3) Å."""
        return [self.sample(graph, generator, context) for _ in range(count)]


class DisplacementOptions(Section):
    """Of every distribution."""

    amplitude: PositiveFloat = 0.05
    """Å: half an edge of the cube, a standard deviation by component, or a root mean square by atom."""


DISPLACEMENTS: Registry[Registered] = Registry(
    "displacement",
    "pimlip_zoo.displacements",
    left=dict.fromkeys(("force_error", "variance", "stiff", "soft"), BASELINE),
)

DisplacementClass = TypeVar("DisplacementClass", bound=type[Displacement])


def displacement(
    name: str, *, options: type[DisplacementOptions] = DisplacementOptions
) -> Callable[[DisplacementClass], DisplacementClass]:
    """Class decorator that makes a distribution known under a name.

    Args:
        name: what users write after ``weak.perturbation.name``.
        options: the type of its options, which its constructor takes as keywords.

    Raises:
        InputError: when another one has the name already.
    """
    return DISPLACEMENTS.registering(name, lambda cls: Registered(name, cls, options))


@displacement("uniform")
class UniformCube(Displacement):
    """Every component uniform in ``(-amplitude, amplitude)``.

    Removing the mean can push a component beyond; the whole structure's displacement is then scaled back.
    """

    def __init__(self, amplitude: float) -> None:
        super().__init__(amplitude, math.sqrt(3.0) * amplitude)

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:  # noqa: ARG002
        """See :class:`Displacement`."""
        return self._cubes(1, graph, generator).squeeze(1)

    def sample_several(
        self,
        count: int,
        graph: AtomGraph,
        generator: torch.Generator,
        context: Context | None = None,  # noqa: ARG002
    ) -> list[Tensor]:
        """See :class:`Displacement`; all in the same operations, and a cube needs no further limit."""
        with torch.no_grad():
            return list(self._cubes(count, graph, generator).unbind(1))

    def _cubes(self, count: int, graph: AtomGraph, generator: torch.Generator) -> Tensor:
        """(N, count, 3) Å."""
        d = remove_mean(self.amplitude * (2.0 * uniform(graph, generator, count) - 1.0), graph)
        largest = maximum_by_structure(d.abs().amax(dim=2), graph)
        return d * scale_down(largest, self.amplitude).index_select(0, graph.batch).unsqueeze(2)


@displacement("gaussian")
class Gaussian(Displacement):
    """Every component normal with standard deviation ``amplitude``, cut at three of them.

    The standard deviation is that of what comes out: the cut and the mean that is removed are made up for.
    """

    _CUT = 3.0

    def __init__(self, amplitude: float) -> None:
        super().__init__(amplitude, 4.5 * amplitude)

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:  # noqa: ARG002
        """See :class:`Displacement`."""
        cut = self._CUT
        inside = math.erf(cut / math.sqrt(2.0))
        density = math.exp(-0.5 * cut * cut) / math.sqrt(2.0 * math.pi)
        deviation = math.sqrt(1.0 - 2.0 * cut * density / inside)
        u = inside * (2.0 * uniform(graph, generator) - 1.0)
        normal = math.sqrt(2.0) * torch.erfinv(u) / deviation
        count = atom_count(graph)
        mean_removed = torch.sqrt(count / (count - 1.0).clamp_min(1.0))
        return remove_mean(self.amplitude * normal * mean_removed[graph.batch].unsqueeze(1), graph)


@displacement("sphere")
class Sphere(Displacement):
    """A random direction in the space of all atoms of a structure, of a fixed root mean square.

    ``sqrt(mean_i |d_i|²) = amplitude``, unless one atom would take more than three times that.
    """

    def __init__(self, amplitude: float) -> None:
        super().__init__(amplitude, 3.0 * amplitude)

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:  # noqa: ARG002
        """See :class:`Displacement`."""
        return with_rms(random_direction(graph, generator), graph, self.amplitude)


class SpeciesScaled(Displacement):
    """Another distribution, the atoms of each species scaled by a factor (hydrogen further than oxygen).

    Args:
        inner: the distribution.
        factors: (S,) factor of each species, at least 0.

    Raises:
        InputError: for a negative factor, or none above zero.
    """

    def __init__(self, inner: Displacement, factors: Sequence[float]) -> None:
        if not factors or min(factors) < 0 or max(factors) <= 0:
            raise InputError(
                f"the species' factors are {list(factors)}",
                key="weak.perturbation.species",
                hint="give numbers >= 0",
            )
        largest = max(factors)
        super().__init__(inner.amplitude * largest, inner.max_displacement * largest)
        self.inner, self.factors = inner, torch.tensor([float(f) for f in factors], dtype=torch.float64)
        self.needs_force_labels = inner.needs_force_labels
        self.needs_predictions = inner.needs_predictions

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:
        """See :class:`Displacement`."""
        factor = self.factors.to(graph.positions.device, graph.positions.dtype)[graph.species].unsqueeze(1)
        d = factor * self.inner.sample(graph, generator, context)
        # The mean is taken off in proportion to the factors, so that an atom of factor 0 stays where it is.
        share = sum_by_structure(factor, graph).clamp_min(1e-12)
        return d - factor * (sum_by_structure(d, graph) / share)[graph.batch]


class LocalMask(Displacement):
    """Another distribution, kept on a random atom of each structure and what is within a radius of it.

    Args:
        inner: the distribution.
        radius: Å; not more than the neighbour list reaches.
    """

    def __init__(self, inner: Displacement, radius: float) -> None:
        if not radius > 0:
            raise InputError(f"the radius is {radius}", key="radius", hint="give a length > 0 in Å")
        super().__init__(inner.amplitude, 2.0 * inner.max_displacement)
        self.inner, self.radius = inner, float(radius)
        self.needs_force_labels = inner.needs_force_labels
        self.needs_predictions = inner.needs_predictions

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:
        """See :class:`Displacement`."""
        d = self.inner.sample(graph, generator, context)
        score = uniform(graph, generator)[:, 0]
        centre = score == maximum_by_structure(score, graph)[graph.batch]
        near = torch.linalg.vector_norm(edge_vectors(graph), dim=1) < self.radius
        mask = centre.clone()
        mask[graph.edge_index[1][near & centre[graph.edge_index[0]]]] = True
        moved = mask.to(d.dtype).unsqueeze(1)
        count = sum_by_structure(moved, graph).clamp_min(1.0)
        d = d * moved
        return d - moved * (sum_by_structure(d, graph) / count)[graph.batch]


class RandomStrain:
    """Symmetric strains with every component uniform in ``(-amplitude, amplitude)``.

    Args:
        amplitude: dimensionless, below 0.2.
    """

    def __init__(self, amplitude: float) -> None:
        if not 0 < amplitude < 0.2:
            raise InputError(
                f"the strain amplitude is {amplitude}", key="strain", hint="give a number in (0, 0.2)"
            )
        self.amplitude = float(amplitude)

    def max_relative_displacement(self, cutoff: float) -> float:
        """Å, by how much a pair can come closer than it was to be within the cutoff: ``c |ε| / (1 - |ε|)``.

        ``|ε|`` is at most three amplitudes (the largest eigenvalue of a matrix of equal entries).
        """
        norm = 3.0 * self.amplitude
        return cutoff * norm / (1.0 - norm)

    def sample(self, graph: AtomGraph, generator: torch.Generator) -> Tensor:
        """(M, 3, 3), symmetric, dimensionless."""
        u = torch.rand(
            (graph.num_graphs, 3, 3), generator=generator, device=generator.device, dtype=torch.float64
        )
        u = (self.amplitude * (2.0 * u - 1.0)).to(graph.positions.device, graph.positions.dtype)
        upper = u.triu()
        return upper + u.triu(1).transpose(1, 2)


def uniform(graph: AtomGraph, generator: torch.Generator, *several: int) -> Tensor:
    """(N, ..., 3) uniform in (0, 1), on the device of the positions, never 0."""
    shape = (len(graph.positions), *several, 3)
    u = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return u.clamp(1e-12, 1.0 - 1e-12).to(graph.positions.device, graph.positions.dtype)


def random_direction(graph: AtomGraph, generator: torch.Generator) -> Tensor:
    """(N, 3) independent normal numbers."""
    normal = torch.randn(
        graph.positions.shape, generator=generator, device=generator.device, dtype=torch.float64
    )
    return normal.to(graph.positions.device, graph.positions.dtype)


def atom_count(graph: AtomGraph) -> Tensor:
    """(M,) number of atoms, at least one."""
    ones = graph.positions.new_ones(len(graph.positions))
    return sum_by_structure(ones, graph).clamp_min(1.0)


def remove_mean(displacement: Tensor, graph: AtomGraph) -> Tensor:
    """Take the mean of each structure off its atoms: (N, ..., 3) -> (N, ..., 3)."""
    count = atom_count(graph).reshape(-1, *[1] * (displacement.dim() - 1))
    return displacement - (sum_by_structure(displacement, graph) / count).index_select(0, graph.batch)


def with_rms(displacement: Tensor, graph: AtomGraph, rms: float) -> Tensor:
    """Without mean, and scaled so that ``sqrt(mean_i |d_i|²)`` of each structure is ``rms``."""
    d = remove_mean(displacement, graph)
    square = sum_by_structure(d.square().sum(dim=1), graph) / atom_count(graph)
    scale = torch.where(square > 1e-300, rms / square.clamp_min(1e-300).sqrt(), torch.zeros_like(square))
    return d * scale[graph.batch].unsqueeze(1)


def maximum_by_structure(values: Tensor, graph: AtomGraph) -> Tensor:
    """(N, ...) -> (M, ...) of values that are not negative, zero for a structure without atoms."""
    out = values.new_zeros(graph.num_graphs, *values.shape[1:])
    index = graph.batch.reshape(-1, *[1] * (values.dim() - 1)).expand(values.shape)
    return out.scatter_reduce(0, index, values, "amax", include_self=True)


def scale_down(largest: Tensor, allowed: float) -> Tensor:
    """Factors (M,) not above one that bring ``largest`` down to ``allowed``."""
    return (allowed / largest.clamp_min(1e-300)).clamp_max(1.0)


def limit(displacement: Tensor, graph: AtomGraph, maximum: float) -> Tensor:
    """Scale down the structures in which an atom moves further than ``maximum``."""
    largest = maximum_by_structure(torch.linalg.vector_norm(displacement, dim=1), graph)
    return displacement * scale_down(largest, maximum)[graph.batch].unsqueeze(1)
