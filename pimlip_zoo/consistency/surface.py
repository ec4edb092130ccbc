"""A potential around a structure: its energies and forces at displaced and strained copies.

A residual is a function of a :class:`Surface`. It asks for energies and forces at points and says nothing of batches:

    (s.E(D) - s.E(-D)) / 2 + s.work(D, s.F(ORIGIN))

Run once on symbols (:func:`reads_of`), the function tells which points it looks at and which of them need forces, so
that all points of all residuals can be evaluated in one forward. A point that was not foreseen is evaluated when it is
asked for: the symbols decide what a step costs, never what it gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pimlip_zoo.consistency.displaced import displaced_copies, strained, trim_edges
from pimlip_zoo.consistency.displacements import atom_count
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Labels, Predictions, join

if TYPE_CHECKING:
    from pimlip_zoo.losses.base import PotentialLike

Detach = Literal["none", "forces", "energies"]
"""Which side of a residual gets no gradient; virials are on the side of forces."""


@dataclass(frozen=True)
class Point:
    """A copy of a structure: displaced to ``r + a d + b p``, or strained."""

    a: float = 0.0
    b: float = 0.0
    strained: bool = False

    def __add__(self, other: Point) -> Point:
        return Point(self.a + other.a, self.b + other.b)

    def __sub__(self, other: Point) -> Point:
        return Point(self.a - other.a, self.b - other.b)

    def __neg__(self) -> Point:
        return Point(-self.a, -self.b)

    def __truediv__(self, number: float) -> Point:
        return Point(self.a / number, self.b / number)


ORIGIN = Point()
"""The structure as it is."""
D = Point(1.0)
"""Displaced by ``d``."""
P = Point(0.0, 1.0)
"""Displaced by ``p``, independent of ``d``."""
STRAINED = Point(strained=True)
"""Positions and cell multiplied by ``1 + ε``."""


@dataclass(frozen=True)
class Points:
    """Where energies, forces and virials are wanted; whatever has a force or a virial has an energy, too."""

    energies: frozenset[Point] = frozenset()
    forces: frozenset[Point] = frozenset()
    virials: frozenset[Point] = frozenset()

    def __or__(self, other: Points) -> Points:
        return Points(
            self.energies | other.energies, self.forces | other.forces, self.virials | other.virials
        )

    def __bool__(self) -> bool:
        return bool(self.everywhere)

    @property
    def everywhere(self) -> frozenset[Point]:
        """Points at which anything is wanted."""
        return self.energies | self.forces | self.virials


@dataclass(frozen=True)
class Reads:
    """What a residual looks at."""

    own: Points = Points()
    """Of the potential that is trained."""
    target: Points = Points()
    """Of the side that a teacher can take."""
    energy_label: bool = False
    force_label: bool = False
    p: bool = False
    """The second displacement."""
    displaced: bool = False
    """Any displacement, and so a list that is widened for it."""
    strained: bool = False
    direction: bool = False
    """A random direction, for the curl of a direct head."""

    def __or__(self, other: Reads) -> Reads:
        return Reads(
            self.own | other.own,
            self.target | other.target,
            *(
                getattr(self, name) or getattr(other, name)
                for name in ("energy_label", "force_label", "p", "displaced", "strained", "direction")
            ),
        )


@dataclass
class Copies:
    """Copies of structures, and what one potential says about them.

    Args:
        potential: the one that is asked.
        graph: M structures, N atoms, their lists as wide as the copies need them.
        d: (N, 3) Å.
        p: (N, 3) Å.
        strain: (M, 3, 3).
    """

    potential: PotentialLike
    graph: AtomGraph
    d: Tensor | None = None
    p: Tensor | None = None
    strain: Tensor | None = None
    energy: dict[Point, Tensor] = field(default_factory=dict)
    forces: dict[Point, Tensor] = field(default_factory=dict)
    virial: dict[Point, Tensor] = field(default_factory=dict)

    def displacement(self, point: Point) -> Tensor:
        """``a d + b p`` of a point, (N, 3) Å."""
        if self.d is None:
            raise InputError("a residual of displaced copies was given no displacement", key="d")
        if point.b == 0.0:
            return self.d if point.a == 1.0 else point.a * self.d
        if self.p is None:
            raise InputError("a residual with two displacements was given one", key="p")
        return point.a * self.d + point.b * self.p

    def know(self, predictions: Predictions) -> None:
        """Take predictions on the structures as they are."""
        self._keep(ORIGIN, predictions)

    def evaluate(self, points: Points, *, few_edges: int = 0) -> None:
        """What is wanted and not known; copies without derivatives apart, where these cost anything.

        Args:
            points: what is wanted.
            few_edges: below that many edges of a copy energies and derivatives cost about the same.
        """
        together, apart = self.missing(points, few_edges)
        forces, virial = bool(points.forces & {*together}), bool(points.virials & {*together})
        if together:
            self.split(together, self._predict(self.at(together), forces=forces, virial=virial))
        if apart:
            self.split(apart, self._predict(self.at(apart), forces=False, virial=False))

    def missing(self, points: Points, few_edges: int) -> tuple[list[Point], list[Point]]:
        """Points to evaluate with those that need derivatives, and points whose energies are evaluated apart."""
        derived = {point for point in points.forces if point not in self.forces}
        derived |= {point for point in points.virials if point not in self.virial}
        plain = {point for point in points.energies if point not in self.energy} - derived
        small = self.graph.edge_index.shape[1] < few_edges
        if derived and (self.potential.is_direct or small):
            # A direct head gives forces for next to nothing, and so does a small batch: one forward does it all.
            derived, plain = derived | plain, set()
        return sort_points(derived), sort_points(plain)

    def at(self, points: Iterable[Point], *, first: AtomGraph | None = None) -> AtomGraph:
        """The copies one after the other, behind other structures if there are any."""
        points = list(points)
        displaced = [point for point in points if not point.strained]
        moves = [None if point == ORIGIN else self.displacement(point) for point in displaced]
        graphs = [] if first is None else [first]
        if first is self.graph:
            graphs = [displaced_copies(self.graph, [None, *moves])]
        elif moves:
            graphs.append(displaced_copies(self.graph, moves))
        if len(displaced) < len(points):
            if self.strain is None:
                raise InputError("a strain term needs a distribution of strains", key="weak.strain")
            refuse_molecules(self.graph)
            graphs.append(strained(self.graph, self.strain))
        return join(graphs)

    def split(self, points: list[Point], predictions: Predictions, *, skip: AtomGraph | None = None) -> None:
        """Keep predictions on what :meth:`at` made.

        Args:
            points: the copies.
            predictions: on them, behind those on other structures.
            skip: these others.
        """
        structures, atoms = (0, 0) if skip is None else (skip.num_graphs, len(skip.positions))
        for point in points:
            part = cut(predictions, structures, self.graph.num_graphs, atoms, len(self.graph.positions))
            self._keep(point, part)
            structures, atoms = structures + self.graph.num_graphs, atoms + len(self.graph.positions)

    def _keep(self, point: Point, predictions: Predictions) -> None:
        self.energy[point] = predictions.energy
        if len(predictions.forces) == len(self.graph.positions):
            self.forces[point] = predictions.forces
        if len(predictions.virial) == self.graph.num_graphs:
            self.virial[point] = predictions.virial

    def _predict(self, graph: AtomGraph, *, forces: bool, virial: bool) -> Predictions:
        return self.potential(trim_edges(graph, self.potential.cutoff), forces=forces, virial=virial)


class Surface:
    """Energies and forces of a potential around M structures of N atoms, at the points that residuals ask for.

    Args:
        potential: any.
        graph: the structures; their lists reach the cutoff plus the largest relative displacement.
        d: (N, 3) Å, displacements of all atoms.
        p: (N, 3) Å, further ones.
        strain: (M, 3, 3), symmetric.
        direction: (N, 3), of unit norm in each structure, for the curl.
        labels: of the structures, NaN where one is missing.
        teacher: takes the target side of residuals, without gradient.
        detach: the side that gets no gradient.
        base: predictions on ``graph``, where they are known.
    """

    def __init__(
        self,
        potential: PotentialLike,
        graph: AtomGraph,
        d: Tensor | None = None,
        p: Tensor | None = None,
        *,
        strain: Tensor | None = None,
        direction: Tensor | None = None,
        labels: Labels | None = None,
        teacher: PotentialLike | None = None,
        detach: Detach = "none",
        base: Predictions | None = None,
    ) -> None:
        self.potential, self.graph = potential, graph
        self.copies = Copies(potential, graph, d, p, strain)
        self.taught = None if teacher is None else Copies(teacher, graph, d, p, strain)
        self._labels, self._direction, self._detach = labels, direction, detach
        if base is not None:
            self.copies.know(base)

    def E(self, point: Point) -> Tensor:  # noqa: N802
        """Energy of each structure at a point: (M,) eV."""
        if point not in self.copies.energy:
            self.copies.evaluate(Points(energies=frozenset({point})))
        value = self.copies.energy[point]
        return value.detach() if self._detach == "energies" else value

    def F(self, point: Point) -> Tensor:  # noqa: N802
        """Forces on all atoms at a point: (N, 3) eV/Å."""
        if point not in self.copies.forces:
            self.copies.evaluate(Points(forces=frozenset({point})))
        value = self.copies.forces[point]
        return value.detach() if self._detach == "forces" else value

    def W(self, point: Point) -> Tensor:  # noqa: N802
        """Virial ``-dE/dε`` of each structure at a point: (M, 3, 3) eV."""
        if point not in self.copies.virial:
            self.copies.evaluate(Points(virials=frozenset({point})))
        value = self.copies.virial[point]
        return value.detach() if self._detach == "forces" else value

    @property
    def target(self) -> Surface:
        """What a residual compares with: this surface, or the teacher's where there is one."""
        if self.taught is None:
            return self
        other = copy.copy(self)
        other.copies = self.taught
        return other

    @property
    def E_ref(self) -> Tensor:  # noqa: N802
        """(M,) eV, labels; a residual that looks at them is refused where the data have none."""
        return self.labels.energy

    @property
    def F_ref(self) -> Tensor:  # noqa: N802
        """(N, 3) eV/Å, labels; a residual that looks at them is refused where the data have none."""
        return self.labels.forces

    @property
    def labels(self) -> Labels:
        """Labels that need not be there: NaN where one is missing."""
        if self._labels is None:
            raise InputError("this residual needs labels, and none were given")
        return self._labels

    @property
    def weight(self) -> Tensor:
        """(M,) how much each structure counts."""
        if self._labels is None:
            return self.graph.cell.new_ones(self.graph.num_graphs)
        return self._labels.weight

    @property
    def strain(self) -> Tensor:
        """``ε``, (M, 3, 3)."""
        if self.copies.strain is None:
            raise InputError("a strain term needs a distribution of strains", key="weak.strain")
        return self.copies.strain

    @property
    def atoms(self) -> Tensor:
        """(M,) number of atoms, at least one."""
        return atom_count(self.graph)

    def displacement(self, path: Point) -> Tensor:
        """``a d + b p``, (N, 3) Å."""
        return self.copies.displacement(path)

    def work(self, path: Point, forces: Tensor) -> Tensor:
        """``<a d + b p, F>``, a sum over the atoms of one structure: (M,) eV; zero for a structure without atoms."""
        return self.sum(self.displacement(path) * forces)

    def sum(self, values: Tensor) -> Tensor:
        """(N, 3) -> (M,), over the atoms of each structure."""
        return values.new_zeros(self.graph.num_graphs).index_add(0, self.graph.batch, values.sum(dim=1))

    def curl(self) -> Tensor:
        """``(J - J^T) v`` with ``J = dF/dr`` along the random direction ``v``, for a direct head: (N, 3) eV/Å².

        The product with ``J`` is the derivative of the product with ``J^T`` by its cotangent, so that every backend
        that can be differentiated twice can do it. Its norm over a structure is a sample of how far the forces are from
        being a gradient.

        Raises:
            InputError: on a conservative head, whose curl is zero.
        """
        if not self.potential.is_direct:
            raise InputError(
                "forces are the gradient of an energy and have no curl",
                key="curl",
                hint="leave the term out, or use a direct force head",
            )
        if self._direction is None:
            raise InputError("a curl was given no direction", key="direction")
        v, keep = self._direction, torch.is_grad_enabled()
        with torch.enable_grad():
            positions = self.graph.positions.detach().requires_grad_(True)
            moved = self.graph._replace(positions=positions)
            forces = self.potential(moved, forces=True, virial=False).forces
            cotangent = torch.zeros_like(forces, requires_grad=True)
            (row,) = torch.autograd.grad(forces, positions, cotangent, create_graph=True)
            (jvp,) = torch.autograd.grad(row, cotangent, v, create_graph=keep, retain_graph=True)
            (vjp,) = torch.autograd.grad(forces, positions, v, create_graph=keep)
        result: Tensor = jvp - vjp
        return result

    def detached(self, side: Detach) -> Surface:
        """The same surface, one side without gradient."""
        if side == self._detach:
            return self
        other = copy.copy(self)
        other._detach = side  # noqa: SLF001
        return other

    def evaluate(self, reads: Reads, *, few_edges: int = 0) -> None:
        """Evaluate all that residuals look at, in as few forwards as it takes."""
        self.copies.evaluate(reads.own if self.taught else reads.own | reads.target, few_edges=few_edges)
        if self.taught is not None and reads.target:
            with torch.no_grad():
                self.taught.evaluate(reads.target)


