"""Training on from a trained potential: what is taken over, what stays fixed, what moves slowly, new references."""

from __future__ import annotations

import copy
import fnmatch
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.statistics import EnergyReferences
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import AtomGraph, Batch, collate
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.checkpoint import (
    KEY,
    build_potential,
    checkpoint_path,
    load_potential,
    plain,
    read_checkpoint,
)
from pimlip_zoo.training.shipped import is_shipped, recipe_of

log = logging.getLogger("pimlip_zoo")

FINE_TUNING = "finetune"
"""The training recipe of runs that start from another one, unless they name theirs; those of shipped potentials have
their own."""

EXTENSION_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Relative, by the precision of the weights: how well an extended model has to repeat the energies of the old one."""


def inherit_options(content: Mapping[str, Any], run: str) -> dict[str, Any]:
    """A raw configuration with everything that the run decides filled in: architecture, its options, ZBL, precision.

    Args:
        content: sections by name, only what was given.
        run: run folder or checkpoint.

    Raises:
        InputError: when the run cannot be read, or something given contradicts it.
    """
    path = checkpoint_path(run)
    description = read_checkpoint(path)[KEY]
    result = copy.deepcopy(dict(content))
    model = result.setdefault("model", {})
    if isinstance(model, dict):
        result["model"] = _inherit_model(model, description, path)
    potential = result.setdefault("potential", {})
    if isinstance(potential, dict):
        zbl = description["repulsion"] is not None
        _agree("potential.zbl", potential.setdefault("zbl", zbl), zbl, path)
        _agree("potential.scale", potential.setdefault("scale", "run"), "run", path)
        potential.setdefault("trainable_scale", description["trainable_scale"])
    trainer = result.setdefault("trainer", {})
    if isinstance(trainer, dict):
        trainer.setdefault("dtype", description["dtype"])
    recipe = result.setdefault("recipe", {})
    if isinstance(recipe, dict):  # a version alone is one of the recipe that the run would have
        recipe.setdefault("name", recipe_of(run) if is_shipped(run) else FINE_TUNING)
    return result


def _inherit_model(given: Mapping[str, Any], description: Mapping[str, Any], path: object) -> dict[str, Any]:
    name, options = description["model"], description["config"]
    _agree("model.name", given.get("name", name), name, path)
    info = get_model(name)
    preset = given.get("preset")
    wanted = {**(info.presets.get(preset, {}) if preset is not None else {}), **given}
    for key, value in wanted.items():
        if key in options:
            _agree(f"model.{key}", plain(value), plain(options[key]), path)
    unknown = {key: value for key, value in given.items() if key not in options}
    return {**unknown, "name": name, "preset": None, **options}


def _agree(key: str, given: object, found: object, path: object) -> None:
    if given != found:
        raise InputError(
            f"{given!r} contradicts the run that is fine-tuned, which has {found!r}",
            file=path,
            key=key,
            hint="leave it out: it comes from the run",
        )


def start_from(
    run: str | Path,
    found: Sequence[str] = (),
    *,
    extend: bool = False,
    dtype: torch.dtype | None = None,
    trainable_scale: bool = False,
) -> Potential:
    """The potential of a run as the start of a training.

    It knows the run's species in their order, also those that the new data lack. With ``extend``, whatever the
    architecture keeps by species gets a row for each new one, the mean of the known rows. That is done by shapes
    alone, and then checked: structures of the known species must keep their energies. The energy references of new
    species are NaN until they are set.

    Args:
        run: run folder or checkpoint.
        found: species of the new data.
        extend: allow new ones.
        dtype: of the model; the run's if not given.
        trainable_scale: learn the scale and the energy references, too.

    Raises:
        InputError: when there is no such run, for new species without ``extend``, or when the architecture cannot be
            extended this way.
    """
    path = checkpoint_path(run)
    old = load_potential(path)
    added = [symbol for symbol in found if symbol not in old.species]
    if added and not extend:
        raise InputError(
            f"the data have {', '.join(added)}, and the potential to fine-tune knows {', '.join(old.species)} only",
            file=path,
            key="finetune.extend_species",
            hint="leave those structures out, or give --set finetune.extend_species=true: new species then start as "
            "the mean of the known ones",
        )
    description = {
        **read_checkpoint(path)[KEY],
        "species": [*old.species, *added],
        "trainable_scale": trainable_scale,
    }
    new = build_potential(description)
    new.load_state_dict(_extended_weights(old, new, path))
    if added:
        _check_extension(old, new, path)
        new.energy_references.data[len(old.species) :] = float("nan")
        log.warning(
            "%s: new species %s start as the mean of %s", path, ", ".join(added), ", ".join(old.species)
        )
    if dtype is not None:
        new.set_dtype(dtype)
    return new.train()


def _extended_weights(old: Potential, new: Potential, path: object) -> dict[str, Tensor]:
    before, count = old.state_dict(), len(old.species)
    result = {}
    for name, value in new.state_dict().items():
        if name not in before:
            raise InputError(
                f"{name} is not in it: {description_of(new)} cannot be extended", file=path, key="species"
            )
        weight, factor = before[name], species_factor(old, new, name)
        axes = [axis for axis in range(value.dim()) if value.shape[axis] != weight.shape[axis]]
        if value.dim() != weight.dim() or len(axes) > 1 or (axes and weight.shape[axes[0]] != count):
            raise InputError(
                f"{name} is {tuple(weight.shape)} for {count} species and {tuple(value.shape)} for "
                f"{len(new.species)}: no rows by species that could be added",
                file=path,
                key="finetune.extend_species",
                hint=f"train a {description_of(new)} model on all species from the start",
            )
        if axes:
            mean = weight.mean(dim=axes[0], keepdim=True)
            extra = value.shape[axes[0]] - count
            weight = torch.cat([weight, *[mean] * extra], dim=axes[0])
        result[name] = weight * factor if factor != 1.0 else weight
    return result


def description_of(potential: Potential) -> str:
    """The class name of an architecture."""
    return type(potential.model).__name__


def _check_extension(old: Potential, new: Potential, path: object) -> None:
    """Compare energies in float64 on a cluster of the known species."""
    graph = cluster(old)
    error, size = deviation((old, graph), (new, graph))
    if error > EXTENSION_TOLERANCE[old.model.dtype] * size:
        raise InputError(
            f"with more species the known ones change their energies by {error:.1e} eV: some factor of "
            f"{description_of(new)} depends on the number of species",
            file=path,
            key="finetune.extend_species",
            hint="give the architecture a species_factor method, or train on all species from the start",
        )


def deviation(one: tuple[Potential, AtomGraph], other: tuple[Potential, AtomGraph]) -> tuple[float, float]:
    """How far two potentials are apart in the energies of the same atoms, without references, in float64.

    Returns:
        eV, the largest difference, and the largest energy of the first, at least 1.
    """
    energies = []
    for potential, graph in (one, other):
        double = copy.deepcopy(potential).set_dtype(torch.float64).eval()
        double.energy_references.data.zero_()
        with torch.no_grad():
            energies.append(double(graph, forces=False, virial=False).atomic_energy)
    return float((energies[0] - energies[1]).abs().max()), max(1.0, float(energies[0].abs().max()))


def species_factor(start: Potential, end: Potential, name: str) -> float:
    """What a weight by its name is multiplied by when it is taken over to a potential for other species."""
    short = name.removeprefix("model.")
    return start.model.species_factor(short) / end.model.species_factor(short)


def cluster(potential: Potential) -> AtomGraph:
    """Every known species among others, at bonding distances."""
    from ase.data import atomic_numbers

    count = max(8, 2 * len(potential.species))
    edge = int(np.ceil(count ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:count]
    spacing = min(1.6, 0.45 * potential.cutoff)
    positions = spacing * (grid + np.random.default_rng(0).uniform(-0.15, 0.15, (count, 3)))
    numbers = np.resize([atomic_numbers[symbol] for symbol in potential.species], count).astype(np.int64)
    return frame_to_sample(
        Frame(numbers=numbers, positions=positions), potential.species, potential.cutoff
    ).graph


def set_references(potential: Potential, energies: Mapping[str, float], source: str) -> EnergyReferences:
    """Give a potential energy references by symbol, in eV; species that are not named keep theirs."""
    for symbol, energy in energies.items():
        if symbol in potential.species:
            potential.energy_references.data[potential.species.index(symbol)] = float(energy)
    values = potential.energy_references.detach().numpy().copy()
    return EnergyReferences(values, source, len(potential.species))


def refit_references(
    potential: Potential, samples: Sequence[Batch], *, batch_size: int = 50
) -> EnergyReferences:
    """Move a trained potential's energy references to the zero of energy of new data.

    Least squares of ``E_label - E_predicted`` against compositions: what the model says of interactions is kept, only
    the references move, by no more than the data ask for. Species that the data lack keep theirs; new ones start at 0.

    Args:
        potential: changed in place.
        samples: the new training samples.
        batch_size: structures at once.

    Returns:
        The references; without a labelled energy they are the old ones.
    """
    count = len(potential.species)
    labelled = [sample for sample in samples if not torch.isnan(sample.labels.energy).any()]
    if not labelled:
        return set_references(potential, {}, "the run")
    potential.energy_references.data.nan_to_num_(nan=0.0)
    rows, residuals = [], []
    training = potential.training
    potential.eval()
    for start in range(0, len(labelled), batch_size):
        batch = collate(labelled[start : start + batch_size])
        with torch.no_grad():
            predicted = potential(batch.graph, forces=False, virial=False).energy
        place = batch.graph.batch * count + batch.graph.species
        numbers = torch.bincount(place, minlength=batch.graph.num_graphs * count)
        rows.append(numbers.view(-1, count).to(torch.float64))
        residuals.append(batch.labels.energy - predicted)
    potential.train(training)
    compositions = torch.cat(rows)
    change, _, rank, _ = np.linalg.lstsq(compositions.numpy(), torch.cat(residuals).numpy(), rcond=1e-8)
    potential.energy_references.data += torch.as_tensor(change)
    present = int((compositions.sum(0) > 0).sum())
    if rank < present:
        log.warning(
            "the compositions determine %d of %d energy references: energies of other compositions mean nothing "
            "(label a structure of another composition, or give data.energy_references)",
            *(rank, present),
        )
    return EnergyReferences(
        potential.energy_references.detach().numpy().copy(), "the run, re-fitted", int(rank)
    )


def tunable_names(potential: Potential) -> dict[str, nn.Parameter]:
    """The parameters of the architecture by the names that patterns are matched with."""
    return dict(potential.model.named_parameters())


def freeze(potential: Potential, patterns: Sequence[str]) -> int:
    """Take parameters out of the training.

    Args:
        potential: changed in place.
        patterns: such as ``edges.*``, ``layers.0``, ``*.radial.*``; a module's name stands for all that is in it.

    Returns:
        How many numbers are frozen.

    Raises:
        InputError: for a pattern that matches nothing, or when nothing is left to train.
    """
    parameters = tunable_names(potential)
    frozen = set()
    for pattern in patterns:
        frozen.update(_matching(pattern, parameters, "finetune.freeze"))
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in potential.parameters()):
        raise InputError(
            "everything is frozen, nothing is left to train", key="finetune.freeze", hint="name fewer parts"
        )
    return sum(parameters[name].numel() for name in frozen)


def parameter_groups(
    potential: Potential,
    lr: float,
    factors: Mapping[str, float],
    instead: Mapping[str, Sequence[nn.Parameter]] | None = None,
) -> list[dict[str, Any]]:
    """What an optimiser takes: the trainable parameters with their learning rates, the common rate first.

    Args:
        potential: whose parameters.
        lr: the learning rate.
        factors: of the learning rate, by pattern as in :func:`freeze`; the last pattern that matches counts.
        instead: parameters that are trained in the place of one of the architecture's, by its name.

    Raises:
        InputError: for a pattern that matches nothing.
    """
    parameters = tunable_names(potential)
    of_name: dict[str, float] = {}
    for pattern, factor in factors.items():
        of_name.update(dict.fromkeys(_matching(pattern, parameters, "finetune.learning_rates"), factor))
    of_parameter = {id(parameters[name]): factor for name, factor in of_name.items()}
    others = {id(parameters[name]): members for name, members in (instead or {}).items()}
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in potential.parameters():
        if parameter.requires_grad:
            members = others.get(id(parameter), [parameter])
            groups.setdefault(of_parameter.get(id(parameter), 1.0), []).extend(members)
    return [{"params": members, "lr": lr * factor} for factor, members in groups.items() if members]


def _matching(pattern: str, parameters: Mapping[str, object], key: str) -> list[str]:
    found = [name for name in parameters if _matches(name, pattern)]
    if not found:
        parts = {
            ".".join(name.split(".")[: depth + 1])
            for name in parameters
            for depth in range(name.count(".") + 1)
        }
        near = did_you_mean(pattern.removesuffix(".*"), parts)
        if near.startswith("known"):
            near = f"parts: {', '.join(sorted({name.split('.')[0] for name in parameters}))}"
        raise InputError(f"no parameter is called {pattern!r}", key=key, hint=near)
    return found


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
