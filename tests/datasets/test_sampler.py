import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.datasets.sampler import BatchBudget, BudgetSampler
from pimlip_zoo.errors import InputError


def sizes(seed, count):
    rng = np.random.default_rng(seed)
    natoms = rng.integers(1, 60, count)
    return natoms, natoms * rng.integers(0, 30, count)


cases = given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 5), st.integers(1, 40))


@cases
@settings(max_examples=60, deadline=None)
def test_in_a_pass_every_structure_is_met_once_within_the_budget(seed, count, ranks, most):
    natoms, edges = sizes(seed, count)
    budget = BatchBudget(max_structures=most, max_atoms=200, max_edges=4000)
    per_rank = [
        list(BudgetSampler(natoms, edges, budget, seed=seed, rank=r, ranks=ranks)) for r in range(ranks)
    ]
    assert len({len(batches) for batches in per_rank}) == 1, "all ranks make the same number of steps"
    for batch in itertools.chain(*per_rank):
        assert 1 <= len(batch) <= most
        assert natoms[batch].sum() <= 200
        assert edges[batch].sum() <= 4000
    batches = list(itertools.chain(*per_rank))
    met = list(itertools.chain(*batches))
    assert set(met) == set(range(count))
    if max(map(len, batches)) > 1:
        assert len(met) == count
    else:
        assert len(met) - count < ranks


@cases
@settings(max_examples=30, deadline=None)
def test_the_order_depends_on_seed_and_pass_alone(seed, count, ranks, most):
    natoms, edges = sizes(seed, count)
    budget = BatchBudget(max_structures=most)
    both = [list(BudgetSampler(natoms, edges, budget, seed=seed, ranks=ranks, passes=2)) for _ in range(2)]
    assert both[0] == both[1]


def test_passes_and_seeds_give_other_orders():
    natoms, edges = sizes(0, 500)
    budget = BatchBudget(max_structures=10)
    sampler = BudgetSampler(natoms, edges, budget, passes=2)
    steps = list(sampler)
    first = sampler.steps_in_pass(0)
    assert steps[:first] != steps[first:]
    assert steps != list(BudgetSampler(natoms, edges, budget, seed=1, passes=2))


@given(st.integers(0, 1000), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_resuming_anywhere_gives_what_would_have_come(seed, stop):
    natoms, edges = sizes(seed, 120)
    budget = BatchBudget(max_structures=7, max_edges=3000)

    def make():
        return BudgetSampler(natoms, edges, budget, seed=seed, rank=1, ranks=2, passes=4)

    whole = list(make())
    stop = stop % len(whole)
    begun = make()
    stream = iter(begun)
    for _ in range(stop):
        next(stream)
    by_state, by_step = make(), make()
    by_state.load_state_dict(begun.state_dict())
    by_step.skip_to(stop)
    assert list(by_state) == whole[stop:]
    assert list(by_step) == whole[stop:]


def test_a_batch_holds_structures_of_about_one_size():
    rng = np.random.default_rng(0)
    edges = rng.integers(1, 10_000, 20_000)
    budget = BatchBudget(max_edges=50_000)
    batches = list(BudgetSampler(np.ones_like(edges), edges, budget))
    spread = np.mean([np.std(edges[b]) for b in batches if len(b) > 1])
    assert spread < 0.05 * np.std(edges)
    assert np.mean([edges[b].sum() for b in batches]) > 0.9 * 50_000


def test_the_ranks_of_a_step_have_about_the_same_work():
    rng = np.random.default_rng(0)
    edges = rng.integers(1, 10_000, 20_000)
    budget = BatchBudget(max_structures=8)
    ranks = [list(BudgetSampler(np.ones_like(edges), edges, budget, rank=r, ranks=4)) for r in range(4)]
    work = np.array([[edges[batch].sum() for batch in steps] for steps in ranks])
    assert np.mean(work.max(axis=0) / work.mean(axis=0)) < 1.05


def test_without_shuffling_the_order_is_that_of_the_data():
    natoms, edges = sizes(0, 50)
    batches = list(BudgetSampler(natoms, edges, BatchBudget(max_structures=8), shuffle=False))
    assert list(itertools.chain(*batches)) == list(range(50))


def test_a_structure_beyond_the_budget_is_named_with_the_setting():
    with pytest.raises(
        InputError, match=r"max_edges: structure 1 alone has 500, the budget is 100 \(raise max_edges"
    ):
        BudgetSampler([3, 4], [10, 500], BatchBudget(max_edges=100))
    with pytest.raises(InputError, match="no structures"):
        BudgetSampler([], [], BatchBudget())
    with pytest.raises(InputError, match="max_atoms: must be at least 1"):
        BatchBudget(max_atoms=0)
