"""A process that is gone is said in one line."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pimlip_zoo import cli
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.lost import lost_processes

RUN = Path("runs/a")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


class Killed(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@needs_fork
def test_a_killed_worker_of_the_loader(tmp_path):
    with (
        pytest.raises(InputError, match=r"a: a process of the loader was killed .*--resume"),
        lost_processes(RUN),
    ):
        list(DataLoader(Killed(), num_workers=1, multiprocessing_context="fork"))


@needs_fork
def test_a_killed_rank(tmp_path):
    def join(rank):
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2
        )
        torch.distributed.all_reduce(torch.ones(1))

    child = os.fork()
    if child == 0:
        try:
            join(1)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        join(0)
        os.waitpid(child, 0)
        with pytest.raises(InputError, match="another process of the training is gone"), lost_processes(RUN):
            torch.distributed.all_reduce(torch.ones(1))
    finally:
        torch.distributed.destroy_process_group()


WAITS_FOR_EVER = """
import subprocess, sys, threading, time
from pimlip_zoo.experiment import ranks

class Observer(threading.Thread):
    def __init__(self, children):
        super().__init__(daemon=True, name="child-process-observer")
        self._child_processes = children
        self.go = threading.Event()
    def run(self):
        self.go.wait()
        self._terminate_all()

alive = subprocess.Popen(["sleep", "10000"])
dead = subprocess.Popen(["sleep", "10000"])
dead.kill()
dead.wait()
ranks._GRACE = 0.1
observer = Observer([alive, dead])
observer.start()
ranks._speak_for_the_dead()
observer.go.set()
time.sleep(10000)
"""


def test_a_process_that_waits_for_a_lost_one_is_ended_with_a_line():
    # The pipes end with the last of its processes.
    done = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_EVER], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"pimlip-zoo: .* its process \d+, of rank 2, was killed by SIGKILL \(.*--resume\)", line
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("received 0 items of ancdata"),
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
    ],
)
def test_too_few_open_files(error):
    with pytest.raises(InputError, match="raise `ulimit -n`"), lost_processes(RUN):
        raise error


def test_other_errors_are_not_touched():
    with pytest.raises(RuntimeError, match="shapes"), lost_processes(RUN):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EMFILE])
def test_files_that_are_gone_or_too_many_end_a_command_with_one_line(monkeypatch, capsys, number):
    def command():
        raise OSError(number, os.strerror(number), "runs/a/metrics.csv")

    monkeypatch.setattr(cli, "app", command)
    monkeypatch.setattr(sys, "argv", ["pimlip-zoo"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"runs/a/metrics.csv: {os.strerror(number)} (" in line
