"""Whether a recorded model has the parts that are converted, and no others.

A model computes with every module, parameter and buffer that it has. What is not on these lists would be left out of
the conversion without a word: biases, layers put in between, functions that a module calls before or after its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.mace_torch.couplings import check_couplings
from pimlip_zoo.foundation.mace_torch.options import activation_name, check_attribute, plain
from pimlip_zoo.foundation.unpickle import Named, Record

_CONTRACTION = r"products\.#\.symmetric_contractions\.contractions\.#"
_READOUT = r"(?:readouts\.#|embedding_readout)"
_LINEAR = r"(?:linear_up|linear|linear_1|linear_2|linear_res|source_embedding|target_embedding)"

_E3NN = r"e3nn\.o3\._linear\.Linear"
_TORCH = r"torch\.nn\.modules\."
_BLOCKS, _RADIAL = r"mace\.modules\.blocks\.", r"mace\.modules\.radial\."
_LIST = rf"{_TORCH}container\.ModuleList"
_ACT = r"e3nn\.math\._normalize_activation\.normalize2mom"
_NETWORK = r"interactions\.#\.(?:conv_tp_weights|density_fn)"
_GATE = r"interactions\.#\.equivariant_nonlin"
_PRODUCT = r"e3nn\.o3\._tensor_product\."

_MODULES = {
    r"": r"mace\.modules\.models\.ScaleShiftMACE",
    r"(?:interactions|products|readouts)": _LIST,
    r"node_embedding": rf"{_BLOCKS}LinearNodeEmbeddingBlock",
    r"node_embedding\.linear": _E3NN,
    r"radial_embedding": rf"{_BLOCKS}RadialEmbeddingBlock",
    r"radial_embedding\.bessel_fn": rf"{_RADIAL}BesselBasis",
    r"radial_embedding\.cutoff_fn": rf"{_RADIAL}PolynomialCutoff",
    r"radial_embedding\.distance_transform": rf"{_RADIAL}\w+Transform",
    r"spherical_harmonics": r"e3nn\.o3\._spherical_harmonics\.SphericalHarmonics",
    r"atomic_energies_fn": rf"{_BLOCKS}AtomicEnergiesBlock",
    r"scale_shift": rf"{_BLOCKS}ScaleShiftBlock",
    r"pair_repulsion_fn": rf"{_RADIAL}ZBLBasis",
    r"joint_embedding": r"mace\.modules\.embeddings\.GenericJointEmbedding",
    r"joint_embedding\.embedders": rf"{_TORCH}container\.ModuleDict",
    r"joint_embedding\.embedders\.\w+": rf"{_TORCH}sparse\.Embedding",
    r"joint_embedding\.project": rf"{_TORCH}container\.Sequential",
    r"joint_embedding\.project\.0": rf"{_TORCH}linear\.Linear",
    r"joint_embedding\.project\.1": rf"{_TORCH}activation\.SiLU",
    r"interactions\.#": rf"{_BLOCKS}\w+Block",
    rf"interactions\.#\.{_LINEAR}": _E3NN,
    r"interactions\.#\.skip_tp": rf"{_PRODUCT}_sub\.FullyConnectedTensorProduct|{_E3NN}",
    r"interactions\.#\.conv_tp": rf"{_PRODUCT}_tensor_product\.TensorProduct",
    _NETWORK: rf"e3nn\.nn\._fc\.FullyConnectedNet|{_RADIAL}RadialMLP",
    rf"{_NETWORK}\.layer\d+": r"e3nn\.nn\._fc\._Layer",
    rf"{_NETWORK}\.layer\d+\.act": _ACT,
    rf"{_NETWORK}\.net": rf"{_TORCH}container\.Sequential",
    rf"{_NETWORK}\.net\.#": rf"{_TORCH}(?:linear\.Linear|normalization\.LayerNorm|activation\.SiLU)",
    r"interactions\.#\.reshape": r"mace\.modules\.irreps_tools\.reshape_irreps",
    _GATE: r"mace\.modules\.gate\.GatedEquivariantBlock|e3nn\.nn\._gate\.Gate",
    rf"{_GATE}\.sc": r"e3nn\.nn\._gate\._Sortcut",
    rf"{_GATE}\.sc\.cut": r"e3nn\.nn\._extract\.Extract",
    rf"{_GATE}\.(?:act_scalars|act_gates)": r"e3nn\.nn\._activation\.Activation",
    rf"{_GATE}\.(?:act_scalars|act_gates)\.acts": _LIST,
    rf"{_GATE}\.(?:act_scalars|act_gates)\.acts\.#": _ACT,
    rf"{_GATE}\.mul": rf"{_PRODUCT}_sub\.ElementwiseTensorProduct",
    r"products\.#": rf"{_BLOCKS}EquivariantProductBasisBlock",
    r"products\.#\.linear": _E3NN,
    r"products\.#\.symmetric_contractions": r"mace\.modules\.symmetric_contraction\.SymmetricContraction",
    r"products\.#\.symmetric_contractions\.contractions": _LIST,
    _CONTRACTION: r"mace\.modules\.symmetric_contraction\.Contraction",
    rf"{_CONTRACTION}\.(?:contractions_features|contractions_weighting)": _LIST,
    rf"{_CONTRACTION}\.(?:(?:contractions_features|contractions_weighting)\.#|graph_opt_main)": (
        r"torch\.fx\.graph_module\.reduce_graph_module"
    ),
    rf"{_CONTRACTION}\.weights": rf"{_TORCH}container\.ParameterList",
    _READOUT: rf"{_BLOCKS}(?:Linear|NonLinear|NonLinearBias)ReadoutBlock",
    rf"{_READOUT}\.(?:linear|linear_1|linear_2|linear_mid)": _E3NN,
    rf"{_READOUT}\.non_linearity": r"e3nn\.nn\._activation\.Activation",
    rf"{_READOUT}\.non_linearity\.acts": _LIST,
    rf"{_READOUT}\.non_linearity\.acts\.#": _ACT,
}
"""Which class may be where, with its module: another one may have the same name and another function."""

_TENSORS = (
    r"atomic_numbers|r_max|num_interactions|node_embedding\.linear\.weight|atomic_energies_fn\.atomic_energies",
    r"scale_shift\.(?:scale|shift)",
    r"radial_embedding\.bessel_fn\.(?:bessel_weights|prefactor|r_max)",
    r"radial_embedding\.cutoff_fn\.(?:p|r_max)|radial_embedding\.distance_transform\.(?:a|p|q|covalent_radii)",
    r"pair_repulsion_fn\.(?:c|a_exp|a_prefactor|p|covalent_radii|r_max)",
    rf"interactions\.#\.(?:{_LINEAR}|skip_tp|(?:conv_tp_weights|density_fn)\.layer\d+)\.weight",
    r"interactions\.#\.(?:conv_tp_weights|density_fn)\.net\.#\.(?:weight|bias)",
    r"interactions\.#\.(?:avg_num_neighbors|alpha|beta)",
    rf"{_CONTRACTION}\.(?:U_matrix_\d+|weights_max|weights\.#|weights_\w+_zeroed)|products\.#\.linear\.weight",
    rf"{_READOUT}\.(?:linear|linear_1|linear_2|linear_mid)\.weight",
    r"readouts\.#\.(?:linear_mid|linear_2)\.bias",
    r"joint_embedding\.embedders\.\w+\.weight|joint_embedding\.project\.0\.weight",
    r".+\.output_mask",
)
"""Parameters and buffers that are converted, or compared, or that nothing is computed with."""

_BIASED = "NonLinearBiasReadoutBlock"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLACES = ("_parameters", "_buffers", "_modules")
_METHODS = re.compile(r"__\w+__|_?\w*forward|\w*call_impl|calculate_envelope|_codegen_\w+|_compiled_\w+")
_FUNCTIONS = ("f", "act", "_act_scalar", "_act_gate")
_MOST = 100_000
_KNOWN_METHODS = ("__codegen__",)

_MODULE = [(re.compile(place), re.compile(kind)) for place, kind in _MODULES.items()]
_TENSOR = re.compile("|".join(f"(?:{pattern})" for pattern in _TENSORS))


def check_parts(record: Record, weights: Mapping[str, Tensor]) -> None:
    """Compare the modules and tensors of a model with those that are converted.

    Args:
        record: the ``ScaleShiftMACE``.
        weights: its state dict.

    Raises:
        InputError: naming the first that is of another kind, or is not known at all.
    """
    waiting, seen = [("", record)], 0
    while waiting:
        name, module = waiting.pop()
        seen += 1
        if seen > _MOST:
            raise InputError("has modules that contain each other")
        _check_module(name, module)
        check_couplings(name, module)
        for child, part in module.children.items():
            place = f"{name}.{child}" if name else str(child)
            if part is None:
                continue
            if not isinstance(part, Record):
                raise InputError(f"has a {plain(part)} for its part {place[:80]}")
            waiting.append((place, part))
    _check_tensors(record, weights)
    repulsion = isinstance(record["pair_repulsion_fn"], Record)
    if ("pair_repulsion" in record.attributes) != repulsion:
        has = "has" if repulsion else "has no"
        raise InputError(f"{has} pair_repulsion_fn, and its attribute pair_repulsion says otherwise")
    _check_powers(weights)
    _check_networks(record)


def _check_tensors(record: Record, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        if value.numel() and not _TENSOR.fullmatch(_numbered(name)):
            raise InputError(f"computes with {name[:80]}, which is not known here")
    for n, readout in enumerate(record["readouts"]):
        biases = [name for name in weights if name.startswith(f"readouts.{n}.") and name.endswith(".bias")]
        if readout.name != _BIASED and any(weights[name].numel() for name in biases):
            raise InputError(f"computes with biases of readouts.{n}, which is not known here")


def _numbered(name: str) -> str:
    """A name with # for the numbers of layers that are alike."""
    return name if name.startswith("joint_embedding.project.") else re.sub(r"\.\d+(?=\.|$)", ".#", name)