def refuse_molecules(graph: AtomGraph) -> None:
    """Strain needs a cell.

    Raises:
        InputError: naming the first structure without one.
    """
    without = (graph.cell.abs().amax(dim=(1, 2)) == 0).nonzero().flatten().tolist()
    if without:
        raise InputError(
            f"structure {without[0]} of the batch is a molecule, which has no cell to strain",
            key="strain",
            hint="leave the strain term out, or train on periodic structures only",
        )


def cut(predictions: Predictions, structure: int, structures: int, atom: int, atoms: int) -> Predictions:
    """A run of structures out of predictions; what was not asked for stays empty."""
    s, a = slice(structure, structure + structures), slice(atom, atom + atoms)
    return Predictions(
        predictions.energy[s], predictions.forces[a], predictions.virial[s], predictions.atomic_energy[a]
    )


def sort_points(points: Iterable[Point]) -> list[Point]:
    """In a fixed order, strained ones last."""
    return sorted(points, key=lambda point: (point.strained, point.a, point.b))


class _NoPotential:
    """What stands where a residual would find the potential while it is asked what it looks at."""

    species: Sequence[str] = ()
    cutoff = 0.0
    is_direct = True

    def __call__(self, *_: Any, **__: Any) -> Predictions:
        raise InputError(
            "a residual calls the potential by itself",
            hint="ask the surface, which evaluates every point once: s.E, s.F, s.W, s.curl",
        )


