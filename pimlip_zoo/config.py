"""The typed configuration of a run: every option, its default, and what it may be.

The same keys stand in ``run.yaml`` and after ``--set``; an unknown one is an error that names the nearest.
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from pimlip_zoo.consistency.config import WeakConfig, merge_tables
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.files import replacing
from pimlip_zoo.losses.base import LOSSES, LossOptions
from pimlip_zoo.losses.supervised import StressLossOptions, SupervisedOptions, TotalEnergyOptions
from pimlip_zoo.models.base import ModelConfig
from pimlip_zoo.registry import ModelInfo, get_model
from pimlip_zoo.section import Section, number_given_as_truth, number_too_large, parse_options
from pimlip_zoo.training.finetune import inherit_options
from pimlip_zoo.training.recipes import DEFAULT_RECIPE, get_recipe
from pimlip_zoo.training.schedule import ScheduleName
from pimlip_zoo.training.shipped import full_name, is_shipped
from pimlip_zoo.yaml_file import parse_yaml, read_yaml

BUILTIN = "builtin:ethanol-gfn2"
BUILTIN_STEPS = 6_000


class ModelSection(BaseModel):
    """The architecture: name, preset, and any of its own options."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    name: str = "nequip"
    """Of a registered architecture; `pimlip-zoo models` lists them."""
    preset: str | None = "small"
    """A named set of the architecture's options; the default recipe has a larger one for millions of labels. None: the
    defaults of the architecture's own config."""

    @model_validator(mode="after")
    def _options_exist(self) -> ModelSection:
        self.configure()
        return self

    @property
    def info(self) -> ModelInfo:
        """The registered architecture."""
        return get_model(self.name)

    def configure(self, **more: object) -> ModelConfig:
        """The architecture's frozen config.

        Raises:
            InputError: for an unknown option or one of the wrong type.
        """
        info = self.info
        hints = typing.get_type_hints(info.config)
        known = [field.name for field in dataclasses.fields(info.config)]
        options: dict[str, Any] = {}
        for key, value in {**(self.__pydantic_extra__ or {}), **more}.items():
            if key not in known:
                raise InputError(
                    f"{self.name} has no option {key!r}", key=f"model.{key}", hint=did_you_mean(key, known)
                )
            options[key] = _coerce(f"model.{key}", value, hints[key])
        preset = self.preset if self.preset is None or info.presets else None
        return typing.cast("ModelConfig", info.configure(preset, **options))


class DataSection(Section):
    """Where structures come from and how they are cut into batches."""

    train: str = BUILTIN
    """Training structures: a file, a store, builtin:NAME, several with commas."""
    valid: str | None = None
    """None: a built-in set's own, or ``valid_fraction`` of the training structures."""
    test: str | None = None
    """Structures that are evaluated at the end."""
    valid_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training structures that is held out for validation where data.valid is not given."""
    max_valid: PositiveInt = 1_000
    """Most structures that are taken from the training structures for validation."""
    stream: bool = True
    """Leave the structures of an LMDB store there and read each when its batch comes; false: read all at the start."""
    cache_mb: int = Field(256, ge=0)
    """MB of samples with their neighbour lists that each process keeps of a store; 0: they are made anew."""
    labels: Literal["auto"] | list[Literal["energy", "forces", "stress"]] = "auto"
    """Which labels are trained on; auto: all that the training structures have."""
    batch_size: PositiveInt = 10
    """Structures in a step, over all ranks; the most there can be where a budget is given. The default recipe has
    fewer where structures are large."""
    max_atoms: PositiveInt | None = None
    """Budget of a rank's batch."""
    max_edges: PositiveInt | None = None
    """Budget of a rank's batch: what to lower when memory runs out. Batches then hold structures of one size."""
    valid_batch_size: PositiveInt = 50
    """Structures evaluated at once in validations."""
    num_workers: int = Field(0, ge=0)
    """Processes of each rank that read structures and make neighbour lists beside the training."""
    neighbours: Literal["workers", "nvalchemi", "torch_cluster"] = "workers"
    """What makes neighbour lists: vesin where structures are read, or, on the device that trains, nvalchemi-toolkit-ops
    or torch-cluster (molecules only)."""
    energy_references: dict[str, float] | str = "auto"
    """eV: a table by symbol, a file of isolated atoms, or how to get them: isolated, least_squares, none, auto (the
    isolated atoms of the data where there are any, least squares otherwise)."""

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: Any) -> Any:
        if labels != "auto" and len(set(labels)) < len(labels):
            raise ValueError("a label is named twice")
        return labels

    check: bool = True
    """Refuse to train on what `pimlip-zoo data check` refuses; false, or --no-check: train all the same."""
    check_references: bool = True
    """Refuse energies more than 50 eV per atom from the references."""


