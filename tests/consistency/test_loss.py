import copy
from dataclasses import replace

import pytest
import torch
from surfaces import SKEWED, SPECIES, Morse, Swirl, batch_of, mixed_batch, molecule, potential
from torch import nn

from pimlip_zoo.consistency.build import build_weak_terms, check_weak, chosen_terms, list_skin
from pimlip_zoo.consistency.config import PRESETS, WeakConfig, weak_preset
from pimlip_zoo.consistency.displaced import choose
from pimlip_zoo.consistency.displacements import Displacement, UniformCube, remove_mean
from pimlip_zoo.consistency.evaluate import evaluate_step
from pimlip_zoo.consistency.loss import ConsistencyLoss
from pimlip_zoo.consistency.residuals import RESIDUALS, get_residual
from pimlip_zoo.consistency.sampling import (
    ConsistencySampling,
    choose_structures,
    join_unlabelled,
    random_unit,
)
from pimlip_zoo.consistency.surface import ORIGIN, D, P
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Predictions
from pimlip_zoo.losses.base import Evaluated, Step
from pimlip_zoo.losses.pool import step_generator
from pimlip_zoo.losses.supervised import SupervisedTerm
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import available_models

FULL = ("energy", "forces")


def config(terms, **options):
    return WeakConfig.model_validate({"terms": terms, **options})


class Losses(nn.ModuleList):
    """The consistency losses of a run and the steps that it has taken."""

    def __init__(self, terms):
        super().__init__(terms)
        self.number, self.values, self.evaluated = 0, {}, None

    @property
    def sampling(self):
        return self[0].sampling

    def mean(self, model, batch, **options):
        """Their weighted sum at the next step, as the training takes it."""
        return self._mean(evaluate_step(model, batch, list(self), Step(self.number, self.number), **options))

    def mean_point_by_point(self, model, batch):
        """The same, each copy evaluated by itself when a residual asks for it."""
        step, predictions = Step(self.number, self.number), model(batch.graph)
        self.sampling.follow(model, step)
        surface = self.sampling.draw(model, batch, step, predictions).surface
        return self._mean(Evaluated(batch, predictions, model, surface, step))

    def _mean(self, evaluated):
        self.evaluated, step = evaluated, evaluated.step
        values = {term.name: term(evaluated) for term in self}
        total = sum(term.weight * term.factor(step) * values[term.name].mean() for term in self)
        self.values = {name: value for name, value in values.items() if value.count > 0}
        self.number += self.training
        return total


def build(options, model, **more):
    return Losses(
        build_weak_terms(
            options,
            model,
            SPECIES,
            direct=model.is_direct,
            force_weight=more.pop("force_weight", 1.0),
            **more,
        )
    )


def crystals(count=3):
    return batch_of([molecule(5 + s, s, SKEWED) for s in range(count)], 4.8)


def refused(options, *, labels=FULL, samples=None, direct=False, match):
    samples = [batch_of([molecule(5, 0)], 4.6)] if samples is None else samples
    with pytest.raises(InputError, match=match):
        check_weak(options, SPECIES, labels, samples, direct=direct)


