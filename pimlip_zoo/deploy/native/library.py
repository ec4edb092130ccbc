"""Compiles a native model with the C compiler of this machine and calls it; needs no torch."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.compiled.compiler import (
    CompilerError,
    cache_folder,
    compile_library,
    find_compiler,
    writable,
)
from pimlip_zoo.compiled.private import load_private
from pimlip_zoo.deploy.native.archive import NativeFile, read_native, source_hash
from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.files import scratch_folder, seal, seal_of, sealed

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]

_LEVELS = {
    "v4": (64, ("-march=x86-64-v4",)),
    "v3": (32, ("-march=x86-64-v3",)),
    "any": (16, ()),
}
_FLAGS = ("-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w")
_NEEDS = {
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},
}
_WRONG = {
    1: "a species is not among those of the model",
    2: "an edge names an atom that is not there",
    3: "the edges are not sorted by centre",
    4: "there is not enough memory",
}

_with_threads: list[int] = []
"""The process in which a model first computed on several threads."""


class StructureResult(NamedTuple):
    """Of a structure, in eV and Å."""

    energies: Reals
    """(N,)"""
    forces: Reals
    """(N, 3)"""
    virial: Reals
    """(3, 3)"""
    edges: int
    """How many pairs are closer than the cutoff."""


@cache
def machine_level() -> str:
    """Which of the sources this processor takes: v4 (AVX-512), v3 (AVX2) or any."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "any"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "any"
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    if not _NEEDS["v3"] <= flags:
        return "any"
    return "v4" if _NEEDS["v4"] <= flags else "v3"


def num_threads() -> int:
    """``$OMP_NUM_THREADS``, or as many as there are cores to run on."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NativeModel:
    """A native model, compiled when it is first loaded on a machine and kept in the cache of kernels.

    Threads may share one; it can be copied, pickled and sent to other processes.

    Args:
        path: a file of ``pimlip-zoo export --format native``.
        threads: of one evaluation; as :func:`num_threads` says by default.
        level: of the processor, this one's by default.

    Raises:
        InputError: when the file cannot be read, or there is no compiler that takes it.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None, level: str | None = None
    ) -> None:
        self._open(read_native(path), level, num_threads() if threads is None else threads, str(path))

    def _open(self, content: NativeFile, level: str | None, threads: int, path: str) -> None:
        self._content, self._level, self._path = content, level, path
        self.metadata = dict(content.metadata)
        self.species = tuple(self.metadata["type_names"].split())
        self.cutoff = float(self.metadata["r_max"])
        names = ("charge", "multiplicity")
        known = all(name in self.metadata for name in names)
        self.fixed_electrons = {name: int(self.metadata[name]) for name in names} if known else {}
        self.threads = threads
        level = level or machine_level()
        self._library = _load(content.sources[_LEVELS[level][0]], level, path)
        if len(content.weights) != ctypes.c_int64.in_dll(self._library, "pimlip_weight_bytes").value:
            raise InputError("its weights are not complete", file=path, hint="export it again")
        self._weights = _aligned(len(content.weights))
        self._weights[:] = np.frombuffer(content.weights, np.uint8)
        self._memory = threading.local()

    def __getstate__(self) -> tuple[NativeFile, str | None, int, str]:
        """What the file held, so that the copy needs no file and is compiled for the machine that it gets to."""
        return self._content, self._level, self.threads, self._path

    def __setstate__(self, state: tuple[NativeFile, str | None, int, str]) -> None:
        content, level, threads, path = state
        self._open(content, level, threads, path)

    def __copy__(self) -> NativeModel:
        """Another one with the same program and weights, which nobody writes to."""
        made = NativeModel.__new__(NativeModel)
        made.__dict__.update(self.__dict__, _memory=threading.local())
        return made

    def __deepcopy__(self, memo: object) -> NativeModel:
        return self.__copy__()

    def evaluate(
        self, vectors: Reals, edge_index: Integers, species: Integers, is_local: Reals
    ) -> tuple[Reals, Reals]:
        """Energies (N,) and the gradient (E, 3) of the local atoms' energy by the edge vectors.

        Args:
            vectors: (E, 3) Å.
            edge_index: (2, E) centre and neighbour, sorted by centre.
            species: (N,).
            is_local: (N,) 1 where an atom's energy counts.

        Raises:
            ValueError: for edges or species that do not fit.
        """
        atoms, edges = len(species), len(vectors)
        inputs = [
            np.ascontiguousarray(value, kind)
            for value, kind in ((vectors, "f8"), (edge_index, "i8"), (species, "i8"), (is_local, "f8"))
        ]
        energy, gradient = np.zeros(atoms), np.zeros((edges, 3))
        wrong = self._library.pimlip_evaluate(
            self._weights.ctypes.data,
            self._room(atoms, edges),
            atoms,
            edges,
            self._num_threads(),
            *(value.ctypes.data for value in (*inputs, energy, gradient)),
        )
        if wrong:
            raise ValueError(_WRONG[wrong])
        return energy, gradient

    def structure(
        self,
        positions: Reals,
        species: Integers,
        cell: Reals | None = None,
        pairs: tuple[Integers, Reals] | None = None,
    ) -> StructureResult:
        """Energies, forces and virial of a structure.

        Args:
            positions: (N, 3) Å.
            species: (N,).
            cell: (3, 3) rows in Å, where there are periodic images.
            pairs: index (2, P) sorted by centre and shift (P, 3) of all pairs that may be closer than the cutoff;
                None: every pair of atoms is looked at.

        Raises:
            ValueError: for pairs or species that do not fit.
        """
        atoms = len(species)
        positions, species = np.ascontiguousarray(positions, "f8"), np.ascontiguousarray(species, "i8")
        result = StructureResult(np.empty(atoms), np.empty((atoms, 3)), np.empty((3, 3)), 0)
        box = index = shift = None
        count = atoms * max(atoms - 1, 0)
        if pairs is not None:
            index, shift = (
                np.ascontiguousarray(v, kind) for v, kind in zip(pairs, ("i8", "f8"), strict=True)
            )
            box = np.ascontiguousarray(np.zeros((3, 3)) if cell is None else cell, "f8")
            count = index.shape[1]
        edges = self._library.pimlip_structure(
            self._weights.ctypes.data,
            self._room(atoms, count),
            atoms,
            self._num_threads(),
            self.cutoff,
            positions.ctypes.data,
            None if box is None else box.ctypes.data,
            species.ctypes.data,
            count,
            None if index is None else index.ctypes.data,
            None if shift is None else shift.ctypes.data,
            *(value.ctypes.data for value in result[:3]),
        )
        if edges < 0:
            raise ValueError(_WRONG[-edges])
        return result._replace(edges=edges)

    @property
    def has_uncertainty(self) -> bool:
        """Whether it was exported with it."""
        return self._content.others is not None

    def forces_uncertainty(
        self,
        positions: Reals,
        species: Integers,
        cell: Reals | None = None,
        pairs: tuple[Integers, Reals] | None = None,
    ) -> Reals:
        """(N,) eV/Å, what the length of the error of each force is like; arguments as of :meth:`structure`.

        Raises:
            InputError: when the file does not know.
        """
        others = self._content.others
        if others is None:
            raise InputError(
                "does not know how certain it is", file=self._path, hint="export it with --uncertainty"
            )
        other = self.__copy__()
        other._weights = _aligned(len(self._weights))  # noqa: SLF001 - its own
        other._weights[:] = self._weights  # noqa: SLF001
        variance, none = np.zeros(len(species)), np.zeros((len(species), 3))
        for row in range(others.directions + 1):
            others.apply(other._weights, row)  # noqa: SLF001
            forces = other.structure(positions, species, cell, pairs).forces
            if row == 0:
                none = forces
            else:
                variance += np.square(forces - none).sum(axis=1)
        found: Reals = others.factor * np.sqrt(variance) ** others.exponent
        return found * np.sqrt(variance.mean()) ** others.shared if len(found) else found

    def _num_threads(self) -> int:
        """One in a process that was forked from one with more: GNU's OpenMP would wait for those for ever."""
        if self.threads == 1:
            return 1
        if not _with_threads:
            _with_threads.append(os.getpid())
        return self.threads if _with_threads[0] == os.getpid() else 1

    def _room(self, atoms: int, edges: int) -> int:
        """Address of memory for so many, this thread's own; kept, and only ever made larger."""
        needed = self._library.pimlip_workspace(atoms, edges)
        memory: NDArray[np.uint8] | None = getattr(self._memory, "bytes", None)
        if memory is None or len(memory) < needed:
            self._memory.bytes = memory = None  # let go of it first
            self._memory.bytes = memory = _aligned(needed + needed // 8)
        return int(memory.ctypes.data)


def _aligned(count: int) -> NDArray[np.uint8]:
    """Bytes that begin at a multiple of 64."""
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]


