"""What has no public name in torch is used in few places, with a reason beside each, and does what is asked of it."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pimlip_zoo
from pimlip_zoo.compiled.kernels.dispatch import _plain
from pimlip_zoo.compiled.sweeps.block import joined, parted

ROOT = Path(pimlip_zoo.__file__).parent
KNOWN = {
    "compiled/kernels/dispatch.py": {
        "torch._C._get_tracing_state",
        "torch._C._len_torch_dispatch_stack",
        "torch._C._functorch.peek_interpreter_stack",
    },
    "compiled/exact.py": {"._apply"},
    "compiled/kernels/edges.py": {"torch._assert_async", "._version"},
    "compiled/kernels/linear.py": {"._version"},
    "compiled/kernels/polynomial/operation.py": {"torch._assert_async"},
    "compiled/native/record.py": {
        "torch.utils._python_dispatch",
        "torch.utils._pytree",
        "._cdata",
        "._schema",
    },
    "compiled/sweeps/block.py": {
        "torch._C._nn.flatten_dense_tensors",
        "torch._C._nn.unflatten_dense_tensors",
        "._parameters",
    },
    "compiled/sweeps/derivatives.py": {"._version"},
    "compiled/sweeps/tracer.py": {"._modules"},
    "deploy/aot.py": {"torch._inductor", "torch._inductor.package.package"},
    "deploy/torchscript.py": {"torch._C.BoolType.get", "._c", "._register_attribute"},
    "training/callbacks.py": {"torch._foreach_lerp_"},
    "training/muon.py": {"torch._foreach_lerp_"},
    "training/replay.py": {"._load_from_state_dict"},
}
PRIVATE = re.compile(r"torch(\.\w+)*\._[a-zA-Z]")
SCRIPTED = torch.jit.script(torch.nn.Identity())
KINDS = (
    torch.Tensor,
    torch.nn.Module(),
    torch.optim.Optimizer,
    torch.autograd.Function,
    torch.autograd.graph.Node,
    torch.Generator,
    torch.UntypedStorage,
    torch.ops.aten.add.Tensor,
    SCRIPTED,
    SCRIPTED._c,
)
OF_OBJECTS = {name for kind in KINDS for name in dir(kind) if re.match(r"_[a-zA-Z]", name)}
"""What torch's objects have that has no public name."""
REASON = re.compile(r"#(?! noqa| type:)\s*\w")


def private_names(text: str) -> dict[str, list[int]]:
    """Lines of dotted names below torch with a part that begins with an underscore, and of its objects' ``x._name``."""
    found: dict[str, list[int]] = {}
    tree, inner = ast.parse(text), set()
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and PRIVATE.match(node.module or ""):
            found.setdefault(node.module, []).append(node.lineno)
        if not isinstance(node, ast.Attribute) or node in inner:
            continue
        if PRIVATE.match(ast.unparse(node)):
            inner.update(each for each in ast.walk(node) if each is not node)
            found.setdefault(ast.unparse(node), []).append(node.lineno)
        elif node.attr in OF_OBJECTS and not (ast.unparse(node.value) == "self" and node.attr in own):
            found.setdefault(f".{node.attr}", []).append(node.lineno)
    return found


PLACES = {
    path.relative_to(ROOT).as_posix(): names
    for path in sorted(ROOT.rglob("*.py"))
    if (names := private_names(path.read_text()))
}


def test_the_places_are_known():
    assert {place: set(names) for place, names in PLACES.items()} == KNOWN


@pytest.mark.parametrize("place", KNOWN)
def test_a_reason_stands_beside_each_name(place):
    lines = (ROOT / place).read_text().splitlines()
    for name, numbers in PLACES[place].items():
        if any(f"def {name[1:]}(" in line for line in lines):
            continue  # a hook that torch calls: its docstring says what for
        first = min(numbers)
        assert any(REASON.search(line) for line in lines[max(0, first - 4) : first]), (
            f"{place}:{first} {name}"
        )


def test_private_names_of_torch_s_objects_are_seen_and_those_of_a_class_s_own_methods_are_not():
    assert set(private_names("x._version + self.net._parameters['a']")) == {"._version", "._parameters"}
    assert set(private_names("y = torch._C._nn.gelu(x)")) == {"torch._C._nn.gelu"}
    assert not private_names(
        "class A:\n def _values(self): ...\n def f(self): return self._values(self._mine)"
    )


def test_a_tensor_s_version_counts_what_is_written_into_it():
    x = torch.zeros(3)
    before = x._version
    x[0] = 1.0
    assert x._version > before
    before = x._version
    _ = x + 1.0
    assert x._version == before


def test_a_plain_tensor_is_told_from_one_that_somebody_traces_or_transforms():
    x, seen = torch.ones(3), []

    def look(t):
        seen.append(_plain(t))
        return t * 2

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    look(x)
    assert seen == [True]
    torch.jit.trace(look, x, check_trace=False)
    torch.func.vmap(look)(x.unsqueeze(0))
    torch.func.grad(lambda t: look(t).sum())(x)
    with Mode():
        look(x)
    with torch._subclasses.FakeTensorMode():
        look(torch.ones(3))
    assert len(seen) > 5
    assert not any(seen[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_are_joined_and_parted_in_their_order(dtype):
    parts = [torch.randn(2, 3, dtype=dtype), torch.randn(0, dtype=dtype), torch.randn(4, 1, 2, dtype=dtype)]
    flat = joined(parts)
    assert torch.equal(flat, torch.cat([part.reshape(-1) for part in parts]))
    for part, again in zip(parts, parted(flat, parts), strict=True):
        assert torch.equal(part, again)


def test_an_assertion_that_does_not_wait_still_fails():
    torch._assert_async(torch.tensor(True), "fine")
    with pytest.raises(RuntimeError, match="not fine"):
        torch._assert_async(torch.tensor(False), "not fine")


def test_averages_move_together_as_one_by_one():
    parts = [torch.randn(3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)]
    targets = [torch.randn_like(part) for part in parts]
    expected = [part.lerp(target, 0.25) for part, target in zip(parts, targets, strict=True)]
    torch._foreach_lerp_(parts, targets, 0.25)
    for part, each in zip(parts, expected, strict=True):
        assert torch.equal(part, each)