@pytest.mark.parametrize("unit", ["lambda", "per_atom", "total"])
def test_the_value_is_the_mean_over_structures_of_the_squared_residual_in_its_unit(unit):
    model, batch = potential(Morse()), mixed_batch()
    term = build(config({"pitc_first_order": {"weight": 0.7, "unit": unit}}), model, force_weight=3.0, seed=4)
    value = term.mean(model, batch)
    d = UniformCube(0.05).sample(batch.graph, step_generator(4, 0))
    residual = model.residual("pitc_first_order", batch.graph, d)
    count = torch.tensor([5.0, 1.0, 8.0, 3.0], dtype=torch.float64)
    if unit == "total":
        expected = 0.7 * residual.square().mean()
    elif unit == "per_atom":
        expected = 0.7 * (residual / count).square().mean()
    else:
        expected = 0.7 * 3.0 * (residual / count / 0.05).square().mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_the_weight_of_a_structure_counts():
    model, batch = potential(Morse()), batch_of([molecule(5, 0), molecule(6, 1)], 4.6)
    options = config({"pitc_first_order": {}})
    batch = batch._replace(labels=batch.labels._replace(weight=torch.tensor([1.0, 0.0], dtype=torch.float64)))
    first = build(options, model).mean(model, batch)
    changed = batch.graph.positions.clone()
    changed[5:] *= 1.05
    other = batch._replace(graph=batch.graph._replace(positions=changed))
    second = build(options, model).mean(model, other)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_structures_without_the_label_do_not_count_and_give_finite_gradients():
    model, batch = potential(Morse()), mixed_batch()
    energy, forces = batch.labels.energy.clone(), batch.labels.forces.clone()
    energy[0], forces[-1] = float("nan"), float("nan")
    labels = batch.labels._replace(energy=energy, forces=forces)
    options = config({"taylor_augmentation": {"weight": 1.0, "unit": "total"}})
    term = build(options, model)
    value = term.mean(model, batch._replace(labels=labels))
    d = UniformCube(0.05).sample(batch.graph, step_generator(0, 0))
    residual = model.residual("taylor_augmentation", batch.graph, d, labels=batch.labels)[1:3]
    torch.testing.assert_close(value, residual.square().mean(), rtol=1e-12, atol=0)
    value.backward()
    assert torch.isfinite(model.model.strength.grad)


def test_a_batch_without_any_label_gives_zero():
    model, batch = potential(Morse()), mixed_batch()
    labels = batch.labels._replace(energy=torch.full_like(batch.labels.energy, float("nan")))
    value = build(config({"anchor_trapezoid": {}}), model).mean(model, batch._replace(labels=labels))
    assert value.item() == 0.0


def test_the_first_call_is_determined_by_the_seed_and_steps_differ():
    model, batch = potential(Morse()), mixed_batch()
    options = config({"pitc_trapezoid": {}, "pisc_triangle": {}})
    first, same, other = (build(options, model, seed=s) for s in (0, 0, 1))
    a = [first.mean(model, batch).item() for _ in range(3)]
    b = [same.mean(model, batch).item() for _ in range(3)]
    assert a == b
    assert len({*a, other.mean(model, batch).item()}) == 4


def test_a_restored_term_goes_on_as_if_it_had_not_been_interrupted():
    model, batch = potential(Morse()), mixed_batch()
    options = config(
        {
            "pitc_trapezoid": {"schedule": {"name": "decay", "steps": 4}},
            "pisc_triangle": {"schedule": {"name": "warm_up", "steps": 5}},
        }
    )
    term = build(options, model)
    for _ in range(2):
        term.mean(model, batch)
    state = copy.deepcopy(term.state_dict())
    expected = [term.mean(model, batch).item() for _ in range(3)]
    restored = build(options, model)
    restored.load_state_dict(state)
    restored.number = 2
    assert [restored.mean(model, batch).item() for _ in range(3)] == expected


def test_before_a_late_start_and_after_the_end_no_copy_is_made(monkeypatch):
    model, batch = potential(Morse()), mixed_batch()
    late = {"schedule": {"name": "warm_up", "start": 2, "steps": 1}}
    early = {"schedule": {"name": "decay", "start": 0, "steps": 4}}
    for options, counts in (
        ({"pitc_central": late}, [False, False, False, True, True]),
        ({"pitc_central": early}, [True, True, True, True, False]),
        ({"pitc_central": late, "pisc_triangle": early}, [True] * 5),
    ):
        term = build(config(options), model)
        draws, draw = [], term.sampling.draw
        monkeypatch.setattr(term.sampling, "draw", lambda *a, new=draw, made=draws: made.append(1) or new(*a))
        for counted in counts:
            draws.clear()
            assert (term.mean(model, batch).item() > 0) is counted
            assert bool(draws) is counted
            assert bool(term.values) is counted
        assert term.number == len(counts)


