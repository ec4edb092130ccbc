"""What a SevenNet model is made of, from its options: irreps, paths and the numbers of weights that follow.

The weights in a checkpoint are flat, in the order in which that package loops over irreps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e3nn import o3
from torch import Tensor

from pimlip_zoo.errors import InputError

_MOST_LAYERS, _LARGEST_L, _MOST_CHANNELS = 32, 8, 1 << 16


@dataclass(frozen=True)
class Layer:
    """One interaction block."""

    irreps_in: o3.Irreps
    """Features that come in, in the order of the file."""
    irreps_out: o3.Irreps
    """Features that go out."""
    gated: o3.Irreps
    """What the gate takes: scalars and gates of one kind together, then the other irreps."""
    paths: tuple[tuple[o3.Irrep, int, o3.Irrep], ...]
    """(irrep of the feature, degree of the harmonic, irrep of the result), in the order of that package's loops."""
    summed: o3.Irreps
    """What the convolution makes: each irrep once, copies in the order of the paths that end there."""

    def width(self, irrep: o3.Irrep) -> int:
        """Channels of an irrep that comes in."""
        return copies(self.irreps_in, irrep)


@dataclass(frozen=True)
class Layout:
    """All of a model."""

    species: tuple[str, ...]
    l_max: int
    reflections: bool
    layers: tuple[Layer, ...]
    levels: tuple[str, ...]
    """Levels of theory (modalities), in the order of their one-hot; none: a single one without a name."""

    @property
    def scalars(self) -> int:
        """Channels of degree 0 at the beginning."""
        return int(self.layers[0].irreps_in.dim)


def read_layout(config: Mapping[str, Any], species: Sequence[str], levels: Sequence[str]) -> Layout:
    """The layout that the options of a checkpoint describe.

    Raises:
        InputError: for options that are not supported.
    """
    count, l_max = _integer(config, "num_convolution_layer"), _integer(config, "lmax")
    edge, node = (_integer(config, name, -1) for name in ("lmax_edge", "lmax_node"))
    if not 1 <= count <= _MOST_LAYERS or not 0 <= l_max <= _LARGEST_L:
        raise InputError(f"has {count} layers and degrees up to {l_max}, which cannot be converted")
    if edge not in (-1, 0, l_max) or node not in (-1, 0, l_max):
        raise InputError(
            f"has harmonics up to degree {edge} and features up to {node}", hint="both have to be lmax"
        )
    reflections = bool(config.get("is_parity", True))
    sign = -1 if reflections else 1
    harmonics = [o3.Irrep(degree, sign**degree) for degree in range(l_max + 1)]
    given = config.get("irreps_manual")
    wanted = _irreps(given, count) if given else None
    channels = _integer(config, "channel")
    here = wanted[0] if wanted else o3.Irreps(f"{channels}x0e")
    if len(here) != 1 or here[0].ir != o3.Irrep("0e"):
        raise InputError(f"begins with the features {here}", hint="only scalars (0e) can be converted")
    layers = []
    for index in range(count):
        last = index == count - 1
        highest = wanted[index + 1].lmax if wanted else 0 if last else l_max
        reached = _reached(here, harmonics, highest, even=last)
        there = wanted[index + 1] if wanted else o3.Irreps([(channels, irrep) for irrep in reached])
        layers.append(_layer(here, there, harmonics, reached))
        here = there
    return Layout(tuple(species), l_max, reflections, tuple(layers), tuple(levels))


def _layer(
    here: o3.Irreps, there: o3.Irreps, harmonics: Sequence[o3.Irrep], reached: Sequence[o3.Irrep]
) -> Layer:
    for irreps in (here, there):
        if len({irrep for _, irrep in irreps}) != len(irreps):
            raise InputError(f"has the features {irreps}, with an irrep that is named twice")
    scalars = [(n, irrep) for n, irrep in there if irrep.l == 0]
    others = [(n, irrep) for n, irrep in there if irrep.l > 0]
    gate = o3.Irrep("0e") if any(irrep == o3.Irrep("0e") for _, irrep in scalars) else o3.Irrep("0o")
    gates = [(n, gate) for n, _ in others]
    gated = o3.Irreps([*scalars, *gates, *others]).sort().irreps.simplify()
    paths = tuple(
        (irrep, degree, result)
        for _, irrep in here
        for degree, harmonic in enumerate(harmonics)
        for result in irrep * harmonic
        if result in reached
    )
    summed = o3.Irreps([(copies(here, irrep), result) for irrep, _, result in paths]).sort().irreps.simplify()
    return Layer(here, there, gated, paths, summed)


def _reached(
    here: o3.Irreps, harmonics: Sequence[o3.Irrep], l_max: int, *, even: bool
) -> tuple[o3.Irrep, ...]:
    """All irreps up to a degree that a product of features and harmonics has, in e3nn's order."""
    found = {result for _, irrep in here for harmonic in harmonics for result in irrep * harmonic}
    return tuple(sorted(irrep for irrep in found if irrep.l <= l_max and (not even or irrep.p == 1)))


def copies(irreps: o3.Irreps, irrep: o3.Irrep) -> int:
    """How often an irrep occurs."""
    return sum(int(n) for n, each in irreps if each == irrep)


def _irreps(given: Any, count: int) -> list[o3.Irreps]:
    if not isinstance(given, list | tuple) or len(given) != count + 1:
        raise InputError(f"has irreps_manual for another number of layers than {count}")
    found = []
    for text in given:
        try:
            irreps = o3.Irreps(str(text)[:200])
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise InputError(f"has the features {str(text)[:40]!r}, which are no irreps") from error
        if any(n < 1 or n > _MOST_CHANNELS or irrep.l > _LARGEST_L for n, irrep in irreps) or not len(irreps):
            raise InputError(f"has the features {str(text)[:40]!r}, which cannot be converted")
        if list(irreps) != list(irreps.sort().irreps):
            raise InputError(
                f"has the features {str(text)[:80]}",
                hint=f"only the order of e3nn can be converted: {str(irreps.sort().irreps)[:80]}",
            )
        found.append(irreps)
    return found


def _integer(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if isinstance(value, (Tensor, bool)) or not isinstance(value, int):
        raise InputError(f"has no whole number {name} in its options")
    return value
