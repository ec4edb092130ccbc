"""The ways of training that the study compares, and its tables.

Every way of a table costs about the same number of optimiser steps in total, T (--steps), so that the comparison is one
of equal computing time; `plain-short` takes as many steps on the labels as the ways with a stage before them (T/3), so
that it is the one of equal steps on the labels; `plain-long` takes 1.6 T steps, so that it is the one of equal time
beside losses on displaced copies. `central-half` and `central-late` take that time, too: with the loss on half a batch
1.25 T steps, with the loss in the last two fifths of the steps alone 1.35 T, as with it after pre-training.
`plain-longer` takes 2.2 T, the time of the last with the sampling of its weak labels (acetylacetone, T = 3,000).
"""

from dataclasses import dataclass, field

CENTRAL = [("weak.terms.pitc_central.weight", 0.1), ("weak.perturbation.amplitude", 0.05)]
DETACHED = [*CENTRAL, ("weak.terms.pitc_central.detach", "forces")]
STRONG = [*DETACHED, ("weak.terms.pitc_central.weight", 1.0)]
PAPER = [("weak.terms.pitc_first_order.weight", 0.1), ("weak.perturbation.amplitude", 0.02)]
TRAPEZOID = [("weak.terms.pitc_trapezoid.weight", 0.1)]


def after_pretraining(settings):
    """A consistency loss in the run that follows pre-training."""
    return [("weak.labels.method", "pretrain"), *settings]


def given(method):
    """The cheap calculator labels the geometries of the whole training set, instead of sampled ones."""
    return [
        ("weak.labels.method", method),
        ("weak.unlabelled", "{pool}"),
        ("weak.labels.pool.method", "given"),
    ]


# Steps in units of T, where they are others than T.
LENGTHS = {
    "plain-short": 1 / 3,
    "plain-long": 1.6,
    "plain-longer": 2.2,
    "central-half": 1.25,
    "central-late": 1.35,
    "pretrain+central-long": 1.35,
}