def test_evaluation_neither_advances_nor_varies():
    model, batch = potential(Morse()), mixed_batch()
    term = build(config({"pitc_trapezoid": {}}), model).eval()
    assert term.mean(model, batch) == term.mean(model, batch)
    assert term.number == 0


@pytest.mark.parametrize("name", ["pitc_central", "taylor_augmentation"])
def test_an_unlabelled_pool_adds_its_structures_to_terms_that_need_no_labels(name):
    model, batch = potential(Morse()), mixed_batch()
    pool = [batch_of([molecule(6, s)], 4.6) for s in range(10, 14)]
    options = config({name: {"unit": "total", "weight": 1.0}}, unlabelled_batch_size=3)
    term = build(options, model, pool=pool)
    value = term.mean(model, batch)
    generator = step_generator(0, 0)
    joint = join_unlabelled(batch, term.sampling.pool.draw(generator))
    assert joint.graph.num_graphs == 7
    d = UniformCube(0.05).sample(joint.graph, generator)
    residual = model.residual(name, joint.graph, d, labels=joint.labels)
    used = residual if name == "pitc_central" else residual[:4]
    torch.testing.assert_close(value, used.square().mean(), rtol=1e-10, atol=0)
    assert torch.isnan(residual[4:]).all() == (name == "taylor_augmentation")
    value.backward()
    assert torch.isfinite(model.model.strength.grad)


def test_a_fraction_of_the_structures_is_what_those_structures_are_alone():
    model, batch = potential(Morse()), mixed_batch()
    structure = choose_structures(batch.graph, 0.5, torch.Generator().manual_seed(1))
    part, predictions = choose(batch, model(batch.graph), structure)
    assert part.graph.num_graphs == structure.sum() == 2
    again = model(part.graph)
    torch.testing.assert_close(predictions.energy, again.energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(predictions.forces, again.forces, rtol=0, atol=1e-10)
    assert choose_structures(batch.graph, 0.01, torch.Generator()).sum() == 1
    assert choose_structures(batch.graph, 1.0, torch.Generator()) is None
    assert choose(batch, None, None) == (batch, None)


FUSED = {
    "first order": {"terms": {"pitc_first_order": {}}},
    "paper": {"terms": {"pitc_first_order": {}, "pisc_triangle": {}}},
    "central, detached": {"terms": {"pitc_central": {"detach": "forces"}}},
    "loop": {"terms": {"loop_simpson": {}}},
    "labels": {"terms": {"anchor_trapezoid": {}, "taylor_central": {}}},
    "part of the structures": {"terms": {"pitc_trapezoid": {}, "pisc_two_estimates": {}}, "fraction": 0.5},
    "teacher": {"terms": {"pitc_trapezoid": {}}, "teacher": "ema"},
    "strain": {"terms": {"strain_trapezoid": {}, "pitc_first_order": {}}, "strain": 0.005},
    "force error": {"terms": {"pitc_first_order": {}}, "perturbation": {"name": "force_error"}},
    "stiff modes": {"terms": {"pitc_first_order": {}}, "perturbation": {"name": "stiff"}},
    "baseline": {"terms": {"noisy_labels": {}}},
}


@pytest.mark.parametrize("edges", [0, 10**9])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("make", [Morse, lambda: Swirl(0.4)])
@pytest.mark.parametrize("case", FUSED)
def test_one_forward_for_structures_and_copies_changes_nothing(case, make, pool, edges, monkeypatch):
    monkeypatch.setattr("pimlip_zoo.consistency.evaluate.FEW_EDGES", edges)
    model, batch = potential(make()), crystals(4)
    unlabelled = [batch_of([molecule(6, s, SKEWED)], 4.8) for s in range(10, 13)] if pool else ()
    options = WeakConfig.model_validate(FUSED[case])
    apart, together = (build(options, model, pool=unlabelled) for _ in range(2))
    for _ in range(2):
        expected = apart.mean_point_by_point(model, batch)
        value = together.mean(model, batch, forces=True)
        predictions = together.evaluated.predictions
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(predictions.energy, model(batch.graph).energy, rtol=0, atol=1e-9)
        torch.testing.assert_close(predictions.forces, model(batch.graph).forces, rtol=0, atol=1e-9)
        one, two = (torch.autograd.grad(v, [model.model.strength])[0] for v in (expected, value))
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-15)


