"""The posterior of the last layer: its features are derivatives, its variance is that of linear regression."""

import numpy as np
import pytest
import torch

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import collate, sum_by_structure
from pimlip_zoo.labelling.last_layer import LastLayer
from pimlip_zoo.labelling.uncertainty import (
    Calibration,
    Posterior,
    calibrate,
    fit_posterior,
    load_posterior,
    of_its_structure,
    posterior_path,
    save_posterior,
)
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.zbl import ZBL
from pimlip_zoo.registry import get_model

SMALL = {
    "nequip": {"num_layers": 2, "channels": 4, "l_max": 1, "cutoff": 3.5, "avg_num_neighbors": 6.0},
    "mace": {
        "channels": 4,
        "l_max": 1,
        "hidden_l_max": 1,
        "correlation": 2,
        "cutoff": 3.5,
        "avg_num_neighbors": 6.0,
    },
    "allegro": {
        "scalar_channels": 8,
        "tensor_channels": 4,
        "l_max": 1,
        "cutoff": 3.5,
        "avg_num_neighbors": 6.0,
    },
}
SPECIES = ("H", "C", "O")


def small(name, dtype=torch.float64, repulsion=False):
    torch.manual_seed(3)
    info = get_model(name)
    model = info.model(info.configure(**SMALL[name]), SPECIES)
    potential = Potential(
        model, scale=torch.tensor([0.5, 0.7, 0.9]), repulsion=ZBL(SPECIES) if repulsion else None
    )
    return potential.set_dtype(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def frames():
    return load_builtin("builtin:ethanol-gfn2/train")[:6]


def batch_of(frames):
    return collate([frame_to_sample(frame, SPECIES, 3.5) for frame in frames])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("repulsion", [False, True])
def test_features_and_forces_are_derivatives_by_the_last_weights(name, repulsion, frames):
    potential = small(name, repulsion=repulsion)
    layer = LastLayer(potential)
    batch = batch_of(frames[:2])
    features = layer.features(batch.graph)
    directions = torch.randn((2, len(layer)), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changes = layer.forces(batch.graph, directions)
    base = potential(batch.graph, virial=False)
    first = 0
    readouts = layer._readouts  # those of the copy
    moved = LastLayer(potential)
    with torch.no_grad():
        for mine, theirs in zip(moved._readouts, readouts, strict=True):
            size = theirs.weights[-1].numel()
            mine.weights[-1].add_(directions[0, first : first + size].reshape(-1, 1))
            first += size
    after = moved.potential(batch.graph, virial=False)
    assert torch.allclose(after.atomic_energy - base.atomic_energy, features @ directions[0], atol=1e-9)
    assert torch.allclose(after.forces - base.forces, changes[0], atol=1e-9)
    again = potential(batch.graph, virial=False)
    assert torch.equal(again.forces, base.forces)  # the potential itself was not touched


def test_single_precision_gives_the_same_features(frames):
    batch = batch_of(frames[:2])
    double = LastLayer(small("mace")).features(batch.graph)
    single = LastLayer(small("mace", torch.float32)).features(batch.graph)
    assert torch.allclose(single, double, atol=1e-4 * float(double.abs().max()))


def test_the_variance_is_that_of_linear_regression(frames):
    potential = small("nequip")
    posterior = fit_posterior(potential, frames[:4], frames[4:])
    layer = posterior.layer
    batch = batch_of(frames[:2])
    total = sum_by_structure(layer.features(batch.graph), batch.graph)
    covariance = posterior.root @ posterior.root.T
    expected = torch.sqrt(torch.einsum("md,de,me->m", total, covariance, total)) * posterior.energy.factor
    assert posterior.energy.exponent == 1.0  # too few errors to learn it
    assert posterior.forces.exponent == 1.0
    assert np.allclose(posterior.energy_uncertainty(batch.graph), expected, rtol=1e-9)
    unit = torch.eye(len(layer), dtype=torch.float64)
    g = layer.forces(batch.graph, unit)
    variance = torch.einsum("dnc,de,enc->n", g, covariance, g)
    assert np.allclose(
        posterior.forces_uncertainty(batch.graph), torch.sqrt(variance) * posterior.forces.factor, rtol=1e-7
    )


def test_what_was_trained_on_is_more_certain_than_what_is_far_from_it(frames):
    from dataclasses import replace

    posterior = fit_posterior(small("mace"), frames[:4], frames[4:])
    near = posterior.forces_uncertainty(batch_of(frames[:4]).graph).mean()
    rng = np.random.default_rng(0)
    far = [replace(f, positions=f.positions + rng.normal(0, 0.3, f.positions.shape)) for f in frames[:4]]
    assert posterior.forces_uncertainty(batch_of(far).graph).mean() > 1.5 * near


def test_draws_approximate_the_exact_variance(frames, monkeypatch):
    posterior = fit_posterior(small("mace"), frames[:4], frames[4:])
    batch = batch_of(frames[:2])
    exact = posterior.forces_uncertainty(batch.graph)
    monkeypatch.setattr("pimlip_zoo.labelling.uncertainty.EXACT", 16)
    assert len(posterior.layer) > 16
    drawn = posterior.forces_uncertainty(batch.graph)
    assert np.allclose(drawn, posterior.forces_uncertainty(batch.graph), rtol=0)
    assert np.median(drawn / exact) == pytest.approx(1.0, abs=0.3)


def test_calibration_makes_normal_errors_one_and_covers_nine_in_ten():
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.5, 2.0, 20_000)
    errors = np.abs(rng.normal(0.0, 3.0 * raw))
    found = calibrate(errors, raw)
    assert found.factor == pytest.approx(3.0, rel=0.02)
    assert found.quantile == pytest.approx(1.645, abs=0.03)
    assert np.mean(errors <= found.quantile * found.factor * raw) == pytest.approx(0.9, abs=1e-3)
    assert calibrate(np.zeros(0), np.zeros(0)).count == 0


def test_errors_that_grow_faster_than_uncertainties_are_met_by_an_exponent():
    rng = np.random.default_rng(1)
    raw = rng.uniform(0.5, 3.0, 20_000)
    errors = np.linalg.norm(rng.normal(0.0, 1.0, (20_000, 3)), axis=1) * raw**1.7 / 3**0.5
    found = calibrate(errors, raw, 3)
    assert found.exponent == pytest.approx(1.7, abs=0.051)
    assert found(np.array([2.0]))[0] == pytest.approx(2.0**1.7, rel=0.03)
    assert np.mean(errors <= found.quantile * found(raw)) == pytest.approx(0.9, abs=1e-3)


def test_errors_that_are_larger_in_unusual_structures_are_met_by_a_shared_exponent():
    """Forty structures of 250 atoms, each with its own size of raw uncertainties."""
    rng = np.random.default_rng(2)
    structure = np.repeat(np.arange(40), 250)
    raw = rng.uniform(0.5, 1.5, 10_000) * rng.uniform(0.6, 2.0, 40)[structure]
    typical = of_its_structure(raw, structure)
    errors = np.linalg.norm(rng.normal(0.0, 1.0, (10_000, 3)), axis=1) * raw * typical**1.5 / 3**0.5
    found = calibrate(errors, raw, 3, typical)
    assert found.shared == pytest.approx(1.5, abs=0.26)
    assert found.exponent == pytest.approx(1.0, abs=0.11)
    one = calibrate(errors, raw, 3)
    large = typical > np.quantile(typical, 0.8)

    def coverage(calibration, *more):
        return np.mean((errors <= calibration.quantile * calibration(raw, *more))[large])

    assert coverage(found, typical) == pytest.approx(0.9, abs=0.02)
    assert coverage(one) < 0.8  # what is missed without it
    few = calibrate(errors[:2500], raw[:2500], 3, typical[:2500])  # ten structures
    assert few.shared == 0.0


def test_forces_of_a_structure_share_its_uncertainty_whatever_else_is_in_the_batch(frames):
    from dataclasses import replace

    posterior = fit_posterior(small("nequip"), frames[:4], frames[4:])
    posterior.forces = replace(posterior.forces, shared=1.5)
    together = posterior.forces_uncertainty(batch_of(frames[:3]).graph)
    alone = [posterior.forces_uncertainty(batch_of([frame]).graph) for frame in frames[:3]]
    assert np.allclose(together, np.concatenate(alone), rtol=1e-9)


def test_what_an_older_version_kept_is_read_as_it_was(frames, tmp_path):
    potential = small("nequip")
    posterior = fit_posterior(potential, frames[:4], frames[4:])
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"one")
    save_posterior(posterior, checkpoint)
    with np.load(posterior_path(checkpoint)) as content:
        values = dict(content)
    values |= {"version": 1, "energy": values["energy"][:4], "forces": values["forces"][:4]}
    np.savez(posterior_path(checkpoint), **values)
    assert load_posterior(potential, checkpoint).forces.shared == 0.0


