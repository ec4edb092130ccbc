"""Work in processes of their own: shared, and none of it lost when one of them dies, hangs or refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pimlip_zoo.errors import InputError
from pimlip_zoo.processes import Limits, Processes

STATEMENT = """
import os, time
from pimlip_zoo.errors import InputError
from pimlip_zoo.processes import serve

def prepare(about):
    if about["name"] == "wrong":
        raise InputError("no such work", key="name")
    def reply(job):
        if job["do"] == "abort":
            os.abort()
        if job["do"] == "hang":
            time.sleep(60)
        if job["do"] == "refuse":
            raise InputError("not this one", frame=7, hint="another")
        print("what is printed is no answer")
        return {"twice": 2 * job["number"], "process": os.getpid()}
    return {"is": about["name"], "process": os.getpid()}, reply

serve(prepare)
"""


def test_jobs_are_shared_and_one_that_ends_its_process_or_hangs_costs_no_other():
    jobs = [{"do": do, "number": n} for n, do in enumerate(["give", "abort", "give", "hang", "give", "give"])]
    with Processes(STATEMENT, {"name": "it"}, count=2, limits=Limits(seconds=2)) as processes:
        assert processes.about["is"] == "it"
        found = {answer.index: answer for answer in processes.run(list(enumerate(jobs)))}
    assert {n: found[n].content["twice"] for n in (0, 2, 4, 5)} == {0: 0, 2: 4, 4: 8, 5: 10}
    assert "SIGABRT" in found[1].failure
    assert found[3].failure == "not done within 2 s"


def test_what_is_refused_ends_all_work_with_its_reason():
    with pytest.raises(InputError, match="no such work"):
        Processes(STATEMENT, {"name": "wrong"})
    with (
        Processes(STATEMENT, {"name": "it"}) as processes,
        pytest.raises(InputError, match="not this one") as caught,
    ):
        list(processes.run([(0, {"do": "refuse"})]))
    assert (caught.value.frame, caught.value.hint) == (7, "another")


def test_processes_end_with_whoever_started_them():
    script = f"""
import time
from pathlib import Path
from pimlip_zoo.processes import Processes
print(Processes({STATEMENT!r}, {{"name": "it"}}).about["process"], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        process = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # nobody waits for it here
        time.sleep(0.05)
    pytest.fail("it is still there")
