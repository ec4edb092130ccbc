"""The order of training samples is a function of seed and step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample, frames_to_batch
from pimlip_zoo.training.data import SampleList, StepSampler, in_bursts, training_loader
from pimlip_zoo.training.packed_batch import pack, unpack

ETHANOL = load_builtin("ethanol-gfn2/train")[:7]


@given(
    size=st.integers(1, 40),
    batch=st.integers(1, 50),
    steps=st.integers(1, 60),
    start=st.integers(0, 60),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_stream_started_later_is_the_rest_of_the_whole_stream(size, batch, steps, start, seed):
    whole = list(StepSampler(size, batch, steps, seed))
    later = StepSampler(size, batch, steps, seed)
    later.first_step = min(start, steps)
    assert list(later) == whole[later.first_step :]
    assert len(whole) == steps


@given(size=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_pass_takes_each_sample_once(size, batch, seed):
    sampler = StepSampler(size, batch, 10**6, seed)
    steps = iter(sampler)
    orders = []
    for _ in range(3):
        indices = [index for _ in range(sampler.steps_per_pass) for index in next(steps)]
        assert sorted(indices) == list(range(size))
        orders.append(indices)
    assert size < 5 or orders[0] != orders[1] or orders[1] != orders[2]


def test_seeds_that_differ_in_high_bits_give_other_orders():
    orders = {
        tuple(next(iter(StepSampler(50, 50, 1, seed)))) for seed in (0, 1, 1 << 12, 1 << 32, (1 << 32) + 1)
    }
    assert len(orders) == 5


@given(size=st.integers(4, 40), batch=st.integers(4, 20), ranks=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_ranks_share_each_batch(size, batch, ranks):
    whole = list(StepSampler(size, batch, 12, 0))
    parts = [list(StepSampler(size, batch, 12, 0, rank, ranks)) for rank in range(ranks)]
    for step, indices in enumerate(whole):
        together = [index for part in parts for index in part[step] if index >= 0]
        assert sorted(together) == sorted(indices)
        assert all(part[step] for part in parts)


@pytest.mark.parametrize(
    "frames", [ETHANOL, ETHANOL[:1], [Frame(numbers=np.array([8]), positions=np.zeros((1, 3)))]]
)
def test_a_batch_is_packed_and_unpacked_bit_by_bit(frames):
    batch = frames_to_batch(frames, ("H", "C", "O"), 3.0)
    parcel = pack(batch)
    assert parcel.words.dtype == torch.int64
    again = unpack(parcel)
    assert again.graph.num_graphs == len(frames)
    tensors = [(*each.graph[:-2], each.graph.electrons, *each.labels) for each in (batch, again)]
    for one, two in zip(*tensors, strict=True):
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def test_batches_of_workers_are_those_of_the_training_itself():
    samples = SampleList([frame_to_sample(frame, ("H", "C", "O"), 3.0) for frame in ETHANOL])
    sampler = StepSampler(len(ETHANOL), 4, 5, seed=1)
    for one, two in zip(training_loader(samples, sampler), training_loader(samples, sampler, 1), strict=True):
        for left, right in zip(pack(one)[:2], two[:2], strict=True):
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40])
def test_bursts_keep_the_order_and_lose_nothing(count):
    assert list(in_bursts(iter(range(count)), seconds=10.0)) == list(range(count))


def test_batches_that_take_long_are_made_one_by_one():
    made = []

    def slow():
        for number in range(5):
            made.append(number)
            yield number

    bursts = in_bursts(slow(), seconds=0.0)
    assert [(next(bursts), list(made)) for _ in range(3)] == [(k, list(range(k + 1))) for k in range(3)]


def test_what_came_before_a_failure_is_handed_out_first():
    def failing():
        yield from range(20)
        raise OSError("gone")

    bursts = in_bursts(failing(), seconds=10.0)
    assert [next(bursts) for _ in range(20)] == list(range(20))
    with pytest.raises(OSError, match="gone"):
        next(bursts)