def _check_module(name: str, module: Record) -> None:
    place = _numbered(name)
    kinds = [kind for pattern, kind in _MODULE if pattern.fullmatch(place)]
    if not kinds:
        raise InputError(f"has a part {name[:80]} ({module.name[:60]}), which is not known here")
    if not any(kind.fullmatch(module.qualified_name) for kind in kinds):
        raise InputError(
            f"has a {module.name[:60]} for {name[:80] or 'the whole'}, which is not known there",
            hint=f"it is of the class {module.qualified_name[:120]}",
        )
    where = f"{name[:80]}." if name else ""
    for hooks in _HOOKS:
        if module.attributes.get(hooks):
            raise InputError(f"calls functions of its own around a part: {where}{hooks}")
    names = [str(key) for place in _PLACES for key in module.place(place)]
    for attribute, count in Counter([*names, *map(str, module.attributes)]).items():
        if count > 1:
            raise InputError(f"has {where}{attribute[:60]} twice, and computes with one of them")
    _check_attributes(where, module)
    if module.name == "Embedding" and (module["max_norm"] is not None):
        raise InputError(f"{where}max_norm is {plain(module['max_norm'])}, and none here")


def _check_attributes(where: str, module: Record) -> None:
    """No function or module among them: Python finds them before the methods and the parts of the same name."""
    for attribute, value in module.attributes.items():
        text = str(attribute)
        hides = _METHODS.fullmatch(text) and text not in _KNOWN_METHODS and value is not None
        if hides or (isinstance(value, Named) and text not in _FUNCTIONS):
            raise InputError(f"has a function of its own in place of a part's: {where}{text[:60]}")
        place = _numbered(f"{where}{text}")
        if isinstance(value, Record) and any(pattern.fullmatch(place) for pattern, _ in _MODULE):
            raise InputError(f"has {where}{text[:60]} as a plain attribute, and not as a part")


