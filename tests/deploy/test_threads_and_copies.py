"""Calculators in threads, copied, pickled and sent to other processes compute what one alone does."""

from __future__ import annotations

import copy
import multiprocessing
import operator
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.mep import NEB

from pimlip_zoo.compiled.sweeps.trace import trace_model
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.committee import CommitteeCalculator
from pimlip_zoo.deploy.difference import _Sum
from pimlip_zoo.deploy.native.calculator import NativeCalculator
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.deploy.turns import Turns
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model

pytestmark = pytest.mark.compiler

THREADS = 8
SPECIES = ("Al", "Cu")


def potential(dtype=torch.float64):
    info = get_model("nequip")
    config = info.configure(
        "small", channels=4, l_max=1, radial_hidden=(8,), cutoff=4.0, avg_num_neighbors=20.0
    )
    made = Potential(info.model(config, SPECIES)).set_dtype(dtype).eval()
    random = np.random.default_rng(0)  # torch's own generator is one for all threads
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.copy_(torch.as_tensor(random.normal(size=parameter.shape)))
    return made


@pytest.fixture(scope="module")
def native_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "model.pimlip"
    export_native(potential(), path)
    return path


@pytest.fixture(params=["torch", "native"])
def make(request):
    """Makes calculators of one and the same model, each with everything of its own."""
    if request.param == "torch":
        return lambda: PimlipCalculator(potential())
    path = request.getfixturevalue("native_file")
    return lambda: NativeCalculator(path)


def alloy(seed, size=1):
    atoms = bulk("Cu", cubic=True, a=3.7) * (size, size, size + 1)
    atoms.symbols[::3] = "Al"
    atoms.positions += np.random.default_rng(seed).normal(0, 0.05, atoms.positions.shape)
    return atoms


def at_once(job):
    """``job(n)`` in eight threads that begin together."""
    barrier = threading.Barrier(THREADS)

    def wait_and_do(number):
        barrier.wait(60)
        return job(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(wait_and_do, range(THREADS)))


def forces(calculator, seed, size=1):
    atoms = alloy(seed, size)
    atoms.calc = calculator
    return atoms.get_forces()


def forces_of(calculators, size=1):
    return lambda number: forces(calculators[number], number, size)


def same(found, expected):
    return all(np.abs(a - b).max() < 1e-10 for a, b in zip(found, expected, strict=True))


def test_eight_threads_that_evaluate_for_the_first_time_together_agree_with_one(make):
    expected = [forces(make(), seed) for seed in range(THREADS)]
    for _ in range(2):
        calculators = [make() for _ in range(THREADS)]
        assert same(at_once(forces_of(calculators)), expected)
        assert same([forces(calculators[n], n) for n in range(THREADS)], expected)


def test_eight_threads_that_make_and_use_a_calculator_agree_with_one(make):
    assert same(at_once(lambda n: forces(make(), n)), [forces(make(), seed) for seed in range(THREADS)])


def test_threads_may_share_a_model_through_copies_of_a_calculator(make):
    expected = [forces(make(), seed, 2) for seed in range(THREADS)]
    for copied in (copy.copy, copy.deepcopy):
        calculators = [copied(shared) for shared in [make()] for _ in range(THREADS)]
        for _ in range(5):
            assert same(at_once(forces_of(calculators, 2)), expected)