# Settings by name; what is not here is a preset.
SETTINGS = {
    "plain": [],
    "plain-short": [],
    "plain-long": [],
    "plain-longer": [],
    "pitc-first": PAPER,
    "pitc-trapezoid": TRAPEZOID,
    "pitc-midpoint": [("weak.terms.pitc_midpoint.weight", 0.1)],
    "pitc-central": CENTRAL,
    "pitc-central-detached": DETACHED,
    "taylor-central": [("weak.terms.taylor_central.weight", 0.1)],
    "loop": [("weak.terms.loop_trapezoid.weight", 0.1)],
    "curl": [("weak.terms.curl.weight", 0.01)],
    "anchor": [("weak.terms.anchor_trapezoid.weight", 0.1)],
    "central-strong": STRONG,
    "central-pool": [*DETACHED, ("weak.unlabelled", "{pool}")],
    "central-teacher": [*CENTRAL, ("weak.teacher", "ema")],
    "central-warm-up": [*DETACHED, ("weak.terms.pitc_central.schedule.name", "warm_up")],
    # These and noisy-nodes, denoising, second-head: pip install benchmarks/weak/baselines
    "central-stiff": [*DETACHED, ("weak.perturbation.name", "stiff")],
    "central-soft": [*DETACHED, ("weak.perturbation.name", "soft")],
    "central-adversarial": [*DETACHED, ("weak.perturbation.name", "force_error")],
    "central-half": [*STRONG, ("weak.fraction", 0.5)],
    "central-late": [
        *STRONG,
        ("weak.terms.pitc_central.schedule.name", "warm_up"),
        ("weak.terms.pitc_central.schedule.start", "{late}"),
        ("weak.terms.pitc_central.schedule.steps", 100),
    ],
    "strain": [("weak.terms.strain_trapezoid.weight", 0.1)],
    "lr-low": [("optimizer.lr", 0.003)],
    "lr-high": [("optimizer.lr", 0.02)],
    "force-weight-10": [("loss.forces.weight", 10.0)],
    "force-weight-100": [("loss.forces.weight", 100.0)],
    "pretrain+trapezoid": after_pretraining(TRAPEZOID),
    "pretrain+trapezoid-pool": after_pretraining([*TRAPEZOID, ("weak.unlabelled", "{pool}")]),
    "pretrain+piwsl": after_pretraining([("weak.preset", "piwsl")]),
    "pretrain-given": given("pretrain"),
    **{
        f"pretrain-given-rate-{factor}": [*given("pretrain"), ("weak.labels.rate_after", factor)]
        for factor in (0.3, 0.1, 0.03)
    },
    "distill-given": given("distill"),
    "shared-head-given": given("shared_head"),
    "second-head": [("weak.labels.method", "second_head")],
    "noisy-nodes": [
        ("weak.terms.noisy_labels.weight", 0.1),
        ("weak.perturbation.name", "gaussian"),
        ("weak.perturbation.amplitude", 0.01),
    ],
    "denoising": [("weak.terms.denoising.weight", 0.01), ("weak.perturbation.name", "gaussian")],
    "pretrain+central": after_pretraining(STRONG),
    "pretrain+central-long": after_pretraining(STRONG),
    "pretrain+central-throughout": after_pretraining([*STRONG, ("weak.labels.terms", "throughout")]),
    "pretrain-low-lr": after_pretraining([("optimizer.lr", 0.003)]),
    "pretrain-high-lr": after_pretraining([("optimizer.lr", 0.02)]),
    **{
        f"pretrain-rate-{factor}": after_pretraining([("weak.labels.rate_after", factor)])
        for factor in (1.0, 0.3, 0.1, 0.03)
    },
    "distill-iterated": [("weak.preset", "distill"), ("weak.labels.iterations", 2)],
    "curriculum-share-0.1": [("weak.labels.method", "curriculum"), ("weak.labels.label_share", 0.1)],
    "curriculum": [("weak.labels.method", "curriculum")],
    "curriculum-3": [("weak.labels.method", "curriculum"), ("weak.labels.teachers", 3)],
    # Pre-training and difference model of T steps or two thirds of it, as runs of their own have them.
    "curriculum-long-stages": [
        ("weak.labels.method", "curriculum"),
        ("weak.labels.steps", "{all}"),
        ("weak.labels.pretrain_steps", "{two thirds}"),
    ],
    **{
        f"curriculum-energies-{weight}": [
            ("weak.labels.method", "curriculum"),
            ("weak.labels.energy_weight", float(weight)),
        ]
        for weight in (10, 100, 1000)
    },
    **{
        f"curvature{tag}": [
            ("weak.labels.method", "curvature"),
            ("weak.labels.rate_after", 0.3),
            ("weak.labels.curvature", weight),
        ]
        for tag, weight in (("", 0.0025), ("-weak", 0.00025))
    },
    "distill-3": [("weak.preset", "distill"), ("weak.labels.teachers", 3)],
}


@dataclass(frozen=True)
class Table:
    """What a table answers, and what is run for it."""

    text: str
    ways: tuple[str, ...]
    """In the order of their worth: what comes first is run first."""
    settings: list = field(default_factory=list)
    more_labels: tuple[str, ...] = ()
    """Ways that are also run with the larger numbers of labels."""


TABLES = {
    "tuning": Table(
        "learning rate and force weight of plain runs",
        (
            "plain",
            "plain-long",
            "lr-low",
            "lr-high",
            "force-weight-10",
            "force-weight-100",
            "pretrain-high-lr",
        ),
    ),
    "conservative": Table(
        "conservative head, energies and forces",
        (
            "plain",
            "pretrain",
            "distill",
            "delta",
            "plain-short",
            "shared-head",
            "second-head",
            "pretrain-given",
            "distill-given",
        ),
        more_labels=("plain",),
    ),
    "energies": Table(
        "conservative head, energies only",
        ("plain", "pretrain", "distill", "delta"),
        [("data.labels", ["energy"])],
    ),
    "consistency": Table(
        "conservative head, energies and forces: consistency losses and baselines, alone and after pre-training",
        (
            "plain",
            "pitc-trapezoid",
            "pitc-first",
            "piwsl",
            "taylor",
            "denoising",
            "noisy-nodes",
            "pretrain",
            "pretrain+trapezoid-pool",
            "pretrain+trapezoid",
            "pretrain+piwsl",
        ),
    ),
    "consistency-energies": Table(
        "conservative head, energies only: consistency losses",
        ("plain", "piwsl", "anchor", "pitc-trapezoid"),
        [("data.labels", ["energy"])],
    ),
    "direct": Table(
        "direct head, energies and forces",
        (
            "plain",
            "pitc-central-detached",
            "central-pool",
            "piwsl",
            "pitc-central",
            "pitc-first",
            "pitc-trapezoid",
            "taylor-central",
            "pretrain",
            "pretrain+central",
            "pretrain+central-long",
            "pretrain+central-throughout",
            "loop",
            "curl",
        ),
        [("model.force_head", "direct")],
        more_labels=("plain", "pitc-central-detached", "central-pool"),
    ),
    "direct-energies": Table(
        "direct head, energies only",
        ("plain", "piwsl", "pitc-trapezoid", "loop", "anchor", "pretrain"),
        [("model.force_head", "direct"), ("data.labels", ["energy"])],
    ),
    "kinds": Table(
        "direct head: kinds of displacement, schedules, teacher",
        (
            "pitc-central-detached",
            "central-teacher",
            "central-warm-up",
            "central-stiff",
            "central-soft",
            "central-adversarial",
        ),
        [("model.force_head", "direct")],
    ),
    "transfer": Table(
        "what pre-training and distillation depend on",
        (
            "pretrain",
            "pretrain-low-lr",
            "pretrain-rate-1.0",
            "pretrain-rate-0.3",
            "distill",
            "distill-iterated",
            "distill-3",
        ),
    ),
    "strain": Table("conservative head, periodic structures: strain", ("plain", "strain")),
}