def test_a_forward_is_shared_where_the_copies_need_forces():
    class Calls(Morse):
        count = 0

        def forward(self, graph, vectors):
            type(self).count += 1
            return super().forward(graph, vectors)

    model, batch = potential(Calls()), mixed_batch()
    term = build(config({"pitc_trapezoid": {}, "pisc_two_estimates": {}}), model)
    term.mean(model, batch, forces=True).backward()
    assert Calls.count == 1


def test_an_ema_teacher_follows_the_weights():
    model, batch = potential(Morse()), mixed_batch()
    term = build(config({"pitc_first_order": {}}, teacher="ema", teacher_decay=0.9), model)
    term.mean(model, batch)
    torch.testing.assert_close(term.sampling.teacher.potential.model.strength, model.model.strength)
    before = model.model.strength.item()
    model.model.strength.data += 1.0
    term.mean(model, batch)
    assert before < term.sampling.teacher.potential.model.strength.item() < model.model.strength.item()
    assert not any(p.requires_grad for p in term.parameters())
    term.mean(model, batch).backward()
    assert model.model.strength.grad is not None


def test_a_curl_term_estimates_the_frobenius_norm():
    model, batch = potential(Swirl(0.6)), batch_of([molecule(4, 1)], 4.6)
    term = build(config({"curl": {"weight": 1.0}}), model)
    mean = torch.stack([term.mean(model, batch) for _ in range(200)]).mean().item()

    def forces(x):
        return model(batch.graph._replace(positions=x.reshape(-1, 3)), virial=False).forces.flatten()

    jacobian = torch.autograd.functional.jacobian(forces, batch.graph.positions.flatten())
    # Directions without mean: the antisymmetric part has no component along rigid shifts here.
    expected = (jacobian - jacobian.T).square().sum().item() / (12 - 3)
    assert mean == pytest.approx(expected, rel=0.15)
    v = random_unit(mixed_batch().graph, torch.Generator().manual_seed(0))
    assert v[:5].square().sum().item() == pytest.approx(1.0)


def test_the_baselines_ask_displaced_copies_for_what_their_names_say():
    model, batch = potential(Morse()), batch_of([molecule(5, 0)], 4.6)
    options = {"perturbation": {"name": "gaussian", "amplitude": 0.02}}
    noisy = build(config({"noisy_labels": {"weight": 1.0}}, **options), model)
    stiff = {"weight": 1.0, "options": {"stiffness": 7.0}}
    term = build(config({"denoising": stiff}, **options), model)
    from pimlip_zoo.consistency.displacements import Gaussian

    d = Gaussian(0.02).sample(batch.graph, step_generator(0, 0))
    moved = model(batch.graph._replace(positions=batch.graph.positions + d))
    labels = batch.labels
    expected = (moved.forces - labels.forces).square().mean() + ((moved.energy - labels.energy) / 5).square()[
        0
    ]
    torch.testing.assert_close(noisy.mean(model, batch), expected, rtol=1e-10, atol=0)
    expected = (moved.forces + 7.0 * d).square().mean()
    torch.testing.assert_close(term.mean(model, batch), expected, rtol=1e-10, atol=0)