def _further(section: type[BaseModel], values: Mapping[str, Any], key: str) -> list[str]:
    """Names of losses that are no fields of a section.

    Raises:
        InputError: for one that nobody has registered, with the nearest.
    """
    further = [name for name in values if name not in section.model_fields]
    for name in further:
        if name not in LOSSES.all():
            known = {*section.model_fields, *LOSSES.all()}
            raise InputError("no such option", key=f"{key}.{name}", hint=did_you_mean(name, known))
    return further


class LatePhaseSection(Section):
    """Other weights for the end of a run, as in mace-torch's stage two; the best weights are chosen anew there.

    A registered loss has its weight here, too, by its name; one that is not named keeps the one that it has.
    """

    model_config = ConfigDict(extra="allow", validate_default=True, use_attribute_docstrings=True)

    start: float | None = Field(None, gt=0, lt=1)
    """Share of the run after which they hold; None: never."""
    energy: float = Field(0.0, ge=0)
    """Weight of total energies."""
    energy_per_atom: float = Field(10.0, ge=0)
    """Weight of energies per atom."""
    forces: float = Field(1.0, ge=0)
    """Weight of forces."""
    stress: float = Field(100.0, ge=0)
    """Weight of stresses."""
    rate: PositiveFloat = 1.0
    """Factor of the learning rate."""

    @model_validator(mode="before")
    @classmethod
    def _losses_exist(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        read = dict(values)
        for name in _further(cls, values, "loss.late"):
            read[name] = _coerce(f"loss.late.{name}", values[name], NonNegativeFloat)
        return read

    @property
    def weights(self) -> dict[str, float]:
        """By the names of the losses."""
        return self.model_dump(exclude={"start", "rate"})


class LossSection(Section):
    """Supervised terms; those without labels are left out. Errors in eV, eV/Å, eV/Å³.

    Whatever else is registered as a supervised loss stands beside these, with options of its own.
    """

    model_config = ConfigDict(extra="allow", validate_default=True, use_attribute_docstrings=True)

    energy: TotalEnergyOptions = TotalEnergyOptions()
    """Total energies."""
    energy_per_atom: SupervisedOptions = SupervisedOptions()
    """Energies divided by the number of atoms."""
    forces: SupervisedOptions = SupervisedOptions()
    """Force components."""
    stress: StressLossOptions = StressLossOptions()
    """Stress components."""
    late: LatePhaseSection = LatePhaseSection()
    """Other weights for the end of the run."""

    @model_validator(mode="before")
    @classmethod
    def _losses_exist(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        read = dict(values)
        for name in _further(cls, values, "loss"):
            given, key = values[name], f"loss.{name}"
            if isinstance(given, BaseModel):
                continue
            if not isinstance(given, Mapping):
                raise InputError("is a section", key=key, hint=f"give {key}.weight")
            read[name] = parse_options(LOSSES.get(name).options, given, key)
        return read

    @property
    def terms(self) -> dict[str, LossOptions]:
        """The options of every loss by its name, those of other packages last."""
        own = [name for name in type(self).model_fields if name != "late"]
        return {name: getattr(self, name) for name in own} | dict(self.model_extra or {})


class OptimizerSection(Section):
    """What turns gradients into steps."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: matrices move along their orthogonalised momentum, all else by AdamW; fewer steps to the same error."""
    lr: PositiveFloat = 0.01
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled: a step shrinks the weights by lr times this share."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of AdamW: how long gradients and their squares are averaged."""
    amsgrad: bool = False
    """Of AdamW: divide by the largest average of squares so far."""
    equal_outputs: bool = False
    """Of muon: all outputs of a matrix take steps of one size."""


class ScheduleSection(Section):
    """Learning rate over the run."""

    name: ScheduleName = "cosine"
    """How the rate decays after the warm-up; plateau: where validations do not improve."""
    warmup_steps: int = Field(100, ge=0)
    """Steps over which the rate rises linearly to its full value."""
    final: float = Field(0.01, ge=0, le=1)
    """Factor at the end of the run: at its last step, or when its time is over."""
    shorter_power: float = Field(0.0, ge=0, le=1)
    """Where ``trainer.max_time`` is enough for a part of the steps only: the rate is divided by this power of that
    part, as soon as the speed is known."""
    highest_lr: PositiveFloat | None = None
    """What the rate is raised to at most by ``shorter_power``; None: no limit."""
    plateau_factor: float = Field(0.8, gt=0, lt=1)
    """With plateau: the rate is multiplied by it after ``plateau_patience`` validations without improvement."""
    plateau_patience: PositiveInt = 50
    """Validations without improvement before the rate is lowered."""
    plateau_threshold: float = Field(1e-4, ge=0, lt=1)
    """An improvement is a score that is lower by more than this share."""


class PotentialSection(Section):
    """What is put around the architecture."""

    scale: Literal["forces_rms", "run"] | PositiveFloat = "forces_rms"
    """eV, multiplies the model's energies; forces_rms: that of the training forces; run: of the run that is
    fine-tuned."""
    trainable_scale: bool = False
    """Learn the scale and the energy references by species, too."""
    zbl: bool = False
    """Add the screened nuclear repulsion of Ziegler, Biersack and Littmark."""


class TrainerSection(Section):
    """How long, how fast, where."""

    max_steps: PositiveInt = 20_000
    """Optimiser steps; the default recipe has more for more structures, 6,000 for a built-in set."""
    max_time: str | None = None
    """Such as 10m, 2h, 1d12h: the run ends then or at its last step, whichever comes first, and its learning rate has
    decayed by then. Of a resumed run all its parts count; stages before it (pre-training, teachers) have their share of
    it, by their steps. Weak labels are computed before, and do not count."""
    valid_every: PositiveInt = 250
    """Steps between validations; the default recipe has a fortieth of the run."""
    gradient_clip: PositiveFloat | None = 10.0
    """Largest norm of the gradient."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Of the averaged weights, which are the ones validated and saved; 0: no averaging."""
    keep: Literal["best", "last"] | None = None
    """Weights that are used afterwards, ``checkpoints/best.ckpt``: those with the lowest validation error, or the last
    ones; None: the last ones where fewer than five structures validate and the rate decays, the best ones otherwise."""
    patience: PositiveInt | None = None
    """Validations without improvement before the run stops early."""
    device: str = "auto"
    """Where the model is: auto, cpu, cuda, gpu, ..."""
    devices: PositiveInt = 1
    """On this node."""
    nodes: PositiveInt = 1
    """Machines; start with torchrun or srun."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the weights; positions, cells and sums over atoms are float64 always."""
    threads: int | None = Field(None, gt=0, le=1024)
    """Of torch; None: as torch and OMP_NUM_THREADS have it. 1 is best where other work has the cores."""
    products: Literal["float32", "tf32", "bf16"] = "float32"
    """Matrix products while training: tf32 (GPUs only) and bf16 are faster and less exact; validation uses float32, or
    tf32. Weights, sums, geometry keep their precision."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged for one optimiser step: batches beyond what memory holds."""
    loggers: list[str] = Field(default_factory=list)
    """Where losses and errors go besides metrics.csv: tensorboard, wandb, mlflow, or names that others register."""
    tensorboard: bool = False
    """The same as tensorboard among the loggers; older configurations have it."""


class FineTuneSection(Section):
    """Starting from a trained potential; the architecture and its options come from there."""

    run: str | None = None
    """Run folder, checkpoint or ``builtin:NAME``; None: start from random weights."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters that stay as they are: patterns such as ``edges.*``, ``layers.0``, ``*.radial.*``."""
    learning_rates: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Factors of the learning rate by pattern; the last that matches counts."""
    refit_references: bool = True
    """Move the energy references to the zero of energy of the new data; false: keep the run's."""
    extend_species: bool = False
    """Allow species that the run does not know: they start as the mean of the known ones."""
    lora: PositiveInt | None = None
    """Rank of updates of the linear maps, the only ones that are trained then; None: the weights themselves are."""
    replay: PositiveInt | str | None = None
    """Against forgetting: structures on which the run's own energies and forces are kept, a file, or how many displaced
    copies of the training structures."""
    replay_weight: PositiveFloat = 1.0
    """Factor of the loss on them."""
    replay_batch: PositiveInt = 2
    """How many of them a step looks at."""

    @model_validator(mode="after")
    def _has_a_run(self) -> FineTuneSection:
        fields = type(self).model_fields
        for key in (name for name in fields if name != "run"):
            if self.run is None and getattr(self, key) != fields[key].get_default(call_default_factory=True):
                raise InputError(
                    "there is nothing to fine-tune", key=f"finetune.{key}", hint="give --from RUN"
                )
        for key in ("replay_weight", "replay_batch"):
            if self.replay is None and getattr(self, key) != fields[key].default:
                raise InputError(
                    "nothing is replayed",
                    key=f"finetune.{key}",
                    hint="give finetune.replay, a file or a number",
                )
        return self


class RecipeSection(Section):
    """The training recipe: it fills in whatever is not given of optimiser, schedule, losses, averaging."""

    name: str = DEFAULT_RECIPE
    """default, finetune (what a run with --from has where none is named), mace-torch, nequip, or one that another
    package registers."""
    version: PositiveInt | None = None
    """None: the newest. A run's ``config.yaml`` has the one that it used."""
    filled: list[str] = Field(default_factory=list)
    """Which options came from it; written by the run."""

    @model_validator(mode="after")
    def _is_known(self) -> RecipeSection:
        get_recipe(self.name, self.version)
        return self


class RunConfig(Section):
    """All of a run."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Of the weights, the order of structures, the validation split, displacements and samples."""
    recipe: RecipeSection = RecipeSection()
    model: ModelSection = ModelSection()
    potential: PotentialSection = PotentialSection()
    data: DataSection = DataSection()
    loss: LossSection = LossSection()
    weak: WeakConfig = WeakConfig()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    trainer: TrainerSection = TrainerSection()
    finetune: FineTuneSection = FineTuneSection()

    _stated: frozenset[str] | None = PrivateAttr(default=None)

    @property
    def stated(self) -> frozenset[str] | None:
        """Dotted keys of what the user gave, beside what a run wrote; None: nobody noted it."""
        return self._stated

    def note_stated(self, keys: Iterable[str] | None) -> RunConfig:
        """Take these keys as those that the user gave; returns itself."""
        self._stated = None if keys is None else frozenset(keys)
        return self

    def __eq__(self, other: object) -> bool:
        """Whether all options are equal, whoever gave them."""
        return isinstance(other, RunConfig) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _bf16_is_for_float32(self) -> RunConfig:
        if self.trainer.products == "bf16" and self.trainer.dtype != "float32":
            raise InputError(
                "products in bf16 are for weights in float32", key="trainer.products", hint="--dtype float32"
            )
        return self

    @model_validator(mode="after")
    def _built_in_data_need_fewer_steps(self) -> RunConfig:
        if "max_steps" not in self.trainer.model_fields_set and self.data.train.startswith("builtin:"):
            self.trainer = self.trainer.model_copy(update={"max_steps": BUILTIN_STEPS})
        return self


def load_config(
    file: Path | None,
    settings: Sequence[tuple[str, Any]] = (),
    *,
    complete: bool = False,
    onto: Path | None = None,
) -> RunConfig:
    """Read a YAML file and apply single settings on top.

    Args:
        file: ``run.yaml``; None: the defaults.
        settings: (dotted key, value), later ones win.
        complete: the file was written by a run; what is fine-tuned need not be looked up again.
        onto: the configuration of a run, complete, that the file and the settings change.

    Returns:
        The configuration; it knows what was stated here, see :meth:`RunConfig.stated`.

    Raises:
        InputError: for a file that cannot be read, an unknown key (with the nearest one), a value that is not allowed.
    """
    content = {} if file is None else _read_table(file)
    by_user = {} if _written_by_run(content) else content
    stated = {key for name, value in [*by_user.items(), *settings] for key in _keys(name, value)}
    if onto is not None:
        content, complete = merge_tables(_read_table(onto), content), True
    content = _with_recipe(content)
    if onto is None and _names_another_recipe(content, dict(settings)):
        content = _without_filled(content)
    for key, value in settings:
        if key == "recipe.name":
            content["recipe"] = {}  # the version, and what was filled in, are those of another one
        if key == "model.name":
            content["model"] = _without_preset_of_another(content, value)
        _insert(content, key, value)
    section = content.get("finetune")
    if not complete and isinstance(section, dict) and isinstance(section.get("run"), str):
        section["run"] = _with_architecture(section["run"], content.get("model"))
        content = inherit_options(content, section["run"])
        if not (isinstance(content.get("data"), dict) and "train" in content["data"]):
            raise InputError("fine-tuning needs data", file=file, key="data.train", hint="give --data")
    try:
        return RunConfig.model_validate(content).note_stated(stated)
    except ValidationError as error:
        raise _explain(error, file) from error


def _written_by_run(content: Mapping[str, Any]) -> bool:
    """Whether a table is a complete configuration; those of earlier versions lack the recipe."""
    return set(RunConfig.model_fields) - set(content) <= {"recipe"}


def _keys(key: str, value: Any) -> Iterator[str]:
    """Dotted keys of the single values in a table that stands under a key."""
    if not isinstance(value, Mapping):
        yield key
        return
    for name, inner in value.items():
        yield from _keys(f"{key}.{name}", inner)


def _without_preset_of_another(content: Mapping[str, Any], name: object) -> Any:
    """The section of the model without the preset that a recipe chose for another architecture."""
    model, recipe = content.get("model"), content.get("recipe")
    filled = (recipe.get("filled") if isinstance(recipe, dict) else None) or ()
    if not isinstance(model, dict) or model.get("name") == name or "model.preset" not in filled:
        return model or {}
    return {key: value for key, value in model.items() if key != "preset"}


def _names_another_recipe(content: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether settings name another recipe, or another version, than the table of a run does."""
    recipe = content.get("recipe")
    if not isinstance(recipe, dict) or not recipe.get("filled"):
        return False
    return any(
        settings.get(f"recipe.{key}", recipe.get(key)) != recipe.get(key) for key in ("name", "version")
    )


def _without_filled(content: Mapping[str, Any]) -> dict[str, Any]:
    """A table without what its recipe filled in, nor what is as usual in the sections that recipes are about.

    The architecture stays, whose options stand beside its preset.
    """
    left: dict[str, Any] = copy.deepcopy(dict(content))
    for key in content["recipe"]["filled"]:
        section, *path = key.split(".")
        place = left.get(section) if section != "model" else None
        for name in path[:-1]:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(path[-1], None)
    usual = RunConfig().model_dump()
    for section in ("optimizer", "schedule", "loss"):
        left[section] = _differing(left.get(section), usual[section])
    left["recipe"] = {"name": content["recipe"].get("name")}
    return left


def _differing(table: Any, usual: Any) -> Any:
    """What in a table is not as usual."""
    if not (isinstance(table, dict) and isinstance(usual, dict)):
        return table
    inner = {
        key: _differing(value, usual.get(key)) for key, value in table.items() if value != usual.get(key)
    }
    return {key: value for key, value in inner.items() if value != {}}


def _with_architecture(run: str, model: object) -> str:
    """A potential that comes with the package in the architecture that was chosen; any other run as it is."""
    chosen = model.get("name") if isinstance(model, dict) else None
    return full_name(run, chosen if isinstance(chosen, str) else None) if is_shipped(run) else run


def restored(content: Mapping[str, Any]) -> RunConfig:
    """The configuration that a checkpoint holds.

    Raises:
        InputError: or pydantic's ``ValidationError``, when it is of a version that this one cannot read.
    """
    return RunConfig.model_validate(_with_recipe(content))


def _with_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """A complete configuration, as runs write it, without a recipe has the values of the first version.

    One that does not say which weights it keeps is from before there was a choice.
    """
    content, whole = dict(content), _written_by_run(content)
    if whole and "recipe" not in content:
        content["recipe"] = {"name": DEFAULT_RECIPE, "version": 1}
    if whole and isinstance(content["trainer"], dict):
        content["trainer"] = {"keep": "best", **content["trainer"]}
    return content


def _read_table(file: Path) -> dict[str, Any]:
    content = read_yaml(file) or {}
    if not isinstance(content, dict):
        raise InputError("not a table of keys and values", file=file)
    return content


def save_config(config: RunConfig, file: Path) -> None:
    """Write the complete configuration as YAML."""
    with replacing(file) as temporary:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        temporary.write_text(text)


def check_once(options: Sequence[tuple[str, Any]]) -> None:
    """Refuse two values for one option: whichever counted, the other would be passed over.

    Args:
        options: (dotted key, value), as the user gave them in one command.

    Raises:
        InputError: naming both values.
    """
    given: dict[str, Any] = {}
    for key, value in options:
        first = given.setdefault(key, value)
        if first != value:
            raise InputError(f"is given twice: {first} and {value}", key=key, hint="leave one of them")
    for key in given:
        if part := next((other for other in given if other.startswith(f"{key}.")), None):
            raise InputError(f"is given twice: as a whole and as {part}", key=key, hint="leave one of them")


def parse_settings(settings: Sequence[str]) -> list[tuple[str, Any]]:
    """``key=value`` strings, the values read as YAML; a table of a whole section stands for its keys.

    Raises:
        InputError: for one without ``=``, and for what only runs write.
    """
    result: list[tuple[str, Any]] = []
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise InputError(f"--set {setting}", hint="write --set key=value, such as optimizer.lr=0.01")
        result += _keys_of(key.strip(), _number(parse_yaml(value, key=key.strip())))
    for key, _ in result:
        if key.startswith("recipe.filled"):
            raise InputError("is written by runs", key=key, hint="leave it out")
    return result


def _keys_of(key: str, value: Any) -> list[tuple[str, Any]]:
    """Put in the place of a section, a table would take away what a file, a run or another option says of it."""
    names = value if isinstance(value, dict) and key in RunConfig.model_fields else {}
    if not names or not all(isinstance(name, str) and "." not in name for name in names):
        return [(key, value)]
    return [(f"{key}.{name}", _number(inner)) for name, inner in names.items()]


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as a string; nobody means that."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _insert(content: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place = content
    for name in parents:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{name} is a single value", key=key, hint="it has no keys of its own")
        place = inner
    place[last] = value


def _explain(error: ValidationError, file: Path | None) -> InputError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(path[-1], fields_at(RunConfig, path[:-1]))
        return InputError("no such option", file=file, key=".".join(path), hint=hint)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    # What may be one word or several values is a union: the branch that says which words there are says most.
    told = next(
        (e for e in error.errors() if e["type"] == "literal_error" and isinstance(e["input"], str)), first
    )
    named = told is not first or any(part.startswith(("literal[", "list[", "dict[")) for part in path)
    if named:
        path = [str(part) for part in first["loc"] if "[" not in str(part)]
    return InputError(f"{told['msg']}, got {told['input']!r}", file=file, key=".".join(path))


def fields_at(section: Any, path: Sequence[str]) -> list[str]:
    """The options that a section of a configuration has, given the keys that lead there from another."""
    for name in path:
        if name in section.model_fields:
            annotation = section.model_fields[name].annotation
            sections = [a for a in (annotation, *typing.get_args(annotation)) if hasattr(a, "model_fields")]
            section = sections[0]  # of dict[str, Section] and Section | None it is the Section
    return list(section.model_fields)


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """A YAML value as the type that a dataclass field is annotated with.

    Raises:
        InputError: when it is not of that type.
    """
    if number_given_as_truth(value, hint):
        raise InputError(f"{str(value).lower()} is no number", key=key)
    if number_too_large(value, hint):
        raise InputError(f"{str(value)[:30]} is too large", key=key)
    try:
        return TypeAdapter(hint, config=ConfigDict(strict=False)).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{error.errors()[0]['msg']}, got {value!r}", key=key) from error
