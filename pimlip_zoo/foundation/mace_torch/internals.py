"""Numbers beside the weights that the layers of a recorded model compute with, and that no option of it shows.

``mace-torch`` derives them from its options when it builds a model; a file in which they were changed computes
something else than its weights and options say.
"""

from __future__ import annotations

from typing import Any

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.mace_torch.options import heads_of, plain
from pimlip_zoo.foundation.unpickle import Record
from pimlip_zoo.models.mace import MACEConfig
from pimlip_zoo.models.mace_nonlinear import MACENonlinearConfig


def check_internals(record: Record, config: MACEConfig | MACENonlinearConfig) -> None:
    """Compare them with what this package computes with; files of older versions lack some, which are not compared.

    Raises:
        InputError: naming the first that differs.
    """
    expect(record, "radial_embedding.apply_cutoff", not isinstance(config, MACENonlinearConfig))
    heads = len(heads_of(record))
    for n in range(len(record["readouts"])):
        expect(record, f"readouts.{n}.num_heads", heads)
    for n in range(config.num_interactions):
        if isinstance(config, MACENonlinearConfig):
            _check_gate(record, f"interactions.{n}.equivariant_nonlin", config)
            continue
        expect(record, f"products.{n}.use_agnostic_product", expected=False)
        for network in ("conv_tp_weights", "density_fn"):
            _check_network(record, f"interactions.{n}.{network}")


def _check_network(record: Record, place: str) -> None:
    """An MLP of e3nn divides its weights by the square root of their number, and activations by their moment."""
    network = record[place]
    for name in network.children if isinstance(network, Record) else ():
        weight = record[f"{place}.{name}.weight"]
        if weight is None:
            continue
        for attribute, value in (("h_in", weight.shape[0]), ("var_in", 1), ("var_out", 1)):
            expect(record, f"{place}.{name}.{attribute}", value)


def _check_gate(record: Record, place: str, config: MACENonlinearConfig) -> None:
    """Which part of its features is what: scalars, a gate for each of the others, and these by their degree."""
    channels, l_max = config.channels, config.l_max
    first = channels * (1 + l_max)
    gated = [
        (first + channels * (degree**2 - 1), channels * (2 * degree + 1), 2 * degree + 1, channels, offset)
        for degree, offset in zip(range(1, l_max + 1), range(0, channels * l_max, channels), strict=True)
    ]
    for attribute, value in (
        ("_s_start", 0),
        ("_s_len", channels),
        ("_g_start", channels if l_max else 0),
        ("_g_len", channels * l_max),
        ("_layout_is_ir_mul", False),
        ("_gated_info", gated),
    ):
        expect(record, f"{place}.{attribute}", value)


def expect(record: Record, path: str, expected: Any) -> None:
    """Refuse another value at a path than the expected one; there may be none.

    Raises:
        InputError: with both.
    """
    found = record[path]
    if found is None:
        return
    if type(expected) is list and isinstance(found, list):
        found = [tuple(item) if isinstance(item, list) else item for item in found]
    if type(found) not in (type(expected), float) or found != expected:
        raise InputError(f"{path} is {plain(found)}, and {plain(expected)} here")
