"""Of processes that want one folder one gets it; a lock ends with its process, however that ends."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pimlip_zoo import locks
from pimlip_zoo.errors import InputError
from pimlip_zoo.locks import LOCK_NAME, claimed, in_turn, numbered_folder, try_lock

HOLD = """
import pathlib, sys, time
from pimlip_zoo.locks import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder):
    job = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    return job


def test_a_folder_that_another_process_has_is_refused_and_a_killed_one_has_none(tmp_path):
    folder = tmp_path / "new" / "run"
    job = holder(folder)
    with pytest.raises(InputError, match=rf"run: process {job.pid} on .* is writing to it"), claimed(folder):
        pass
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    assert (folder / LOCK_NAME).exists()  # an empty promise
    with claimed(folder):
        assert (folder / LOCK_NAME).read_text().startswith(f"process {os.getpid()} ")
    assert list(folder.iterdir()) == []


def test_of_many_threads_one_at_a_time_has_a_folder(tmp_path):
    inside, most, got = [], [], []
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        while number not in got:
            try:
                with claimed(tmp_path / "run"):
                    inside.append(number)
                    most.append(len(inside))
                    got.append(number)
                    inside.remove(number)
            except InputError:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(got) == list(range(8))
    assert set(most) == {1}


def test_those_who_ask_for_a_number_at_the_same_moment_get_different_ones(tmp_path):
    start, end = threading.Barrier(8), threading.Barrier(8)

    def work(number):
        start.wait()
        with numbered_folder(tmp_path / "runs", "nequip") as folder:
            end.wait()
            if number < 7:
                (folder / "something").touch()
            return folder.name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(work, range(8)))
    assert sorted(names) == [f"nequip-{number}" for number in range(1, 9)]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(names[:7])


def test_a_lock_is_not_got_on_a_file_that_was_removed_under_it(tmp_path, monkeypatch):
    """The last holder removes its file between the opening and the locking of another."""
    first = try_lock(tmp_path / "lock")
    flock = locks.fcntl.flock

    def late(descriptor, how):
        monkeypatch.undo()
        first.release()
        flock(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    second = try_lock(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None
    second.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_the_work_goes_on_with_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with caplog.at_level("WARNING", logger="pimlip_zoo"), claimed(tmp_path / "run") as folder:
        assert folder.is_dir()
    assert "no locks" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    says = pytest.raises(InputError, match=r"file/run: cannot be made: not a directory")
    with says, claimed(tmp_path / "file" / "run"):
        pass


def test_whoever_adds_to_a_file_in_turn_loses_nothing(tmp_path):
    file = tmp_path / "count"
    file.write_text("0")

    def add(_):
        for _ in range(20):
            with in_turn(tmp_path / ".count.lock"):
                file.write_text(str(int(file.read_text()) + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert file.read_text() == "80"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("thesis")
    run = tmp_path / "run"
    run.mkdir()
    for name in (LOCK_NAME, ".physics.json.lock"):
        (run / name).symlink_to("../thesis.txt")
    with pytest.raises(InputError, match="symbolic link"), claimed(run):
        pass
    with pytest.raises(InputError, match="symbolic link"), in_turn(run / ".physics.json.lock"):
        pass
    assert thesis.read_text() == "thesis"


def test_a_file_that_is_no_lock_keeps_what_is_in_it(tmp_path):
    lock = try_lock(tmp_path / "a")
    assert (tmp_path / "a").read_text().startswith(f"process {os.getpid()} on ")
    lock.release()
    (tmp_path / "thesis.txt").write_text("thesis")
    (tmp_path / "a").hardlink_to(tmp_path / "thesis.txt")
    try_lock(tmp_path / "a").release()
    assert (tmp_path / "thesis.txt").read_text() == "thesis"


def test_whoever_waits_for_long_says_for_whom(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    held = try_lock(tmp_path / "a")
    threading.Timer(0.2, held.release).start()
    with in_turn(tmp_path / "a"):
        pass
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'a'}: waiting for process {os.getpid()} on {socket.gethostname()}"
    ]


def test_a_lock_that_is_a_pipe_holds_nobody(tmp_path):
    os.mkfifo(tmp_path / LOCK_NAME)
    with pytest.raises(InputError, match="its lock is no file"), claimed(tmp_path):
        pass
    with pytest.raises(InputError, match="its lock is no file"), in_turn(tmp_path / LOCK_NAME):
        pass