def test_it_is_kept_beside_the_checkpoint_that_it_belongs_to(frames, tmp_path):
    potential = small("nequip")
    posterior = fit_posterior(potential, frames[:4], frames[4:])
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"one")
    save_posterior(posterior, checkpoint)
    back = load_posterior(potential, checkpoint)
    batch = batch_of(frames[:2])
    assert np.array_equal(back.forces_uncertainty(batch.graph), posterior.forces_uncertainty(batch.graph))
    assert isinstance(back.energy, Calibration)
    checkpoint.write_bytes(b"two")
    assert load_posterior(potential, checkpoint) is None
    checkpoint.write_bytes(b"one")
    posterior_path(checkpoint).write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        load_posterior(potential, checkpoint)
    save_posterior(posterior, checkpoint)
    with pytest.raises(InputError, match="does not fit the potential"):
        load_posterior(small("mace"), checkpoint)


def test_energies_alone_are_enough_and_nothing_is_refused(frames):
    from dataclasses import replace

    bare = [replace(frame, forces=None) for frame in frames]
    posterior = fit_posterior(small("nequip"), bare[:4], bare[4:])
    assert posterior.forces.count == 0
    assert isinstance(posterior, Posterior)
    assert np.isfinite(posterior.forces_uncertainty(batch_of(frames[:1]).graph)).all()
    none = [replace(frame, energy=None) for frame in bare]
    with pytest.raises(InputError, match="no training structure has an energy or forces"):
        fit_posterior(small("nequip"), none[:4], bare[4:])


