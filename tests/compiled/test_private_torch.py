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
    "compiled/kernels/edges.py": {"torch._assert_async"},
    "compiled/kernels/polynomial/operation.py": {"torch._assert_async"},
    "compiled/native/record.py": {"torch.utils._python_dispatch", "torch.utils._pytree"},
    "compiled/sweeps/block.py": {
        "torch._C._nn.flatten_dense_tensors",
        "torch._C._nn.unflatten_dense_tensors",
    },
    "deploy/aot.py": {"torch._inductor", "torch._inductor.package.package"},
    "deploy/torchscript.py": {"torch._C.BoolType.get"},
    "training/callbacks.py": {"torch._foreach_lerp_"},
    "training/muon.py": {"torch._foreach_lerp_"},
}
PRIVATE = re.compile(r"torch(\.\w+)*\._[a-zA-Z]")


def private_names(path: Path) -> set[str]:
    """Dotted names below torch with a part that begins with an underscore."""
    found, inner = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and PRIVATE.match(node.module or ""):
            found.add(node.module)
        if isinstance(node, ast.Attribute) and node not in inner:
            inner.update(each for each in ast.walk(node) if each is not node)
            if PRIVATE.match(ast.unparse(node)):
                found.add(ast.unparse(node))
    return found


def test_the_places_are_known():
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in sorted(ROOT.rglob("*.py"))
        if (names := private_names(path))
    }
    assert found == KNOWN


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