def _build_model(name, direct):
    info = available_models()[name]
    small = {"channels": 4, "l_max": 1, "num_layers": 2, "radial_hidden": (8,)}
    known = {k: v for k, v in small.items() if k in info.config.__dataclass_fields__}
    settings = info.configure(
        cutoff=4.0, avg_num_neighbors=6.0, force_head="direct" if direct else "conservative", **known
    )
    torch.manual_seed(0)
    return Potential(info.model(settings, SPECIES).double())


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("name", sorted(available_models()))
def test_every_architecture_has_every_term(name, direct):
    try:
        model = _build_model(name, direct)
        model(crystals(1).graph)
    except InputError as error:
        if "no direct force head" in str(error):
            pytest.skip("offers no direct head")
        raise
    batch = crystals()
    terms = [t for t in RESIDUALS.all() if t != "curl" or direct]
    term = build(config({t: {"weight": 1.0} for t in terms}, strain=0.005), model)
    value = term.mean(model, batch)
    assert torch.isfinite(value)
    assert set(term.values) == set(terms)
    value.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert sum(g is not None and bool((g != 0).any()) for g in gradients) > 0.7 * len(gradients)


@pytest.mark.parametrize("name", sorted(available_models()))
def test_architectures_ignore_edges_beyond_their_cutoff(name):
    model = _build_model(name, direct=False)
    frames = [molecule(6, 0, SKEWED), molecule(5, 1), molecule(1, 2)]
    narrow, wide = model(batch_of(frames, 4.0).graph), model(batch_of(frames, 4.6).graph)
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_float32_models_give_the_residuals_of_float64_within_their_precision():
    model = _build_model("nequip", direct=False)
    batch = crystals()
    d = UniformCube(0.05).sample(batch.graph, torch.Generator().manual_seed(0))
    double = model.residual("pitc_trapezoid", batch.graph, d)
    single = copy.deepcopy(model).set_dtype(torch.float32).residual("pitc_trapezoid", batch.graph, d)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, double, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_saved_and_read_again(name):
    options = WeakConfig.model_validate({"preset": name})
    assert WeakConfig.model_validate(options.model_dump(mode="json")) == options
    assert options.active or options.labels is not None


def test_numbers_of_a_preset_can_be_overridden_one_by_one():
    options = WeakConfig.model_validate(
        {
            "preset": "piwsl",
            "terms": {"pitc_first_order": {"weight": 5.0}},
            "perturbation": {"amplitude": 0.02},
        }
    )
    assert options.terms["pitc_first_order"].weight == 5.0
    assert options.terms["pitc_first_order"].unit == "total"
    assert options.terms["pisc_triangle"].weight == 0.01
    assert (options.perturbation.name, options.perturbation.amplitude) == ("uniform", 0.02)
    weak_preset("piwsl")["terms"].clear()
    assert weak_preset("piwsl")["terms"]


def test_the_paper_uses_pisc_on_direct_heads_only():
    options = WeakConfig.model_validate({"preset": "piwsl"})
    assert list(chosen_terms(options, direct=False)) == ["pitc_first_order"]
    assert list(chosen_terms(options, direct=True)) == ["pitc_first_order", "pisc_triangle"]


def test_lists_are_widened_by_what_two_atoms_can_do():
    skin = list_skin(config({"pitc_central": {}}), SPECIES, 5.0, direct=False)
    assert skin == pytest.approx(2 * 3**0.5 * 0.05)
    assert list_skin(WeakConfig(), SPECIES, 5.0, direct=False) == 0.0
    assert list_skin(config({"curl": {}}), SPECIES, 5.0, direct=True) == 0.0
    assert list_skin(config({"strain_trapezoid": {}}), SPECIES, 5.0, direct=False) == pytest.approx(
        0.15 / 0.97
    )