def _check_powers(weights: Mapping[str, Tensor]) -> None:
    """The package computes with the whole number below."""
    for name in ("radial_embedding.cutoff_fn.p", "pair_repulsion_fn.p"):
        value = weights.get(name)
        if value is not None and not float(value).is_integer():
            raise InputError(f"{name} is {float(value):g}, which is no whole number")


def _check_networks(record: Record) -> None:
    """Activations between the layers of networks of distances, and none behind the last."""
    for n, layer in enumerate(record["interactions"]):
        for place in ("conv_tp_weights", "density_fn"):
            network = layer[place]
            if not isinstance(network, Record) or network.name != "FullyConnectedNet":
                continue
            for index, linear in enumerate(layers := list(network)):
                activation = linear["act"]
                what = f"interactions.{n}.{place}.layer{index}"
                if index == len(layers) - 1:
                    check_attribute(linear, "act", expected=None)
                elif activation is None or (name := activation_name(activation, what)) != "silu":
                    found = "no activation" if activation is None else f"the activation {name}"
                    raise InputError(f"{what} has {found}", hint="only silu is known there")
    embedding: Any = record["joint_embedding"]
    if isinstance(embedding, Record):
        kinds = [step.name for step in embedding["project"]]
        if kinds != ["Linear", "SiLU"]:
            raise InputError(
                f"joint_embedding.project is {', '.join(kinds)[:80]}", hint="Linear, SiLU is known"
            )
