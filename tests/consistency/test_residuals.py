import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surfaces import (
    SKEWED,
    Morse,
    OneBody,
    Swirl,
    batch_of,
    mixed_batch,
    molecule,
    potential,
)

from pimlip_zoo.consistency.displaced import displaced_copies, strained, trim_edges
from pimlip_zoo.consistency.displacements import UniformCube, displacement
from pimlip_zoo.consistency.residuals import RESIDUALS, evaluate_residuals, get_residual, residual
from pimlip_zoo.consistency.surface import ORIGIN, STRAINED, D, P, Points, Surface, reads_of
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import collate, sum_by_structure

ALL = RESIDUALS.all()
NAMES = [n for n, one in ALL.items() if one.reads.displaced and not one.penalty]


def weak_residuals(model, names, graph, d, p=None, *, detach=None, **options):
    return evaluate_residuals(model.surface(graph, d, p, **options), names, detach)


def work(d, forces, index, count):
    return d.new_zeros(count).index_add(0, index, (d * forces).sum(dim=1))


def displacements(graph, amplitude=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cube = UniformCube(amplitude)
    return cube.sample(graph, generator), cube.sample(graph, generator)


def exact_labels(model, batch):
    """The model's own predictions as labels: then label residuals obey the same orders."""
    predictions = model(batch.graph)
    return batch.labels._replace(energy=predictions.energy.detach(), forces=predictions.forces.detach())


def evaluate(model, batch, d, p, names=NAMES, **options):
    return weak_residuals(model, names, batch.graph, d, p, labels=exact_labels(model, batch), **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [Morse, Swirl])
def test_the_residual_falls_with_its_order(make, name):
    model, batch = potential(make()), batch_of([molecule(6, 1)], 4.6)
    d, p = displacements(batch.graph, 0.04, 5)
    values = [evaluate(model, batch, d * s, p * s, [name])[name].abs().item() for s in (1.0, 0.5, 0.25)]
    orders = [torch.log2(torch.tensor(a / b)).item() for a, b in itertools.pairwise(values)]
    assert orders[-1] == pytest.approx(get_residual(name).order, abs=0.25)
    assert values[0] > 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_every_residual_vanishes_on_a_linear_surface(name):
    model = potential(OneBody(4, harmonic=False))
    batch = batch_of([molecule(4, 2)], 30.0)
    d, p = displacements(batch.graph, 0.3)
    assert evaluate(model, batch, d, p, [name])[name].abs().max() < 1e-9


@pytest.mark.parametrize("name", [n for n in NAMES if ALL[n].order >= 3])
def test_second_order_forms_vanish_on_a_harmonic_surface(name):
    model = potential(OneBody(4, harmonic=True))
    batch = batch_of([molecule(4, 2)], 30.0)
    d, p = displacements(batch.graph, 0.3)
    assert evaluate(model, batch, d, p, [name])[name].abs().max() < 1e-9


def test_first_order_form_on_a_harmonic_surface_is_half_of_the_curvature():
    inner = OneBody(4, harmonic=True)
    model, batch = potential(inner), batch_of([molecule(4, 2)], 30.0)
    d, _ = displacements(batch.graph, 0.3)
    x = (d - d[0]).flatten()
    expected = 0.5 * x @ inner.hessian @ x
    assert model.residual("pitc_first_order", batch.graph, d).item() == pytest.approx(
        expected.item(), abs=1e-9
    )


def test_the_equations_are_those_of_the_table():
    model, batch = potential(Swirl(0.4)), mixed_batch()
    graph, labels = batch.graph, batch.labels
    d, p = displacements(graph)

    def at(x):
        result = model(graph._replace(positions=graph.positions + x), virial=False)
        return result.energy, result.forces

    def dot(a, b):
        return sum_by_structure((a * b).sum(dim=1), graph)

    (e0, f0), (ed, fd), (em, _), (ep, fp) = at(0 * d), at(d), at(-d), at(p)
    (_, fh), (_, fhp), (_, fm) = at(d / 2), at(p / 2), at((d + p) / 2)
    simpson = dot(p, f0 + 4 * fhp + fp) / 6 + dot(d - p, fp + 4 * fm + fd) / 6 - dot(d, fd + 4 * fh + f0) / 6
    expected = {
        "pitc_first_order": ed - (e0 - dot(d, f0)),
        "pitc_trapezoid": ed - (e0 - dot(d, (f0 + fd) / 2)),
        "pitc_midpoint": ed - (e0 - dot(d, fh)),
        "pitc_central": (ed - em) / 2 + dot(d, f0),
        "pisc_triangle": ed - (ep - dot(d - p, fp)),
        "pisc_two_estimates": (e0 - dot(p, f0)) - (ed - dot(p - d, fd)),
        "loop_trapezoid": dot(p, f0 + fp) / 2 + dot(d - p, fp + fd) / 2 - dot(d, fd + f0) / 2,
        "loop_simpson": simpson,
        "anchor_first_order": labels.energy - (ed + dot(d, fd)),
        "anchor_trapezoid": labels.energy - (ed + dot(d, (f0 + fd) / 2)),
        "taylor_augmentation": ed - (labels.energy - dot(d, labels.forces)),
        "taylor_central": (ed - em) / 2 + dot(d, labels.forces),
    }
    got = weak_residuals(model, NAMES, graph, d, p, labels=labels)
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-9)