def test_what_cannot_work_is_refused_with_the_reason():
    refused(config({"pitc_central": {}}, perturbation={"amplitude": 0.5}), match="half of the shortest bond")
    refused(config({"taylor_augmentation": {}}), labels=("energy",), match="needs force labels")
    refused(config({"anchor_first_order": {}}), labels=("forces",), match="needs energy labels")
    refused(config({"noisy_labels": {}}), labels=("forces",), match="needs energy labels")
    refused(config({"curl": {}}), match="no curl")
    refused(config({"strain_first_order": {}}), match="structure 0 is a molecule")
    refused(
        config({"pitc_central": {}}, perturbation={"name": "force_error"}),
        labels=("energy",),
        match="force labels",
    )
    refused(config({"pitc_central": {}}, perturbation={"name": "variance"}), match="at least 2 runs")
    refused(config({"pitc_central": {}}, perturbation={"species": {"N": 1.0}}), match="no N")
    check_weak(config({"curl": {}}), SPECIES, FULL, [crystals()], direct=True)
    check_weak(config({"strain_first_order": {}}), SPECIES, FULL, [crystals()], direct=False)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"terms": {"pitc_first_order": {"weight": -1.0}}}, "greater than or equal to 0"),
        ({"terms": {"pitc_second_order": {}}}, "pitc_first_order"),
        ({"terms": {"pitc_central": {"options": {"stiffness": 1.0}}}}, "no option 'stiffness'"),
        ({"terms": {"denoising": {"options": {"stifness": 1.0}}}}, "did you mean stiffness"),
        ({"terms": {"denoising": {"options": {"stiffness": 0.0}}}}, "stiffness.*greater than 0"),
        ({"perturbation": {"name": "unifrom"}}, "did you mean uniform"),
        ({"perturbation": {"name": "uniform", "iterations": 5}}, "no such option"),
        ({"denoising_stiffness": 7.0}, "terms.denoising.options"),
        ({"ensemble": ["a", "b"]}, "weak.perturbation.ensemble"),
        ({"preset": "noisy-nodes"}, "benchmarks/weak/baselines"),
        ({"terms": {"pitc_central": {"wieght": 1.0}}}, "Extra inputs"),
        ({"perturbation": {"amplitud": 1.0}}, "did you mean amplitude"),
        ({"preset": "piwls"}, "piwsl"),
        ({"terms": {"loop_simpson": {}}, "teacher": "ema"}, "no target side"),
        ({"fraction": 0.0}, "greater than 0"),
    ],
)
def test_unknown_options_and_negative_weights_are_errors(values, match):
    with pytest.raises(ValueError, match=match):
        WeakConfig.model_validate(values)


def test_every_row_has_a_term_and_every_term_an_equation():
    assert all(one.equation for one in RESIDUALS.all().values())


def test_predictions_without_forces_are_enough():
    """Energies-only training does not compute forces for the supervised loss."""
    model, batch = potential(Morse()), mixed_batch()
    options = config({"pitc_trapezoid": {}, "pisc_triangle": {}})
    with_forces = build(options, model).mean(model, batch, forces=True, virial=True)
    without = build(options, model).mean(model, batch)
    torch.testing.assert_close(with_forces, without, rtol=1e-10, atol=0)
    assert isinstance(model(batch.graph, forces=False), Predictions)


def test_options_as_earlier_versions_wrote_them_keep_their_meaning():
    old = {"denoising_stiffness": 20.0, "ensemble": []}
    schedule = {"name": "decay", "power": 1.0, "reference": None}
    assert config({"curl": {"schedule": schedule}}) == config({"curl": {"schedule": {"name": "decay"}}})
    with pytest.raises(ValueError, match="gained nothing"):
        config({"curl": {"schedule": {**schedule, "power": 2.0}}})
    assert WeakConfig.model_validate({**old, "perturbation": {"iterations": 3}}) == WeakConfig()
    modes = WeakConfig.model_validate({"perturbation": {"name": "soft", "iterations": 2}})
    assert modes.perturbation.options().iterations == 2
    assert WeakConfig.model_validate(modes.model_dump(mode="json")) == modes


