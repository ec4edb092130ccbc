"""A training that loses what it needs, a rank, its folder, open files, ends with one line, whoever notices."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

TRAIN = [
    *("train", "--model", "nequip", "--device", "cpu", "--max-steps", "100000"),
    *("--data", "builtin:ethanol-gfn2/train@:25", "--valid", "builtin:ethanol-gfn2/valid@:10"),
    *("--set", "trainer.valid_every=2", "--set", "model.channels=2", "--set", "model.num_layers=1"),
]


def start(out, *more, limit=None):
    command = [sys.executable, "-m", "pimlip_zoo", *TRAIN, "--out", out, *more]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=limit,  # noqa: PLW1509 - a single thread, one system call
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def begun(job, out):
    """Until it has written a checkpoint."""
    end = time.monotonic() + 300
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


def ended(job):
    """What all its processes printed: the pipe ends with the last of them."""
    try:
        return job.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        pytest.fail(f"it hangs: {job.communicate()[0]}")


def follower_of(job):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True, check=True
    )
    (pid,) = map(int, found.stdout.split())
    return pid


def last_line(output):
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("pimlip-zoo: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["follower", "leader"])
def test_a_killed_rank_ends_the_other(killed, tmp_path):
    if shutil.which("ps") is None:
        pytest.skip("there is no ps")
    out = tmp_path / "run"
    job = start(out, "--devices", 2)
    begun(job, out)
    os.kill(follower_of(job) if killed == "follower" else job.pid, signal.SIGKILL)
    line = last_line(ended(job))
    assert "another process of the training is gone" in line
    assert "--resume" in line
    assert job.returncode == (2 if killed == "follower" else -signal.SIGKILL)


@pytest.mark.slow
def test_a_run_folder_that_is_deleted_is_named(tmp_path):
    out = tmp_path / "run"
    job = start(out)
    begun(job, out)
    out.rename(tmp_path / "elsewhere")
    line = last_line(ended(job))
    assert str(out) in line
    assert job.returncode == 2


@pytest.mark.parametrize("files", [12, 24, 47])
def test_too_few_open_files_are_said_before_anything_is_written(tmp_path, files, monkeypatch):
    from typer.testing import CliRunner

    from pimlip_zoo.cli import app
    from pimlip_zoo.errors import InputError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    words = [*TRAIN, "--out", str(tmp_path / "run"), "--set", "data.num_workers=2"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, InputError)
    assert f"allows {files} open files, and a training with 2 processes" in str(result.exception)
    assert "raise `ulimit -n`" in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("files", [20, 48])
def test_a_training_with_few_open_files_is_refused_or_done(tmp_path, files):
    job = start(
        tmp_path / "run",
        *("--max-steps", 10, "--set", "data.num_workers=2"),
        limit=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
    output = ended(job)
    if files == 48:
        assert job.returncode == 0, output
        return
    assert "raise `ulimit -n`" in last_line(output)
    assert job.returncode == 2