class _Symbols(Surface):
    """A surface of one atom that gives zeros and remembers what it was asked for."""

    def __init__(self, asked: dict[str, set[Point]], said: dict[str, bool], side: str = "own") -> None:
        zero, one = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        cell = torch.eye(3, dtype=torch.float64)[None]
        graph = AtomGraph(
            zero,
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(2, 0, dtype=torch.int64),
            zero[:0],
            cell,
            torch.zeros(1, dtype=torch.int64),
            1,
        )
        labels = Labels(0.0 * one, zero, torch.zeros_like(cell), one, torch.ones_like(zero))
        super().__init__(_NoPotential(), graph, labels=labels)
        self.asked, self.said, self.side = asked, said, side

    def _see(self, what: str, point: Point, *shape: int) -> Tensor:
        self.asked.setdefault(f"{self.side} {what}", set()).add(point)
        self._pass(point)
        return torch.zeros(1, *shape, dtype=torch.float64)

    def _pass(self, point: Point) -> None:
        self.said["displaced"] |= (point.a, point.b) != (0.0, 0.0)
        self.said["p"] |= point.b != 0.0
        self.said["strained"] |= point.strained

    def E(self, point: Point) -> Tensor:  # noqa: N802
        return self._see("energies", point)

    def F(self, point: Point) -> Tensor:  # noqa: N802
        return self._see("forces", point, 3)

    def W(self, point: Point) -> Tensor:  # noqa: N802
        return self._see("virials", point, 3, 3)

    @property
    def target(self) -> Surface:
        return _Symbols(self.asked, self.said, "target")

    @property
    def E_ref(self) -> Tensor:  # noqa: N802
        self.said["energy_label"] = True
        return self.labels.energy

    @property
    def F_ref(self) -> Tensor:  # noqa: N802
        self.said["force_label"] = True
        return self.labels.forces

    @property
    def strain(self) -> Tensor:
        self.said["strained"] = True
        return torch.zeros(1, 3, 3, dtype=torch.float64)

    def displacement(self, path: Point) -> Tensor:
        self._pass(path)
        return self.graph.positions

    def curl(self) -> Tensor:
        self.said["direction"] = True
        return self.graph.positions


def reads_of(function: Callable[[Surface], Tensor]) -> Reads:
    """What a function of a surface looks at, found by running it once on symbols.

    Raises:
        InputError: when what it returns is not one number for each structure.
    """
    asked: dict[str, set[Point]] = {}
    said = dict.fromkeys(
        ("energy_label", "force_label", "p", "displaced", "strained", "direction"),
        False,
    )
    value = function(_Symbols(asked, said))
    if value.shape != (1,):
        raise InputError(
            f"{getattr(function, '__name__', 'a residual')} gives {tuple(value.shape)} for one structure",
            hint="return one number for each structure",
        )
    own, target = (
        Points(*(frozenset(asked.get(f"{side} {what}", ())) for what in ("energies", "forces", "virials")))
        for side in ("own", "target")
    )
    return Reads(own, target, **said)