def test_the_teacher_follows_once_in_an_optimiser_step():
    """Where gradients of several batches make a step, the average has the length that the decay says."""
    model, batch = potential(Morse()), mixed_batch()
    term = build(config({"pitc_first_order": {}}, teacher="ema", teacher_decay=0.9), model)
    averages = []
    for number in range(3):
        for part in range(4):
            evaluate_step(model, batch, list(term), Step(number, 4 * number + part))
            averages.append(term.sampling.teacher.potential.model.strength.item())
        model.model.strength.data += 1.0
    assert len(set(averages[:4])) == len(set(averages[4:8])) == len(set(averages[8:])) == 1
    assert averages[0] < averages[4] < averages[8]
    alone = build(config({"pitc_first_order": {}}, teacher="ema", teacher_decay=0.9), potential(Morse()))
    fresh = potential(Morse())
    for number in range(3):
        evaluate_step(fresh, batch, list(alone), Step(number, number))
        fresh.model.strength.data += 1.0
    torch.testing.assert_close(
        alone.sampling.teacher.potential.model.strength.item(), averages[-1], rtol=1e-12, atol=0
    )


def test_schedules_count_optimiser_steps_and_displacements_batches():
    model, batch = potential(Morse()), mixed_batch()
    schedule = {"name": "warm_up", "steps": 10}
    (term,) = build(config({"pitc_central": {"schedule": schedule}}), model)
    assert term.factor(Step(5, 20)) == 0.5
    moves = [evaluate_step(model, batch, [term], Step(5, b)).surface.displacement(D) for b in (20, 21, 20)]
    assert not torch.equal(moves[0], moves[1])
    assert torch.equal(moves[0], moves[2])


class Towards(Displacement):
    """Not random: each atom towards the middle, so that structures do not know their batch."""

    def draw(self, graph, generator, context):
        return -0.01 * remove_mean(graph.positions, graph)


def test_sums_and_counts_of_two_batches_are_those_of_both_together():
    """So means over batches and ranks are exact, also where one of them has fewer labels, or none."""
    model = potential(Morse())
    frames = [molecule(3 + s, s) for s in range(6)]
    frames[1] = replace(frames[1], energy=None)
    frames[4], frames[5] = (replace(frame, energy=None, forces=None) for frame in frames[4:])
    frames[0] = replace(frames[0], weight=3.0)
    for name in ("taylor_augmentation", "anchor_trapezoid", "pitc_central", "noisy_labels"):
        one = get_residual(name)
        term = ConsistencyLoss(one, ConsistencySampling(Towards(0.05, 0.1), reads=one.reads))
        whole, *parts = (
            term(evaluate_step(model, batch_of(some, 4.6), [term]))
            for some in (frames, frames[:4], frames[4:])
        )
        torch.testing.assert_close(whole.total, sum(p.total for p in parts), rtol=1e-10, atol=0)
        torch.testing.assert_close(whole.count, sum(p.count for p in parts), rtol=1e-12, atol=0)
        assert whole.count == (8 if name == "pitc_central" else 5)
        assert whole.total > 0


@pytest.mark.parametrize("quantity", ["energy", "forces", "stress"])
def test_a_step_computes_what_its_terms_ask_for_and_nothing_else(quantity):
    evaluated = evaluate_step(potential(Morse()), crystals(), [SupervisedTerm(quantity)])
    assert bool(len(evaluated.predictions.forces)) is (quantity == "forces")
    assert bool(len(evaluated.predictions.virial)) is (quantity == "stress")
    assert evaluated.surface is None


def test_terms_of_a_step_get_the_same_copies():
    model, batch = potential(Morse()), mixed_batch()
    terms = build(config({"pitc_trapezoid": {}, "pisc_triangle": {"detach": "forces"}}), model)
    evaluated = evaluate_step(model, batch, [SupervisedTerm("energy_per_atom"), *terms])
    points = {ORIGIN, D, P}
    assert points <= evaluated.surface.copies.energy.keys()
    assert points <= evaluated.surface.copies.forces.keys()
    assert len({id(term.sampling) for term in terms}) == 1
    other = ConsistencySampling(UniformCube(0.05))
    with pytest.raises(ValueError, match="the same copies"):
        evaluate_step(model, batch, [*terms, ConsistencyLoss(get_residual("pitc_central"), other)])