def _load(source: str, level: str, path: str | os.PathLike[str]) -> ctypes.CDLL:
    name = f"native-{source_hash(source)[:32]}-{level}.so"
    library = writable(cache_folder()) / name
    if not sealed(library):
        _compile(source, _LEVELS[level][1], library, path)
    try:
        loaded = load_private(library, seal_of(library))
    except OSError as error:
        raise InputError(
            f"cannot be loaded: {reason_of(error)}",
            file=library,
            hint="set XDG_CACHE_HOME to a folder on a file system where programs may run",
        ) from error
    integer, address = ctypes.c_int64, ctypes.c_void_p
    loaded.pimlip_workspace.argtypes, loaded.pimlip_workspace.restype = [integer] * 2, integer
    loaded.pimlip_evaluate.argtypes = [address] * 2 + [integer] * 3 + [address] * 6
    loaded.pimlip_evaluate.restype = ctypes.c_int
    loaded.pimlip_structure.argtypes = [
        *(address, address, integer, integer, ctypes.c_double),
        *(address, address, address, integer, address, address, address, address, address),
    ]
    loaded.pimlip_structure.restype = integer
    return loaded


def _compile(source: str, flags: tuple[str, ...], library: Path, path: str | os.PathLike[str]) -> None:
    try:
        find_compiler()
    except CompilerError as error:
        raise InputError(
            f"{error}, and a native model is compiled where it is used",
            file=path,
            hint="install gcc or clang, or use a machine with one and the same cache folder "
            f"({library.parent}) first",
        ) from error
    with scratch_folder(library.parent, "build") as scratch:
        text, built = scratch / "model.c", scratch / "model.so"
        text.write_text(source)
        try:
            compile_library(text, built, flags=(*_FLAGS, *flags))
        except CompilerError as error:
            raise InputError(str(error), file=path, hint="give another compiler as CC=...") from error
        built.replace(library)
        seal(library)
