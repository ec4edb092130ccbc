"""Several calculations at a time, each in a process of its own with a limit of time and memory."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.structures import Structure
from pimlip_zoo.labelling.worker import as_message

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Limits", "Outcome", "Pool"]

_LOOK = 0.1  # s
_START = 120.0
"""s that a process may take until its calculator is there."""
_LAST = 4000
_OF_MACHINE = 4.0
"""s that pass in tearing down a process, at most."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one calculation may use."""

    seconds: float | None = None
    memory: float | None = None
    """MB, of its process and all that it starts."""


@dataclass(frozen=True)
class Outcome:
    """How a calculation ended."""

    index: int
    """Of the structure."""
    result: dict[str, Any] | None
    failure: str | None
    seconds: float


class Pool:
    """Processes that calculate.

    Args:
        calculator: its name.
        workers: processes at a time.
        limits: of each calculation.
        folder: where calculators that write files may do so.

    Raises:
        InputError: when the calculator is refused.
    """

    def __init__(
        self, calculator: str, *, workers: int = 1, limits: Limits | None = None, folder: Path | None = None
    ) -> None:
        self.calculator, self.count, self.limits = calculator, workers, limits or Limits()
        self.folder = (folder or Path("labelling")).absolute()
        self._workers = [self._new()]
        self.about = self._workers[0].hello()
        """What the calculator is: version, level, known."""

    def _new(self) -> _Worker:
        return _Worker(self.calculator, self.count, self.limits, self.folder)

    def run(self, jobs: Sequence[tuple[int, Structure]], *, compare: bool = False) -> Iterator[Outcome]:
        """Compute; outcomes come in the order in which they end.

        Args:
            jobs: number and structure.
            compare: also find out whether energies and forces belong together.

        Raises:
            InputError: when the calculator refuses a structure that it cannot do by its nature.
        """
        waiting = list(reversed(jobs))
        while waiting or any(worker.busy for worker in self._workers):
            self._fill(waiting, compare=compare)
            ready, _, _ = select.select([w.answers for w in self._workers if w.busy], [], [], _LOOK)
            for place, worker in enumerate(self._workers):
                if not worker.busy:
                    continue
                outcome = worker.finished() if worker.answers in ready else worker.over_limit()
                if outcome is None:
                    continue
                if not worker.alive:
                    self._workers[place] = self._new()
                    self._workers[place].hello()
                yield outcome

    def _fill(self, waiting: list[tuple[int, Structure]], *, compare: bool) -> None:
        for worker in self._workers:
            if waiting and not worker.busy:
                worker.start(*waiting.pop(), compare=compare)
        while waiting and len(self._workers) < self.count:
            worker = self._new()
            self._workers.append(worker)
            worker.hello()
            worker.start(*waiting.pop(), compare=compare)

    def close(self) -> None:
        """End all processes, and what they started."""
        for worker in self._workers:
            worker.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    def __init__(self, calculator: str, workers: int, limits: Limits, folder: Path) -> None:
        environment = dict(os.environ)
        threads = max(1, (os.cpu_count() or 1) // workers)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
        self.limits, self.busy, self._index, self._begun = limits, False, -1, 0.0
        self._rest = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pimlip_zoo.labelling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.answers = self._process.stdout.fileno()
        self._send({"calculator": calculator, "memory": limits.memory, "folder": str(folder)})

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def hello(self) -> dict[str, Any]:
        """What the calculator is; InputError when it is refused."""
        end = time.monotonic() + _START
        while True:
            left = end - time.monotonic()
            if left <= 0:
                self.kill()
                raise InputError(f"has not started within {_START:g} s", key="--calculator")
            if not select.select([self.answers], [], [], left)[0]:
                continue
            line = self._line()
            if line is None:
                continue
            if line == b"":
                how = self._ended()
                self.kill()
                raise InputError(f"the process that imports the calculator {how}", key="--calculator")
            answer = json.loads(line)
            if "refused" in answer:
                self.kill()
                raise InputError(**answer["refused"])
            return dict(answer)

    def start(self, index: int, structure: Structure, *, compare: bool) -> None:
        self.busy, self._index, self._begun = True, index, time.monotonic()
        self._send({"structure": as_message(structure), "compare": compare})

    def finished(self) -> Outcome | None:
        """The outcome when the answer is complete, or the process is gone."""
        line = self._line()
        if line is None:
            return None
        if line == b"":
            return self._failed(f"the process {self._ended()}")
        self.busy = False
        answer = json.loads(line)
        if "refused" in answer:
            raise InputError(**answer["refused"])
        seconds = time.monotonic() - self._begun
        return Outcome(self._index, answer.get("result"), answer.get("failure"), seconds)

    def over_limit(self) -> Outcome | None:
        """The outcome when the calculation has used more than it may."""
        limits = self.limits
        if limits.seconds is not None and time.monotonic() - self._begun > limits.seconds:
            return self._failed(f"not done within {limits.seconds:g} s")
        if limits.memory is not None:
            used = _memory_of_group(self._process.pid)
            if used > limits.memory:
                return self._failed(f"uses {used:.0f} MB, more than {limits.memory:g} MB")
        return None

    def kill(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_OF_MACHINE)
        self._said.close()

    def _failed(self, reason: str) -> Outcome:
        self.busy = False
        self.kill()
        return Outcome(self._index, None, reason, time.monotonic() - self._begun)

    def _ended(self) -> str:
        """How the process ended, and the last line that it wrote."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_OF_MACHINE)
        code = self._process.returncode
        how = f"ended with code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _LAST))
        lines = self._said.read().decode(errors="replace").strip("\0 \n").splitlines()
        return f"{how}: {lines[-1].strip()[:200]}" if lines else how

    def _send(self, content: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # that it is gone is seen when its answer is read
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()

    def _line(self) -> bytes | None:
        """A complete line, b"" at the end, None while there is more to come."""
        part = os.read(self.answers, 1 << 20)
        self._rest += part
        line, newline, rest = self._rest.partition(b"\n")
        if newline:
            self._rest = rest
            return line
        return None if part else b""


def _memory_of_group(group: int) -> float:
    """Resident memory in MB of the processes of a group; 0 where the system does not tell."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[21]) * page
    return total / 2**20
