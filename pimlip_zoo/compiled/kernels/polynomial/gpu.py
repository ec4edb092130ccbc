"""The symmetric contraction as triton functions: a program for each atom, or for each species where atoms are summed.

Sums over the atoms of a species, the gradients of coefficients, are shared out among a fixed number of programs, whose
results are added in their order: the same numbers in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.launch import Block, Launcher, Source, indented
from pimlip_zoo.compiled.kernels.polynomial.cpu import PolynomialForm, sweep_program
from pimlip_zoo.compiled.kernels.swept import Sweep

_ACCUMULATORS = 32  # coefficients whose gradients one program sums
_SLICES = 32  # programs that share the atoms of a species, at most


class TritonPolynomial:
    """The sweeps of one form for one number of channels and one dtype.

    Args:
        form: the polynomials.
        channels: C.
        dtype: float32 or float64.
    """

    def __init__(self, form: PolynomialForm, channels: int, dtype: torch.dtype) -> None:
        self.form, self.channels, self._block = form, channels, Block(channels, dtype)
        self._launcher = Launcher(self.source, self._block)

    def prepare(self, *kernels: Sweep) -> None:
        """Nothing: triton compiles at the first launch."""

    def source(self, kernel: Sweep) -> Source:
        """The triton function of a sweep, either of coefficients or of everything else."""
        return self._coefficients(kernel) if kernel.wants_weights else self._atoms(kernel)

    def _atoms(self, kernel: Sweep) -> Source:
        form, block = self.form, self._block
        dims = {"o": form.dim_out if kernel.kind == 0 else form.dim_in, "og": form.dim_out}
        order = sorted(range(len(form.terms)), key=lambda t: form.terms[t])
        statements, read, written = self._statements(kernel, order, "{0}{1} = {{}}")
        lines = [
            "n = tl.program_id(0).to(tl.int64)",
            f"c = tl.program_id(1) * {block.size} + tl.arange(0, {block.size})",
            "z = tl.load(species + n).to(tl.int64)",
            f"pq = q + z * {len(form.terms) * self.channels} + c",
            *self._pointers([name for name in read if name != "q"]),
            *statements,
        ]
        wanted = ["o"] * (kernel.kind == 0 or kernel.wants_input) + ["og"] * kernel.wants_cotangent
        for name in wanted:
            lines.append(f"p{name} = {name} + n * {dims[name] * self.channels} + c")
            for row in range(dims[name]):
                value = f"{name}{row}" if (name, row) in written else block.zeros()
                lines.append(block.store(f"p{name}", row, value))
        return Source(tuple(dict.fromkeys(("species", "q", *read, *wanted))), tuple(lines))

    def _coefficients(self, kernel: Sweep) -> Source:
        """``first`` has each species' slots, ``row[s]`` the atom in slot s; every ``slices``-th is a program's own."""
        block, terms = self._block, len(self.form.terms)
        lines = [
            "z = tl.program_id(0).to(tl.int64)",
            f"c = tl.program_id(1) * {block.size} + tl.arange(0, {block.size})",
            "begin = tl.load(first + z // slices) + z % slices",
            "end = tl.load(first + z // slices + 1)",
            f"po = oq + z * {terms * self.channels} + c",
        ]
        taken: list[str] = []
        order = sorted(range(terms), key=lambda t: self.form.terms[t][::-1])
        groups = [order[start : start + _ACCUMULATORS] for start in range(0, terms, _ACCUMULATORS)]
        for number, group in enumerate(groups):
            statements, read, _ = self._statements(kernel, group, "r{1} += {{}}")
            taken += read
            atom = ["n = tl.load(row + s).to(tl.int64)", *self._pointers(read), *statements]
            work = [f"r{t} = {block.zeros()}" for t in group]
            work += ["for s in range(begin, end, slices):", *indented(atom)]
            work += [block.store("po", t, f"r{t}") for t in group]
            lines += [f"if tl.program_id(2) == {number}:", *indented(work)]
        names = ("first", "row", "slices", *dict.fromkeys(taken), "oq")
        return Source(names, tuple(lines), len(groups))

    def _statements(
        self, kernel: Sweep, group: Sequence[int], write: str
    ) -> tuple[list[str], list[str], set[tuple[str, int]]]:
        """Statements, the operands that they read, and the (name, row) that they write."""
        program, results = sweep_program(self.form, kernel, group)
        load = {name: self._block.load(f"p{name}", "{}") for name in "ahgkq"}
        writes = [(value, write.format(name, row)) for value, name, row in results]
        lines = program.emit("", load, writes, define="{name} = {value}")
        text = "\n".join(lines)
        read = [name for name in "ahgkq" if f"tl.load(p{name} " in text]
        return lines, read, {(name, row) for _, name, row in results}

    def _pointers(self, names: Sequence[str]) -> list[str]:
        dims = {"a": self.form.dim_in, "h": self.form.dim_in, "g": self.form.dim_out, "k": self.form.dim_out}
        return [f"p{name} = {name} + n * {dims[name] * self.channels} + c" for name in names]

    def run(
        self,
        kernel: Sweep,
        species: Tensor,
        a: Tensor,
        q: Tensor,
        g: Tensor | None = None,
        h: Tensor | None = None,
        k: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(result or gradient of A, gradient of q, derivative by g), None where it is not wanted."""
        rows, width, form = a.shape[0], self.channels, self.form
        operands = {"species": species, "a": a, "q": q, "g": g, "h": h, "k": k}
        first = third = None
        if kernel.kind == 0 or kernel.wants_input:
            first = a.new_empty((rows, form.dim_out if kernel.kind == 0 else form.dim_in, width))
        if kernel.wants_cotangent:
            third = a.new_empty((rows, form.dim_out, width))
        if first is not None or third is not None:
            plain = replace(kernel, wants_weights=False)
            self._launcher.run(plain, rows, {**operands, "o": first, "og": third})
        if not kernel.wants_weights:
            return first, None, third
        kinds = q.shape[0]
        slices = max(1, min(_SLICES, rows // (8 * max(kinds, 1))))
        parts = q.new_empty((kinds, slices, len(form.terms), width))
        lists = _by_species(species, kinds)
        alone = Sweep(kernel.kind, wants_weights=True, adds=kernel.adds)
        self._launcher.run(alone, kinds * slices, {**operands, **lists, "slices": slices, "oq": parts})
        return first, parts.sum(dim=1), third


def _by_species(species: Tensor, kinds: int) -> dict[str, Tensor]:
    """Atoms in the order of their species, and where each species begins."""
    order = torch.argsort(species, stable=True)
    every = torch.arange(kinds + 1, dtype=species.dtype, device=species.device)
    return {"first": torch.searchsorted(species[order], every), "row": order.to(torch.int32)}


@cache
def triton_polynomial(form: PolynomialForm, channels: int, dtype: torch.dtype) -> TritonPolynomial:
    """The kernels of this form, shared by all modules that have it."""
    return TritonPolynomial(form, channels, dtype)