def test_public_methods_give_the_named_residuals():
    model, batch = potential(Swirl(0.4)), mixed_batch()
    graph, labels = batch.graph, batch.labels
    d, p = displacements(graph)
    together = weak_residuals(model, NAMES, graph, d, p, labels=labels)
    base = model(graph)
    single = {
        "pitc_first_order": model.residual("pitc_first_order", graph, d, base=base),
        "pitc_trapezoid": model.residual("pitc_trapezoid", graph, d, base=base),
        "pitc_midpoint": model.residual("pitc_midpoint", graph, d, base=base),
        "pitc_central": model.residual("pitc_central", graph, d, base=base),
        "pisc_triangle": model.residual("pisc_triangle", graph, d, p, base=base),
        "pisc_two_estimates": model.residual("pisc_two_estimates", graph, d, p, base=base),
        "loop_trapezoid": model.residual("loop_trapezoid", graph, d, p, base=base),
        "loop_simpson": model.residual("loop_simpson", graph, d, p, base=base),
        "anchor_first_order": model.residual("anchor_first_order", graph, d, labels=labels),
        "anchor_trapezoid": model.residual("anchor_trapezoid", graph, d, labels=labels, base=base),
        "taylor_augmentation": model.residual("taylor_augmentation", graph, d, labels=labels),
    }
    for name, value in single.items():
        torch.testing.assert_close(value, together[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [Morse, lambda: Swirl(0.4)])
def test_a_batch_of_unequal_structures_gives_the_residuals_of_each_alone(make):
    model = potential(make())
    frames = [molecule(5, 0), molecule(1, 1), molecule(8, 2, SKEWED), molecule(3, 3)]
    batch = batch_of(frames, 4.6)
    d, p = displacements(batch.graph)
    together = weak_residuals(model, NAMES, batch.graph, d, p, labels=batch.labels)
    start = 0
    for index, frame in enumerate(frames):
        alone = batch_of([frame], 4.6)
        stop = start + len(frame.numbers)
        values = weak_residuals(model, NAMES, alone.graph, d[start:stop], p[start:stop], labels=alone.labels)
        for name in NAMES:
            torch.testing.assert_close(together[name][index], values[name][0], rtol=0, atol=1e-9)
        start = stop


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_translation_and_rotation_leave_every_residual_unchanged(seed, periodic):
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    rotation = rotation * torch.det(rotation)
    shift = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    model = potential(Morse())
    batch = batch_of([molecule(5, seed, SKEWED if periodic else None)], 4.6)
    d, p = displacements(batch.graph, seed=seed)
    moved = batch.graph._replace(
        positions=batch.graph.positions @ rotation + shift, cell=batch.graph.cell @ rotation
    )
    labels = batch.labels._replace(forces=batch.labels.forces @ rotation)
    before = weak_residuals(model, NAMES, batch.graph, d, p, labels=batch.labels)
    after = weak_residuals(model, NAMES, moved, d @ rotation, p @ rotation, labels=labels)
    for name in NAMES:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_widened_list_gives_the_residual_of_a_rebuilt_one(periodic):
    model = potential(Morse())
    frame = molecule(7, 4, SKEWED if periodic else None)
    cube = UniformCube(0.1)
    wide = batch_of([frame], 4.0 + cube.max_relative_displacement)
    narrow = batch_of([frame], 4.0)
    d = cube.sample(wide.graph, torch.Generator().manual_seed(1))
    from dataclasses import replace

    rebuilt = batch_of([replace(frame, positions=frame.positions + d.numpy())], 4.0)
    expected = (
        model(rebuilt.graph).energy
        - model(narrow.graph).energy
        + work(d, model(narrow.graph).forces, narrow.graph.batch, 1)
    )
    torch.testing.assert_close(
        model.residual("pitc_first_order", wide.graph, d), expected, rtol=0, atol=1e-10
    )


def test_a_list_without_skin_would_be_wrong():
    """The trap that the widened list avoids is visible on this structure."""
    model = potential(Morse())
    wrong = 0.0
    for seed in range(20):
        frame = molecule(8, seed, SKEWED)
        narrow, wide = batch_of([frame], 4.0), batch_of([frame], 4.4)
        d, _ = displacements(wide.graph, 0.1, seed)
        wrong = max(
            wrong,
            (
                model.residual("pitc_first_order", narrow.graph, d)
                - model.residual("pitc_first_order", wide.graph, d)
            )
            .abs()
            .item(),
        )
    assert wrong > 1e-8


@pytest.mark.parametrize("cell", [None, SKEWED])
def test_edges_beyond_the_cutoff_change_nothing(cell):
    model = potential(Morse())
    frames = [molecule(6, 0), molecule(8, 1, cell)]
    narrow, wide = model(batch_of(frames, 4.0).graph), model(batch_of(frames, 5.5).graph)
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    trimmed = trim_edges(batch_of(frames, 5.5).graph, 4.0)
    assert trimmed.edge_index.shape == batch_of(frames, 4.0).graph.edge_index.shape


@pytest.mark.parametrize("make", [Morse, lambda: Swirl(0.4)])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_parameters(make, name):
    model, batch = potential(make()), batch_of([molecule(5, 0)], 4.6)
    d, p = displacements(batch.graph)
    residual = weak_residuals(model, [name], batch.graph, d, p, labels=batch.labels)[name]
    (gradient,) = torch.autograd.grad(residual.sum(), [model.model.strength])
    assert gradient.abs() > 1e-10


def test_gradient_with_respect_to_a_parameter_agrees_with_a_finite_difference():
    model, batch = potential(Morse()), batch_of([molecule(5, 0)], 4.6)
    d, p = displacements(batch.graph)

    def loss():
        values = weak_residuals(model, NAMES, batch.graph, d, p, labels=batch.labels)
        return sum(value.square().sum() for value in values.values())

    (gradient,) = torch.autograd.grad(loss(), [model.model.strength])
    step, start = 1e-5, model.model.strength.item()
    sides = []
    for sign in (1, -1):
        model.model.strength.data.fill_(start + sign * step)
        sides.append(loss().item())
    assert gradient.item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("side", ["forces", "energies"])
def test_a_detached_side_gets_no_gradient(side):
    model, batch = potential(Swirl(0.4)), batch_of([molecule(5, 0)], 4.6)
    d, _ = displacements(batch.graph)
    names = ["pitc_central"]
    residual = weak_residuals(model, names, batch.graph, d, detach=side)["pitc_central"].sum()
    swirl = torch.autograd.grad(residual, [model.model.swirl], allow_unused=True)[0]
    assert (swirl is None or swirl == 0) == (side == "forces")  # only forces depend on it


def test_a_teacher_takes_the_target_side_without_gradient():
    model, teacher = potential(Swirl(0.4)), potential(Swirl(0.1))
    batch = batch_of([molecule(5, 0)], 4.6)
    d, _ = displacements(batch.graph)
    value = weak_residuals(model, ["pitc_first_order"], batch.graph, d, teacher=teacher)["pitc_first_order"]
    here, there = model(batch.graph._replace(positions=batch.graph.positions + d)), teacher(batch.graph)
    expected = here.energy - there.energy + work(d, there.forces, batch.graph.batch, 1)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
    base = model(batch.graph)
    with_base = weak_residuals(model, ["pitc_first_order"], batch.graph, d, teacher=teacher, base=base)
    torch.testing.assert_close(with_base["pitc_first_order"], expected, rtol=0, atol=1e-9)
    value.sum().backward()
    assert model.model.strength.grad is not None
    assert teacher.model.strength.grad is None
    assert model.model.swirl.grad is None
    with pytest.raises(InputError, match="no target side"):
        weak_residuals(model, ["loop_simpson"], batch.graph, d, d, teacher=teacher)


def test_loop_work_sees_a_curl_and_only_a_curl():
    batch = batch_of([molecule(6, 1)], 4.6)
    d, p = displacements(batch.graph, 0.02)
    quiet = potential(Swirl(0.0)).residual("loop_simpson", batch.graph, d, p).abs().item()
    swirling = potential(Swirl(0.5)).residual("loop_simpson", batch.graph, d, p).abs().item()
    assert swirling > 1e3 * quiet


def test_the_curl_is_that_of_the_full_jacobian_and_zero_without_swirl():
    batch = batch_of([molecule(4, 1), molecule(3, 2)], 4.6)
    v = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for swirl in (0.0, 0.7):
        model = potential(Swirl(swirl))

        def forces(x, model=model):
            return model(batch.graph._replace(positions=x.reshape(-1, 3)), virial=False).forces.flatten()

        jacobian = torch.autograd.functional.jacobian(forces, batch.graph.positions.flatten())
        expected = ((jacobian - jacobian.T) @ v.flatten()).reshape(-1, 3)
        got = model.surface(batch.graph, direction=v).curl()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
        assert (got.abs().max() < 1e-10) == (swirl == 0.0)
    (gradient,) = torch.autograd.grad(got.square().sum(), [model.model.swirl])
    assert gradient.abs() > 1e-6


def test_the_curl_of_a_conservative_head_is_refused():
    batch = batch_of([molecule(4, 1)], 4.6)
    with pytest.raises(InputError, match="no curl"):
        potential(Morse()).residual("curl", batch.graph, direction=batch.graph.positions)


@pytest.mark.parametrize(("form", "order"), [("strain_first_order", 2), ("strain_trapezoid", 3)])
def test_strain_residuals_fall_with_their_order(form, order):
    model = potential(Morse())
    batch = batch_of([molecule(6, 1, SKEWED), molecule(4, 2, SKEWED)], 5.0)
    root = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    strain = 0.004 * (root + root.transpose(1, 2))
    values = [model.residual(form, batch.graph, strain=strain * s).abs() for s in (1.0, 0.5, 0.25)]
    orders = torch.log2(values[1] / values[2])
    torch.testing.assert_close(orders, torch.full_like(orders, float(order)), rtol=0, atol=0.3)


def test_strain_acts_on_positions_and_cell_together():
    model = potential(Morse())
    batch = batch_of([molecule(6, 1, SKEWED)], 5.0)
    root = torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    strain = root + root.transpose(1, 2)
    step = 1e-5
    plus = model(strained(batch.graph, step * strain)).energy
    minus = model(strained(batch.graph, -step * strain)).energy
    expected = -(strain * model(batch.graph).virial).sum()
    assert ((plus - minus) / (2 * step)).item() == pytest.approx(expected.item(), abs=1e-5)


def test_strain_on_a_molecule_is_refused():
    batch = batch_of([molecule(6, 1, SKEWED), molecule(4, 2)], 5.0)
    strain = torch.zeros(2, 3, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="structure 1 of the batch is a molecule"):
        potential(Morse()).residual("strain_first_order", batch.graph, strain=strain)


def test_displaced_copies_are_the_structures_one_after_the_other():
    batch = mixed_batch()
    d, p = displacements(batch.graph)
    copies = displaced_copies(batch.graph, [d, p, d - p])
    singles = [
        batch._replace(graph=batch.graph._replace(positions=batch.graph.positions + x)) for x in (d, p, d - p)
    ]
    expected = collate(singles).graph
    for got, want in zip(copies, expected, strict=True):
        if isinstance(want, int):
            assert got == want
        else:
            torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert (copies.edge_index[0].diff() >= 0).all()
    surface = potential(Morse()).surface(batch.graph, d, p)
    for point, sample in zip([D, P, D - P], singles, strict=True):
        expected = potential(Morse())(sample.graph)
        torch.testing.assert_close(surface.F(point), expected.forces, rtol=0, atol=1e-9)
        torch.testing.assert_close(surface.E(point), expected.energy, rtol=0, atol=1e-9)


class Counting(Morse):
    """Counts the structures that it is asked for."""

    def forward(self, graph, vectors):
        self.asked = [*getattr(self, "asked", []), (graph.num_graphs, bool(vectors.requires_grad))]
        return super().forward(graph, vectors)


def test_copies_are_shared_and_only_those_with_forces_are_differentiated():
    model, batch = potential(Counting()), mixed_batch()
    d, p = displacements(batch.graph)
    base = model(batch.graph)
    model.model.asked = []
    weak_residuals(model, ["pitc_first_order", "pisc_triangle"], batch.graph, d, p, base=base)
    structures = batch.graph.num_graphs
    assert model.model.asked == [(structures, True), (structures, False)]
    model.model.asked = []
    weak_residuals(model, ["pitc_first_order", "pitc_central"], batch.graph, d, base=base)
    assert model.model.asked == [(2 * structures, False)]


def test_a_direct_head_evaluates_everything_in_one_forward():
    class CountingSwirl(Swirl):
        calls = 0

        def energies_and_forces(self, graph, vectors):
            type(self).calls += 1
            return super().energies_and_forces(graph, vectors)

    model, batch = potential(CountingSwirl(0.3)), mixed_batch()
    d, p = displacements(batch.graph)
    base = model(batch.graph)
    CountingSwirl.calls = 0
    weak_residuals(model, ["pitc_first_order", "pisc_triangle", "loop_simpson"], batch.graph, d, p, base=base)
    assert CountingSwirl.calls == 1


def test_predictions_without_forces_do_not_stand_in_where_forces_are_needed():
    model, batch = potential(Morse()), mixed_batch()
    d, _ = displacements(batch.graph)
    base = model(batch.graph, forces=False)
    torch.testing.assert_close(
        model.residual("pitc_first_order", batch.graph, d, base=base),
        model.residual("pitc_first_order", batch.graph, d),
        rtol=0,
        atol=1e-10,
    )


def test_unknown_residuals_and_missing_displacements_are_errors():
    model, batch = potential(Morse()), mixed_batch()
    d, _ = displacements(batch.graph)
    with pytest.raises(InputError, match="pitc_trapezoid"):
        weak_residuals(model, ["pitc_trapezoidal"], batch.graph, d)
    with pytest.raises(InputError, match="two displacements"):
        weak_residuals(model, ["pisc_triangle"], batch.graph, d)
    with pytest.raises(InputError, match="needs labels"):
        weak_residuals(model, ["taylor_augmentation"], batch.graph, d)


def test_morse_bond_residuals_have_the_published_size():
    """meV on a Morse C-H bond (D 4.8 eV, a 1.9 /Å, r0 1.09 Å), stretched by ε."""
    depth, a, r0 = 4.8, 1.9, 1.09

    def energy(r):
        return depth * (1 - torch.exp(-a * (r - r0))) ** 2

    def force(r):
        return -2 * depth * a * (1 - torch.exp(-a * (r - r0))) * torch.exp(-a * (r - r0))

    r = torch.tensor(r0, dtype=torch.float64)

    class Bond(Surface):
        def E(self, point):  # noqa: N802
            return energy(r + point.a * self.displacement(D)[0, 0])[None]

        def F(self, point):  # noqa: N802
            x = r + point.a * self.displacement(D)[0, 0]
            return torch.stack([force(x), x * 0, x * 0]).unsqueeze(0)

    for eps in (0.01, 0.05):
        d = torch.tensor([[eps, 0.0, 0.0]], dtype=torch.float64)

        graph = batch_of([molecule(1, 0)], 4.0).graph
        first, second, middle = (
            get_residual(name).function(Bond(None, graph, d)).item()
            for name in ("pitc_first_order", "pitc_trapezoid", "pitc_midpoint")
        )
        assert first == pytest.approx(depth * a**2 * eps**2, rel=0.15)  # d H d / 2
        assert abs(second) == pytest.approx(depth * a**3 * eps**3 / 2, rel=0.2)  # E''' d^3 / 12
        assert middle == pytest.approx(-second / 2, rel=0.15)


def test_a_surface_finds_out_which_points_a_residual_looks_at():
    found = ALL["pitc_central"].reads
    assert found.own == Points(energies=frozenset({D, -D}))
    assert found.target == Points(forces=frozenset({ORIGIN}))
    assert (found.displaced, found.p, found.strained, found.force_label) == (True, False, False, False)
    assert ALL["loop_simpson"].reads.p
    assert ALL["loop_simpson"].reads.own.forces == {ORIGIN, D, P, D / 2, P / 2, (D + P) / 2}
    assert ALL["taylor_central"].reads.force_label
    assert not ALL["taylor_central"].reads.energy_label
    assert ALL["strain_trapezoid"].reads.own.virials == {ORIGIN, STRAINED}
    assert ALL["curl"].reads.direction
    assert not ALL["curl"].reads.displaced
    assert not get_residual("noisy_labels").reads.force_label  # forces are looked at where there are any
    with pytest.raises(InputError, match="one number for each structure"):
        reads_of(lambda s: s.F(D))


@pytest.mark.parametrize(
    "residual",
    [
        lambda s: s.weight * s.E(D),
        lambda s: s.detached("forces").E(D),
        lambda s: s.target.E(D) * s.atoms,
        lambda s: s.E(D) * s.target.weight,
        lambda s: s.sum(s.displacement(D) * s.F(D)),
    ],
)
def test_a_residual_may_use_all_that_a_surface_has(residual):
    found = reads_of(residual)
    assert {D} == found.own.energies | found.own.forces | found.target.energies


def test_a_residual_that_calls_the_potential_by_itself_is_refused():
    with pytest.raises(InputError, match="calls the potential by itself"):
        reads_of(lambda s: s.potential(s.graph).energy)


def test_a_point_that_the_symbols_did_not_see_is_evaluated_when_it_is_asked_for():
    def stubborn(s):
        return s.E(D / 4) if s.graph.num_graphs > 1 else s.E(D)

    model, batch = potential(Morse()), mixed_batch()
    d, _ = displacements(batch.graph)
    surface = model.surface(batch.graph, d)
    surface.evaluate(reads_of(stubborn))
    moved = batch.graph._replace(positions=batch.graph.positions + d / 4)
    torch.testing.assert_close(stubborn(surface), model(moved).energy, rtol=0, atol=1e-10)


def test_detaching_the_forces_detaches_virials():
    model, batch = potential(Morse()), batch_of([molecule(5, 0, SKEWED)], 5.0)
    strain = 0.004 * torch.eye(3, dtype=torch.float64)[None]
    gradients = [
        torch.autograd.grad(
            model.residual("strain_first_order", batch.graph, strain=strain, detach=side).sum(),
            [model.model.strength],
        )[0]
        for side in ("none", "forces", "energies")
    ]
    torch.testing.assert_close(gradients[1] + gradients[2], gradients[0], rtol=1e-10, atol=0)
    assert (torch.stack(gradients).abs() > 1e-8).all()


def test_a_registered_function_is_a_residual_of_every_potential_and_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr(RESIDUALS, "_items", dict(RESIDUALS._items))

    @residual("mine", order=2, equation="E(r+d) - E(r-d)")
    def mine(s):
        return s.E(D) - s.E(-D)

    model, batch = potential(Morse()), mixed_batch()
    d, _ = displacements(batch.graph)
    surface = model.surface(batch.graph, d)
    torch.testing.assert_close(
        model.residual("mine", batch.graph, d), surface.E(D) - surface.E(-D), rtol=0, atol=1e-10
    )

    def another(s):
        return s.E(ORIGIN)

    with pytest.raises(InputError, match="two consistency residuals are called 'mine'"):
        residual("mine", equation="E(r)")(another)
    with pytest.raises(InputError, match="two displacements are called 'uniform'"):
        displacement("uniform")(type("Mine", (UniformCube,), {}))