@pytest.mark.parametrize("kind", ["alone", "committee", "sum"])
def test_one_calculator_that_threads_share_gives_each_its_own_structure(make, kind):
    def together():
        if kind == "committee":
            return CommitteeCalculator([make(), make()])
        return _Sum([make(), make()]) if kind == "sum" else make()

    def both(calculator, n):
        atoms = bulk("Cu", cubic=True, a=3.61) * (1 + n % 3, 1, 1)
        atoms.rattle(0.1, seed=n)
        atoms.calc = calculator
        return np.vstack([atoms.get_forces(), np.full(3, atoms.get_potential_energy())])

    expected = [both(together(), n) for n in range(THREADS)]
    shared = together()
    for _ in range(3):
        assert same(at_once(lambda n: both(shared, n)), expected)
    again = pickle.loads(pickle.dumps(shared))
    assert again.turns is not shared.turns is not copy.copy(shared).turns
    assert same([both(again, 0)], expected[:1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_that_is_forked_while_a_thread_computes_does_not_wait_for_it():
    turns = Turns()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with turns:
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        with turns:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_calculators_of_one_potential_trace_it_once(dtype):
    shared = potential(dtype=dtype)
    expected = [forces(PimlipCalculator(potential(dtype=dtype)), seed) for seed in range(THREADS)]
    calculators = [PimlipCalculator(shared) for _ in range(THREADS)]
    found = at_once(forces_of(calculators))
    assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(found, expected, strict=True))


def test_bands_of_a_parallel_neb_are_those_of_a_serial_one(make):
    def band(**options):
        first = bulk("Cu", cubic=True, a=3.61)
        first.symbols[1] = "Al"
        last = first.copy()
        del first[0]
        last.positions[2] = last.positions[0]
        del last[0]
        images = [first.copy() for _ in range(5)] + [last]
        neb = NEB(images, method="improvedtangent", **options)
        neb.interpolate()
        for image in images:
            image.calc = make()
        return neb.get_forces(), np.array(neb.energies)

    expected = band()
    for _ in range(3):
        assert same(band(parallel=True), expected)


def test_other_threads_do_not_notice_that_a_model_is_traced():
    linear = torch.nn.Linear(3, 1)
    x = torch.ones(2, 3)
    right, seen = linear(x).detach(), []

    class Elsewhere(type(potential().model)):
        def forward(self, graph, vectors):
            with ThreadPoolExecutor(1) as pool:
                seen.append(pool.submit(linear, x).result())
            return super().forward(graph, vectors)

    model = potential().model
    model.__class__ = Elsewhere
    call, attribute = torch.nn.Module.__call__, torch.nn.Module.__getattr__
    assert trace_model(model) is not None
    assert [torch.equal(each.detach(), right) for each in seen] == [True]
    assert (torch.nn.Module.__call__, torch.nn.Module.__getattr__) == (call, attribute)


def test_copies_of_structures_with_calculators_keep_working(make):
    committee = CommitteeCalculator([make(), make()])
    for calculator in (make(), committee):
        atoms = alloy(0)
        atoms.calc = calculator
        expected = atoms.get_forces()
        again = copy.deepcopy(atoms)
        assert again.calc is not atoms.calc
        assert same([again.get_forces()], [expected])
        again.rattle(0.1, seed=1)  # what it computes anew is its own
        assert not same([again.get_forces()], [expected])
        assert same([atoms.get_forces()], [expected])
        for copied in (copy.copy(calculator), pickle.loads(pickle.dumps(calculator))):
            assert same([forces(copied, seed) for seed in (1, 0)], [forces(make(), seed) for seed in (1, 0)])


def test_a_pickled_native_calculator_needs_its_file_no_more(native_file, tmp_path):
    path = tmp_path / "moved.pimlip"
    path.write_bytes(native_file.read_bytes())
    calculator = NativeCalculator(path, threads=1)
    pickled = pickle.dumps(calculator)
    path.unlink()
    assert same([forces(pickle.loads(pickled), 0)], [forces(NativeCalculator(native_file), 0)])
    assert pickle.loads(pickled).model.threads == 1


def test_a_native_calculator_goes_to_a_process_pool(native_file):
    jobs = []
    for seed in range(2):
        atoms = alloy(seed)
        atoms.calc = NativeCalculator(native_file)
        jobs.append(atoms)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map_async(operator.methodcaller("get_forces"), jobs).get(timeout=120)
    assert same(found, [atoms.get_forces() for atoms in jobs])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("kind", ["torch", "native"])
def test_a_process_that_was_forked_after_two_threads_computed_does_not_wait_for_them(kind, native_file):
    calculator = (
        PimlipCalculator(potential()) if kind == "torch" else NativeCalculator(native_file, threads=2)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = forces(calculator, 0, 3)
        child = os.fork()
        if not child:
            calculator.reset()
            os._exit(0 if same([forces(calculator, 0, 3)], [expected]) else 1)
    finally:
        torch.set_num_threads(threads)
    for _ in range(300):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked process waits for ever")
    assert os.waitstatus_to_exitcode(status) == 0
