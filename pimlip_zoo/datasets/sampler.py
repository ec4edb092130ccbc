"""Batches by atom and edge budgets: what fits in memory, little padding of time, and an order that can be resumed.

The order is a function of (seed, pass) alone. A pass is a permutation, cut into windows; within a window
structures are sorted by edges and packed into batches, so that a batch holds structures of about one size;
then batches are shuffled. Each step takes one batch per rank, neighbours in size, so that ranks wait little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from pimlip_zoo.errors import InputError

_WINDOW = 64
"""Batches whose structures are sorted together."""


@dataclass(frozen=True, kw_only=True)
class BatchBudget:
    """What a batch of one rank may hold."""

    max_structures: int = 1 << 30
    max_atoms: int = 1 << 62
    max_edges: int = 1 << 62
    """The setting to lower when memory runs out: memory of a step grows with edges."""

    def __post_init__(self) -> None:
        for name in ("max_structures", "max_atoms", "max_edges"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", key=name)


class BudgetSampler(Sampler[list[int]]):
    """The indices of each step's batch on one rank.

    In a pass every structure is met once, on one rank. All ranks make the same number of steps: where batches
    do not divide evenly, the largest are split; only where all batches are single structures are some, fewer
    than there are ranks, met twice.

    Args:
        natoms: (M,) atoms of each structure.
        edges: (M,) edges of each structure, exact or estimated.
        budget: of a batch.
        seed: of the permutations.
        rank: this process.
        ranks: how many there are.
        passes: how often the data are gone through; None goes on for ever.
        shuffle: False takes structures in their order, for evaluation.

    Raises:
        InputError: for a structure that alone is beyond the budget, naming it and the setting.
    """

    def __init__(
        self,
        natoms: ArrayLike,
        edges: ArrayLike,
        budget: BatchBudget,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        passes: int | None = 1,
        shuffle: bool = True,
    ) -> None:
        self._atoms = np.asarray(natoms, dtype=np.int64)
        self._edges = np.asarray(edges, dtype=np.int64)
        if len(self._atoms) == 0:
            raise InputError("there are no structures to sample from")
        if len(self._atoms) != len(self._edges):
            raise ValueError(f"{len(self._atoms)} numbers of atoms, {len(self._edges)} of edges")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks}")
        self.budget, self.seed, self.rank, self.ranks = budget, seed, rank, ranks
        self.passes, self.shuffle = passes, shuffle
        self.current_pass = 0
        """The pass that the next step belongs to."""
        self.next_step = 0
        """The next step within it."""
        for key, values, limit in (
            ("max_atoms", self._atoms, budget.max_atoms),
            ("max_edges", self._edges, budget.max_edges),
        ):
            largest = int(values.argmax())
            if values[largest] > limit:
                raise InputError(
                    f"structure {largest} alone has {values[largest]}, the budget is {limit}",
                    key=key,
                    hint=f"raise {key}, or leave the structure out",
                )

    def __iter__(self) -> Iterator[list[int]]:
        while self.passes is None or self.current_pass < self.passes:
            steps = self._steps(self.current_pass)
            while self.next_step < len(steps):
                batch = steps[self.next_step][self.rank]
                # Counted before it is handed out: a state saved while the batch is used goes on behind it.
                self.next_step += 1
                yield batch.tolist()
            self.current_pass, self.next_step = self.current_pass + 1, 0

    def steps_in_pass(self, number: int = 0) -> int:
        """How many steps a pass has."""
        return len(self._steps(number))

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands; the same on all ranks.

        With workers that fetch ahead the sampler is ahead of the training: give :meth:`skip_to` the steps that
        were made instead.
        """
        return {"pass": self.current_pass, "step": self.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a state was taken."""
        self.current_pass, self.next_step = state["pass"], state["step"]

    def skip_to(self, step: int) -> None:
        """Go on behind a number of steps, counted from the first pass."""
        self.current_pass = 0
        while step >= (steps := self.steps_in_pass(self.current_pass)):
            step -= steps
            self.current_pass += 1
        self.next_step = step

    def _steps(self, number: int) -> list[list[NDArray[np.int64]]]:
        """The batches of all ranks for each step of a pass."""
        rng = np.random.default_rng([self.seed, number])
        batches = self._pack(rng)
        self._split_until_even(batches)
        steps = [batches[i : i + self.ranks] for i in range(0, len(batches), self.ranks)]
        if self.shuffle:
            steps = [steps[i] for i in rng.permutation(len(steps))]
        return steps

    def _pack(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        count = len(self._atoms)
        if not self.shuffle:
            return self._cut(np.arange(count))
        order = rng.permutation(count)
        window = self._window()
        batches: list[NDArray[np.int64]] = []
        for start in range(0, count, window):
            part = order[start : start + window]
            batches += self._cut(part[np.argsort(self._edges[part], kind="stable")])
        return batches

    def _window(self) -> int:
        """Structures that are sorted together: those of some tens of steps."""
        budget = self.budget
        by_edges = budget.max_edges / max(float(self._edges.mean()), 1e-9)
        by_atoms = budget.max_atoms / float(self._atoms.mean())
        typical = max(1.0, min(float(budget.max_structures), by_edges, by_atoms))
        return int(min(max(_WINDOW * self.ranks * typical, 1.0), float(len(self._atoms))))

    def _cut(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut a sequence greedily into batches within the budget."""
        atoms = np.concatenate([[0], np.cumsum(self._atoms[order])])
        edges = np.concatenate([[0], np.cumsum(self._edges[order])])
        batches, start, budget = [], 0, self.budget
        while start < len(order):
            stop = min(
                start + budget.max_structures,
                int(np.searchsorted(atoms, atoms[start] + budget.max_atoms, side="right")) - 1,
                int(np.searchsorted(edges, edges[start] + budget.max_edges, side="right")) - 1,
                len(order),
            )
            batches.append(order[start:stop])
            start = stop
        return batches

    def _split_until_even(self, batches: list[NDArray[np.int64]]) -> None:
        while len(batches) % self.ranks:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            batch = batches[largest]
            if len(batch) == 1:
                batches.append(batches[0])
                continue
            half = len(batch) // 2
            batches[largest : largest + 1] = [batch[:half], batch[half:]]