def test_forces_alone_calibrate_energies_without_what_forces_of_a_structure_share(frames, monkeypatch):
    from dataclasses import replace

    from pimlip_zoo.labelling import uncertainty

    usual = uncertainty.calibrate

    def with_a_share(errors, raw, dimensions=1, structure=None):
        found = usual(errors, raw, dimensions)
        return found if structure is None else replace(found, factor=1e4 * found.factor, shared=2.0)

    bare = [replace(frame, energy=None) for frame in frames[4:]]
    before = fit_posterior(small("nequip"), frames[:4], bare)
    monkeypatch.setattr(uncertainty, "calibrate", with_a_share)
    alone = fit_posterior(small("nequip"), frames[:4], bare)
    assert alone.forces.shared == 2.0
    assert (alone.energy.shared, alone.energy.count) == (0.0, 0)
    graph = batch_of(frames[:4]).graph
    assert np.allclose(alone.energy_uncertainty(graph), before.energy_uncertainty(graph), rtol=1e-9)


def test_a_direct_head_is_refused():
    info = get_model("nequip")
    model = info.model(info.configure(**SMALL["nequip"], force_head="direct"), SPECIES)
    with pytest.raises(InputError, match="not linear in what the energies are made of"):
        LastLayer(Potential(model))


def test_a_committee_is_calibrated_to_the_errors_of_its_mean(frames):
    from pimlip_zoo.labelling.committee import CommitteeUncertainty

    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        info = get_model("nequip")
        members.append(
            Potential(info.model(info.configure(**SMALL["nequip"]), SPECIES)).set_dtype(torch.float64)
        )
    committee = CommitteeUncertainty(members, frames)
    batch = batch_of(frames)
    predictions = [member(batch.graph, virial=False) for member in members]
    forces = torch.stack([p.forces for p in predictions]).detach()
    raw = torch.sqrt(((forces - forces.mean(0)) ** 2).sum(dim=(0, 2)) / 2).numpy()
    error = torch.linalg.vector_norm(batch.labels.forces - forces.mean(0), dim=1).numpy()
    uncertainty = committee.forces_uncertainty(batch.graph)
    assert np.allclose(uncertainty, committee.forces.factor * raw**committee.forces.exponent, rtol=1e-9)
    assert np.sqrt(np.mean((error / uncertainty) ** 2)) == pytest.approx(1.0, rel=1e-9)
    covered = np.mean(error <= committee.forces.quantile * uncertainty)
    assert covered == pytest.approx(0.9, abs=1 / len(error) + 0.02)
    with pytest.raises(InputError, match="one potential has no spread"):
        CommitteeUncertainty(members[:1], frames)
    with pytest.raises(InputError, match="another cutoff"):
        CommitteeUncertainty(
            [
                members[0],
                Potential(info.model(info.configure(**{**SMALL["nequip"], "cutoff": 3.0}), SPECIES)),
            ],
            frames,
        )
