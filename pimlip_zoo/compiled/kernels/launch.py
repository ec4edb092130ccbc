"""From the text of a triton function to something that is launched."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import linecache
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

_WIDEST = 128  # channels of one program
_WARP = 32
_ADD = "def add(a, b):\n    return a + b\n\n\n"


@dataclass(frozen=True)
class Block:
    """The channels of one program, a power of two, and how a kernel's text reads and writes them."""

    channels: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """How many channels: all of them, up to a limit, rounded up."""
        return min(_WIDEST, 1 << (self.channels - 1).bit_length())

    @property
    def count(self) -> int:
        """How many programs share out the channels."""
        return -(-self.channels // self.size)

    @property
    def scalar(self) -> str:
        """Triton's name of the dtype."""
        return "tl.float32" if self.dtype == torch.float32 else "tl.float64"

    @property
    def _mask(self) -> str:
        return "" if self.channels % self.size == 0 else f"c < {self.channels}"

    def load(self, pointer: str, row: int | str) -> str:
        """Channels ``c`` of a row; ``{}`` where the row is known later."""
        mask = f", mask={self._mask}, other=0.0" if self._mask else ""
        return f"tl.load({pointer} + {row} * {self.channels}{mask})"

    def store(self, pointer: str, row: int, value: str) -> str:
        """Write channels ``c`` of a row."""
        mask = f", mask={self._mask}" if self._mask else ""
        return f"tl.store({pointer} + {row} * {self.channels}, {value}{mask})"

    def zeros(self) -> str:
        """A vector of zeros, as wide as the block."""
        return f"tl.full(({self.size},), 0.0, {self.scalar})"


@dataclass(frozen=True)
class Source:
    """A triton function."""

    arguments: tuple[str, ...]
    """Names of tensors and integers that it takes."""
    body: tuple[str, ...]
    """Its lines, indented from 0."""
    groups: int = 1
    """Size of the grid's third axis; the first are rows and the second blocks of channels."""
    whole: bool = False
    """Whether one program runs over all channels."""

    @property
    def text(self) -> str:
        """The function, called ``kernel``."""
        lines = [f"def kernel({', '.join(self.arguments)}):", *(f"    {line}" for line in self.body)]
        return "\n".join([*lines, ""])


def indented(lines: Iterable[str]) -> list[str]:
    """Lines of a block; empty ones are left out."""
    return [f"    {line}" for line in lines if line]


class Launcher:
    """The triton functions of one operation, made as they are asked for.

    Args:
        source: writes a kernel.
        block: the channels of a program.
    """

    def __init__(self, source: Callable[[Any], Source], block: Block) -> None:
        self._source, self._block = source, block
        self._known: dict[Hashable, tuple[Source, Any]] = {}

    def run(self, kernel: Hashable, rows: int, arguments: Mapping[str, Tensor | int | None]) -> None:
        """Launch a kernel on the device of its tensors.

        Args:
            kernel: which one.
            rows: size of the grid's first axis; nothing happens where it is 0.
            arguments: what it takes, by name, and possibly more.
        """
        if kernel not in self._known:
            source = self._source(kernel)
            self._known[kernel] = (source, compiled(source.text))
        if rows == 0 or self._block.channels == 0:
            return
        source, function = self._known[kernel]
        taken = {name: _contiguous(arguments[name]) for name in source.arguments}
        grid = (rows, 1 if source.whole else self._block.count, source.groups)
        with _device_of(taken.values()):
            function[grid](**taken, num_warps=max(1, self._block.size // _WARP))


def _contiguous(value: Tensor | int | None) -> Tensor | int:
    assert value is not None
    return value.contiguous() if isinstance(value, Tensor) else value


def _device_of(values: Iterable[Tensor | int]) -> contextlib.AbstractContextManager[None]:
    device = next(value.device for value in values if isinstance(value, Tensor))
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def compiled(text: str) -> Any:
    """The triton function of a text that defines ``kernel``, which may use ``add`` in reductions."""
    import triton
    import triton.language as tl

    # triton reads the source of what it compiles, which inspect finds in linecache.
    text = _ADD + text
    name = f"<pimlip-zoo triton {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "__name__": "pimlip_zoo_triton"}
    exec(compile(text, name, "exec"), scope)  # noqa: S102
    # tl.sum is compiled or interpreted as was decided when triton was imported, this as is decided now.
    scope["add"] = triton.jit(scope["add"])
    return triton.jit(scope["kernel"])


def missing() -> str | None:
    """Why there is no triton, or None."""
    return None if importlib.util.find_spec("triton") else "not installed (pip install 'pimlip-zoo[gpu]')"


def interpreted() -> bool:
    """Whether triton's interpreter is switched on (``TRITON_INTERPRET=1``), which runs kernels on CPU tensors."""
    if missing():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def works_on(device: torch.device) -> str | None:
    """Why a small kernel does not run on this device, or None; tried once."""
    source = Source(("x",), ("i = tl.program_id(0)", "tl.store(x + i, tl.load(x + i) + 1.0)"))
    try:
        x = torch.zeros(4, device=device)
        Launcher(lambda _: source, Block(1, torch.float32)).run("probe", 4, {"x": x})
        wrong = None if bool((x == 1).all()) else "gives wrong numbers"
    except Exception as error:  # noqa: BLE001  # triton, its compiler and the driver have errors of many types
        wrong = f"does not run, {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None if wrong is None else f"a first kernel {wrong}"


def status() -> str:
    """What there is to say about triton here; begins with ``available`` where its kernels run."""
    if (reason := missing()) is not None:
        return f"not available: {reason}; GPUs use reference"
    import triton

    if interpreted():
        return f"available: triton {triton.__version__}, interpreted on CPU tensors: to test, not to compute"
    if not torch.cuda.is_available():
        return f"not available: triton {triton.__version__} is installed, but there is no GPU"
    device = torch.device("cuda", torch.cuda.current_device())
    if (reason := works_on(device)) is not None:
        return f"not available: triton {triton.__version__} is installed, but {reason}; GPUs use reference"
    return f"available: triton {triton.__version__} on {torch.cuda.get_device_name(device)}"