def settings_of(way, steps, study, pool_structures=None):
    """Settings of one way of training.

    Args:
        way: its name.
        steps: T, over all stages.
        study: the data set, for the calculator of weak labels.
        pool_structures: how many structures that calculator labels; the data set says it otherwise.
    """
    from pimlip_zoo.consistency.config import PRESETS, weak_preset

    settings = list(SETTINGS.get(way, [("weak.preset", way)]))
    steps = round(steps * LENGTHS.get(way, 1))
    lengths = {"{late}": steps * 3 // 5, "{all}": steps, "{two thirds}": steps - steps // 3}
    settings = filled(settings, lengths)
    presets = [value for key, value in settings if key == "weak.preset" and value in PRESETS]
    labels = {key.removeprefix("weak.labels."): value for key, value in settings if "weak.labels" in key}
    for preset in presets:
        labels = {**weak_preset(preset).get("labels", {}), **labels}
    if not labels:
        return [*settings, ("trainer.max_steps", steps)]
    before, after = stages(
        labels["method"], steps, labels.get("teachers", 1) + labels.get("iterations", 1) - 1
    )
    own = {
        "pretrain": [("weak.labels.steps", before)],
        "curvature": [("weak.labels.steps", before)],
        "distill": [("weak.labels.steps", before)],
        "curriculum": [("weak.labels.steps", before), ("weak.labels.pretrain_steps", before)],
        "shared_head": [("weak.labels.batch_size", study.batch_size)],
        "second_head": [("weak.labels.batch_size", study.batch_size)],
    }
    return [
        ("weak.labels.calculator", study.cheap),
        ("trainer.max_steps", after),
        ("weak.labels.pool.structures", pool_structures or study.pool),
        *sampling(study),
        *own.get(labels["method"], []),
        *settings,
    ]


def filled(settings, values):
    """Settings with what only a run knows, such as its number of steps, in its places."""
    return [(key, values.get(value, value) if isinstance(value, str) else value) for key, value in settings]


def sampling(study):
    """Settings of how the pool is sampled."""
    if study.displaced:
        return [
            ("weak.labels.pool.method", "displaced"),
            ("weak.labels.pool.amplitudes", list(study.displaced)),
        ]
    return [("weak.labels.pool.timestep", study.timestep), ("weak.labels.pool.stride", study.stride)]


def stages(method, steps, befores):
    """Steps of a stage before the run, and of the run; together about as many as `steps`.

    Args:
        method: of the weak labels.
        steps: T.
        befores: how many stages come before a distilled student, beside pre-training.
    """
    if method in ("pretrain", "curvature"):
        return steps - steps // 3, steps // 3
    if method == "distill":
        before = steps // (2 + befores)
        return before, steps - before * befores
    if method == "curriculum":  # pre-training and teachers take half of the steps, the student the other half
        before = steps // (2 + 2 * befores)
        return before, steps - (1 + befores) * before
    if method in ("second_head", "shared_head"):
        return steps, steps // 2  # two batches a step
    return steps, steps
