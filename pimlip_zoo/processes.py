"""Work that is shared by processes of their own, each with a limit of time and memory.

A process is fed with lines of JSON and answers each with one: the first says what the work is, every further one is a
job. Whoever feeds it may be a script without a guard, since nothing of it is imported again. When that is gone, the
process ends with everything that it started, a program of a calculator included.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pimlip_zoo.errors import InputError, reason_of

if TYPE_CHECKING:
    from typing_extensions import Self

Reply = Callable[[dict[str, Any]], dict[str, Any]]
"""The answer to a job; what it raises as :class:`InputError` ends all work."""

_LOOK = 0.1  # s
_START = 120.0
_NOT_FROM_HERE = "import sys; sys.path[:] = [place for place in sys.path if place]"
"""With ``-c`` Python looks for modules in the working folder first, where a data set may have brought some."""
"""s that a process may take until it is ready."""
_LAST = 4000
_OF_MACHINE = 4.0
"""s that pass in tearing down a process, at most."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one job may use."""

    seconds: float | None = None
    memory: float | None = None
    """MB, of its process and all that it starts."""


@dataclass(frozen=True)
class Answer:
    """How a job ended."""

    index: int
    content: dict[str, Any] | None
    """What was answered; None where the process died or was ended."""
    failure: str | None
    """Why, then."""
    seconds: float


class Processes:
    """Processes that do jobs, several at a time.

    Args:
        statement: Python that calls :func:`serve`.
        about: what the work is.
        count: processes at a time.
        limits: of each job.
        threads: of each process; None: the cores shared out, where the environment says nothing.
        key: what the work was asked for with, for messages.

    Raises:
        InputError: when a process refuses the work, or does not start.
    """

    def __init__(
        self,
        statement: str,
        about: Mapping[str, Any],
        *,
        count: int = 1,
        limits: Limits | None = None,
        threads: int | None = None,
        key: str | None = None,
    ) -> None:
        self.statement, self.count, self.limits, self.key = statement, count, limits or Limits(), key
        self._about = dict(about)
        self._environment = dict(os.environ)
        self._environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        if threads is not None:
            self._environment["OMP_NUM_THREADS"] = str(threads)
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._workers = [self._new()]
        self.about = self._workers[0].hello()
        """What the first process said of itself."""

    def _new(self) -> _Worker:
        return _Worker(self.statement, self._about, self._environment, self.limits, self.key)

    def run(self, jobs: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Answer]:
        """Do the jobs; answers come in the order in which they end.

        Args:
            jobs: number and content.

        Raises:
            InputError: when a process refuses a job.
        """
        waiting = list(reversed(jobs))
        while waiting or any(worker.busy for worker in self._workers):
            self._fill(waiting)
            ready, _, _ = select.select([w.answers for w in self._workers if w.busy], [], [], _LOOK)
            for place, worker in enumerate(self._workers):
                if not worker.busy:
                    continue
                answer = worker.finished() if worker.answers in ready else worker.over_limit()
                if answer is None:
                    continue
                if not worker.alive:
                    self._workers[place] = self._new()
                    self._workers[place].hello()
                yield answer

    def _fill(self, waiting: list[tuple[int, Mapping[str, Any]]]) -> None:
        for worker in self._workers:
            if waiting and not worker.busy:
                worker.start(*waiting.pop())
        while waiting and len(self._workers) < self.count:
            worker = self._new()
            self._workers.append(worker)
            worker.hello()
            worker.start(*waiting.pop())

    def close(self) -> None:
        """End all processes, and what they started."""
        for worker in self._workers:
            worker.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    def __init__(
        self,
        statement: str,
        about: Mapping[str, Any],
        environment: dict[str, str],
        limits: Limits,
        key: str | None,
    ) -> None:
        self.limits, self.key, self.busy, self._index, self._begun = limits, key, False, -1, 0.0
        self._rest = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", f"{_NOT_FROM_HERE}\n{statement}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.answers = self._process.stdout.fileno()
        self._send({**about, "memory": limits.memory})

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def hello(self) -> dict[str, Any]:
        """What it says of itself; InputError when it refuses the work."""
        end = time.monotonic() + _START
        while True:
            left = end - time.monotonic()
            if left <= 0:
                self.kill()
                raise InputError(f"has not started within {_START:g} s", key=self.key)
            if not select.select([self.answers], [], [], left)[0]:
                continue
            line = self._line()
            if line is None:
                continue
            if line == b"":
                how = self._ended()
                self.kill()
                raise InputError(f"the process that imports the calculator {how}", key=self.key)
            answer = json.loads(line)
            if "refused" in answer:
                self.kill()
                raise InputError(**answer["refused"])
            return dict(answer)

    def start(self, index: int, job: Mapping[str, Any]) -> None:
        self.busy, self._index, self._begun = True, index, time.monotonic()
        self._send(job)

    def finished(self) -> Answer | None:
        """How it ended when the answer is complete, or the process is gone."""
        line = self._line()
        if line is None:
            return None
        if line == b"":
            return self._failed(f"the process {self._ended()}")
        self.busy = False
        answer = json.loads(line)
        if "refused" in answer:
            raise InputError(**answer["refused"])
        return Answer(self._index, answer, None, time.monotonic() - self._begun)

    def over_limit(self) -> Answer | None:
        """How it ended when the job has used more than it may."""
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

    def _failed(self, reason: str) -> Answer:
        self.busy = False
        self.kill()
        return Answer(self._index, None, reason, time.monotonic() - self._begun)

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

    def _send(self, content: Mapping[str, Any]) -> None:
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


def serve(prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], Reply]]) -> None:
    """What such a process does: answer lines until there are no more.

    Args:
        prepare: takes what the work is, and gives what the process says of itself, and how it answers a job.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what calculators print is no answer
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, lines), daemon=True).start()

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    about = json.loads(lines.get())
    try:
        said, reply = prepare(about)
    except InputError as error:
        return answer(refusal(error))
    except Exception as error:  # noqa: BLE001 - whatever a foreign module does
        name = about.get("calculator", "the work")
        return answer({"refused": {"message": f"{name}: {reason_of(error)}"}})
    answer(said)
    while True:
        job = json.loads(lines.get())
        try:
            answer(reply(job))
        except InputError as error:
            answer(refusal(error))


def refusal(error: InputError) -> dict[str, Any]:
    """An answer that ends all work with this error."""
    told = {"message": error.message, "frame": error.frame, "key": error.key, "hint": error.hint}
    return {"refused": told}


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _listen(source: IO[str], lines: queue.Queue[str]) -> None:
    for line in source:
        lines.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)  # the session is this process's own


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
