"""Supervised losses: distances, masks, weights; sums and counts stay exact."""

import numpy as np
import pytest
import torch

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Predictions, collate
from pimlip_zoo.losses.base import Evaluated
from pimlip_zoo.losses.supervised import SupervisedTerm

CELL = np.diag([4.0, 5.0, 6.0])


def batch_and_predictions(*, partial=False, weights=(1.0, 2.0, 1.0)):
    rng = np.random.default_rng(0)
    frames = []
    for index, atoms in enumerate((2, 3, 1)):
        hidden = partial and index == 1
        frames.append(
            Frame(
                numbers=np.ones(atoms, dtype=np.int64),
                positions=rng.normal(size=(atoms, 3)) * 2,
                cell=CELL if index != 2 else np.zeros((3, 3)),
                pbc=np.array([index != 2] * 3),
                energy=None if hidden else float(rng.normal()),
                forces=None if hidden else rng.normal(size=(atoms, 3)),
                stress=rng.normal(size=(3, 3)) if index == 0 else None,
                weight=weights[index],
            )
        )
    batch = collate([frame_to_sample(frame, ("H",), 2.0) for frame in frames])
    torch.manual_seed(0)
    predictions = Predictions(
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.randn(6, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 3, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(6, dtype=torch.float64),
    )
    return batch, predictions


def value(term, batch, predictions):
    return term(Evaluated(batch, predictions)).mean()


def test_squared_energy_error_per_atom_is_weighted_by_structure():
    batch, p = batch_and_predictions()
    error = (p.energy - batch.labels.energy) / torch.tensor([2.0, 3.0, 1.0])
    expected = (error.square() * torch.tensor([1.0, 2.0, 1.0])).sum() / 4.0
    torch.testing.assert_close(
        value(SupervisedTerm("energy_per_atom"), batch, p), expected, rtol=1e-14, atol=0
    )


@pytest.mark.parametrize(
    ("distance", "function"),
    [
        ("mse", lambda e: e**2),
        ("mae", abs),
        ("huber", lambda e: 0.5 * e**2 if abs(e) < 0.3 else 0.3 * (abs(e) - 0.15)),
    ],
)
def test_distances_of_forces_are_what_their_names_say(distance, function):
    batch, p = batch_and_predictions(weights=(1.0, 1.0, 1.0))
    errors = (p.forces - batch.labels.forces).detach().flatten().tolist()
    expected = sum(function(e) for e in errors) / len(errors)
    result = value(SupervisedTerm("forces", distance=distance, delta=0.3), batch, p)
    assert float(result.detach()) == pytest.approx(expected, rel=1e-13)


def test_missing_labels_do_not_count_and_get_no_gradient():
    batch, p = batch_and_predictions(partial=True)
    total = sum(value(SupervisedTerm(q), batch, p) for q in ("energy", "forces", "stress"))
    total.backward()
    assert torch.isfinite(total)
    assert p.energy.grad[1] == 0
    assert (p.forces.grad[2:5] == 0).all()
    assert (p.virial.grad[1:] == 0).all()
    assert all(torch.isfinite(x.grad).all() for x in (p.energy, p.forces, p.virial))
    assert (p.virial.grad[0] != 0).any()


def test_no_label_at_all_is_a_loss_of_zero_with_a_gradient_of_zero():
    batch, p = batch_and_predictions()
    nothing = batch._replace(labels=batch.labels._replace(energy=torch.full((3,), torch.nan)))
    loss = value(SupervisedTerm("energy"), nothing, p)
    loss.backward()
    assert loss == 0
    assert (p.energy.grad == 0).all()


def test_stress_is_minus_the_virial_over_the_volume():
    batch, p = batch_and_predictions()
    error = -p.virial[0] / 120.0 - batch.labels.stress[0]
    expected = error.square().mean()
    torch.testing.assert_close(value(SupervisedTerm("stress"), batch, p), expected, rtol=1e-13, atol=0)


def test_sums_over_batches_equal_the_sum_over_their_union():
    batch, p = batch_and_predictions()
    term = SupervisedTerm("forces")
    whole = term(Evaluated(batch, p))
    assert float(whole.count) == pytest.approx((1.0 * 2 + 2.0 * 3 + 1.0 * 1) * 3)


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="weight"):
        SupervisedTerm("energy", weight=-1.0)
    with pytest.raises(InputError, match="delta"):
        SupervisedTerm("energy", distance="huber", delta=0.0)
    with pytest.raises(InputError, match="mse, mae or huber"):
        SupervisedTerm("energy", distance="l7")
