"""What an architecture is: a module that turns a graph into one energy per atom."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.electrons import FixedElectrons, StateEmbedding
from pimlip_zoo.nn.elements import atomic_numbers

_SHORTEST = 1e-3
"""Å; the square of a much smaller cutoff is no number any more."""

_SIGNS = {
    "greater than or equal to": "a number >=",
    "less than or equal to": "a number <=",
    "greater than": "a number >",
    "less than": "a number <",
}

ForceHead = Literal["conservative", "direct"]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Widths = tuple[Count, ...]
"""Of the hidden layers of a perceptron."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The options that every architecture has; an architecture's own config derives from it."""

    cutoff: float = 5.0
    """Å: no edge longer than this reaches the model."""
    avg_num_neighbors: PositiveNumber | None = None
    """Mean number of neighbours, the scale of sums over them; None: taken from the training data."""
    force_head: ForceHead = "conservative"
    """Forces as ``-dE/dr`` or from a head of their own."""
    embed_charge: bool = False
    """Let charge and multiplicity of a structure enter: for sets with ions, radicals, excited spin states."""

    def __post_init__(self) -> None:
        _check_types(self)
        self._require("cutoff", _SHORTEST < self.cutoff < math.inf, f"a length > {_SHORTEST} in Å")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        """Refuse an option's value unless something holds; types take care of what concerns one option alone."""
        if not holds:
            raise InputError(f"{name} is {getattr(self, name)!r}", key=name, hint=f"give {allowed}")

    def _require_vectors(self, l_max: int) -> None:
        """Refuse a direct force head for features without any vectors."""
        if self.force_head == "direct" and l_max < 1:
            raise InputError(
                "a direct force head needs vectors, and l_max 0 has none", key="l_max", hint="give l_max >= 1"
            )


def _check_types(config: ModelConfig) -> None:
    """Refuse values that are not of the type that their option is annotated with, also in derived classes."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        try:
            TypeAdapter(hints[option.name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Input should be ")
            for words, sign in _SIGNS.items():
                reason = reason.replace(words, sign)
            raise InputError(f"{option.name} is {value!r}", key=option.name, hint=f"give {reason}") from error


class AtomicEnergyModel(nn.Module):
    """Base class of the architectures.

    A subclass implements :meth:`forward`, and :meth:`energies_and_forces` when it offers a direct head.
    It knows nothing of forces as derivatives, energy references, data, training or export. To be exported to
    TorchScript its :meth:`forward` has to be scriptable.

    Args:
        config: the architecture's options.
        species: chemical symbols; ``graph.species`` holds indices into them.
    """

    __jit_unused_properties__ = ("dtype", "electrons_are_open")

    interaction_depth = 1
    """How many cutoffs away an atom can still matter: 1 for a strictly local model, T for T message
    passing layers. A deployed model's halo follows from it."""

    can_embed_charge: ClassVar[bool] = False
    """Whether the architecture does something with ``config.embed_charge``."""

    readout_modules: ClassVar[tuple[str, ...]] = ()
    """Names of the submodules that turn features into energies and forces: what a second level of theory gets anew."""

    def __init__(self, config: ModelConfig, species: Sequence[str]) -> None:
        super().__init__()
        if not species:
            raise InputError("a model needs at least one species", key="species")
        atomic_numbers(species)  # refuses what is no element
        twice = sorted(symbol for symbol, count in Counter(species).items() if count > 1)
        if twice:
            raise InputError(f"{', '.join(twice)} is named twice", key="species", hint="name each once")
        if config.embed_charge and not self.can_embed_charge:
            raise InputError(
                f"{type(self).__name__} does not embed charge and multiplicity",
                key="model.embed_charge",
                hint="use nequip, mace, mace-nonlinear or allegro",
            )
        self.config = config
        self.species = tuple(species)
        self.cutoff = float(config.cutoff)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """One energy per atom.

        Args:
            graph: the structure(s); geometry must enter through ``vectors`` alone, so that forces, virial and
                displaced copies all follow from them.
            vectors: (E, 3) Å, ``edge_vectors(graph)`` in the dtype of the model's parameters.

        Returns:
            (N,) in units of the potential's scale; the potential multiplies and adds the references.
        """
        raise NotImplementedError

    def energies_and_forces(self, graph: AtomGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N,) and directly predicted forces (N, 3), for ``force_head="direct"``."""
        raise InputError(
            f"{type(self).__name__} offers no direct force head", key="force_head", hint="use conservative"
        )

    @classmethod
    def least_weights(cls, config: ModelConfig, species: Sequence[str]) -> int:  # noqa: ARG003
        """A model of these options has no fewer weights than this, computed without building it.

        A file that holds fewer is refused before anything of the size that it asks for is made. 0 unless a subclass
        says otherwise: then a file is believed.

        Args:
            config: the architecture's options.
            species: chemical symbols.
        """
        return 0

    @classmethod
    def seconds_to_build(cls, config: ModelConfig) -> float:  # noqa: ARG003
        """How long it takes on one core, about, whatever the widths are: for the couplings of its layers.

        A small file that asks for minutes is refused. 0 unless a subclass says otherwise: then a file is believed.

        Args:
            config: the architecture's options.
        """
        return 0.0

    def species_factor(self, name: str) -> float:
        """What :meth:`forward` multiplies a parameter by, as far as that depends on the number of species.

        Needed when a trained model gets more species: the known ones must not change. 1 unless a subclass says
        otherwise.

        Args:
            name: of the parameter, as in ``named_parameters``.
        """
        return 1.0

    def fix_electrons(self, charge: int, multiplicity: int) -> None:
        """Put one charge and multiplicity in the place of the embedding of any, for good."""
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, StateEmbedding):
                    setattr(parent, name, child.fixed(charge, multiplicity, len(self.species)))

    def fixed_electrons(self) -> dict[str, int]:
        """Charge and multiplicity that :meth:`fix_electrons` put in; empty without."""
        for module in self.modules():
            if isinstance(module, FixedElectrons):
                return {"charge": module.charge, "multiplicity": module.multiplicity}
        return {}

    @property
    def electrons_are_open(self) -> bool:
        """Whether charge and multiplicity of each structure enter."""
        return any(isinstance(module, StateEmbedding) for module in self.modules())

    def check_electrons(self, graph: AtomGraph) -> None:
        """Refuse structures with a charge or multiplicity that the model has no features for.

        Raises:
            InputError: naming the first.
        """
        if graph.electrons is not None:
            for module in self.modules():
                if isinstance(module, StateEmbedding):
                    module.check(graph.electrons)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        for parameter in self.parameters():
            return parameter.dtype
        return torch.get_default_dtype()
