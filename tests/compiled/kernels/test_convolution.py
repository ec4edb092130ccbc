"""Every backend of the convolution is e3nn's tensor product and a sum over edges, in every derivative."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pimlip_zoo.compiled.kernels import available_backends, build, dispatch, use_kernels
from pimlip_zoo.compiled.kernels.convolution import cpu
from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.convolution import Convolution, convolution_spec
from pimlip_zoo.nn.linear import irrep_slices

needs_compiler = pytest.mark.compiler
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_compiler)])

IRREPS = ["0e", "0o + 1e", "0e + 1o", "1o", "0e + 1o + 2e", "0e + 0o + 1o + 1e"]


def edges(nodes: int, count: int, generator: torch.Generator) -> Tensor:
    if nodes == 0:
        return torch.zeros((2, 0), dtype=torch.int64)
    index = torch.randint(nodes, (2, count), generator=generator)
    return torch.stack([index[0].sort().values, index[1]])


def operands(module: Convolution, nodes: int, count: int, channels: int, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    index = edges(nodes, count, generator)
    count = index.shape[1]
    shapes = [
        (nodes, module.spec.irreps_in.dim, channels),
        (count, module.spec.irreps_edge.dim),
        (count, module.num_paths, channels),
    ]
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t.requires_grad_() for t in made], index


def e3nn_convolution(module: Convolution, channels: int):
    """The same by e3nn: TensorProduct, index_add, and its features brought into our layout."""
    spec = module.spec
    irreps_in = o3.Irreps([(channels, ir) for _, ir in spec.irreps_in])
    irreps_mid = o3.Irreps([(channels, ir) for _, _, ir in spec.paths])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn bakes its coefficients in the default dtype
    try:
        product = o3.TensorProduct(
            irreps_in,
            spec.irreps_edge,
            irreps_mid,
            [(i, j, k, "uvu", True) for k, (i, j, _) in enumerate(spec.paths)],
            shared_weights=False,
            internal_weights=False,
        )
    finally:
        torch.set_default_dtype(before)
    where = {ir: (start, copies) for ir, start, copies in irrep_slices(spec.irreps_out)}

    def run(x: Tensor, y: Tensor, w: Tensor, index: Tensor) -> Tensor:
        blocks = [x[:, s].transpose(1, 2).flatten(1) for s in spec.irreps_in.slices()]
        message = product(torch.cat(blocks, 1)[index[1]], y, w.flatten(1))
        total = torch.zeros(len(x), irreps_mid.dim, dtype=x.dtype).index_add(0, index[0], message)
        columns: dict[int, Tensor] = {}
        seen: dict[o3.Irrep, int] = {}
        for (_, _, ir), part in zip(spec.paths, irreps_mid.slices(), strict=True):
            copy = seen[ir] = seen.get(ir, -1) + 1
            block = total[:, part].view(len(x), channels, ir.dim)
            start, copies = where[ir]
            for m in range(ir.dim):
                columns[start + m * copies + copy] = block[:, :, m]
        return torch.stack([columns[k] for k in range(len(columns))], 1)

    return run


def sweeps(function, tensors, index, seed: int = 1) -> list[Tensor]:
    """Result, first derivatives, and the derivatives of a random combination of those."""
    generator = torch.Generator().manual_seed(seed)
    like = lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)  # noqa: E731
    out = function(*tensors, index)
    g = like(out).requires_grad_()
    first = torch.autograd.grad(out, tensors, g, create_graph=True)
    scalar = sum((f * like(f)).sum() for f in first) + (out * like(out)).sum()
    return [out, *first, *torch.autograd.grad(scalar, [*tensors, g])]


def assert_close(left: list[Tensor], right: list[Tensor], tolerance: float) -> None:
    for place, (a, b) in enumerate(zip(left, right, strict=True)):
        assert a.shape == b.shape
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        error = float((a - b).detach().abs().max()) if b.numel() else 0.0
        assert error <= tolerance * max(1.0, scale), f"sweep {place}: {error} of {scale}"


@backends
@settings(max_examples=8, deadline=None)
@given(
    irreps=st.sampled_from(IRREPS),
    l_edge=st.integers(0, 2),
    targets=st.sampled_from(IRREPS),
    nodes=st.integers(1, 9),
    count=st.integers(0, 40),
    channels=st.sampled_from([1, 3, 8, 21]),
    seed=st.integers(0, 99),
)
def test_equals_e3nn_in_all_derivatives(backend, irreps, l_edge, targets, nodes, count, channels, seed):
    spec = convolution_spec(o3.Irreps(irreps), o3.Irreps.spherical_harmonics(l_edge), o3.Irreps(targets))
    if not spec.paths:
        return
    module = Convolution(spec)
    tensors, index = operands(module, nodes, count, channels, seed=seed)
    with use_kernels(backend):
        ours = sweeps(module, tensors, index)
    assert_close(ours, sweeps(e3nn_convolution(module, channels), tensors, index), 1e-10)


def full(l_max: int = 2) -> Convolution:
    irreps = o3.Irreps.spherical_harmonics(l_max)
    return Convolution(convolution_spec(irreps, irreps, irreps))


@backends
@pytest.mark.parametrize(("nodes", "count"), [(0, 0), (1, 0), (1, 5), (5, 1), (3, 100)])
def test_any_number_of_atoms_and_edges(backend, nodes, count):
    module = full()
    tensors, index = operands(module, nodes, count, 16)
    with use_kernels(backend):
        ours = sweeps(module, tensors, index)
    with use_kernels("reference"):
        assert_close(ours, sweeps(module, tensors, index), 1e-10)
    assert ours[0].shape == (nodes, module.irreps_out.dim, 16)


@needs_compiler
@pytest.mark.parametrize("channels", [32, 7])
def test_float32_kernels_are_as_exact_as_float32_is(channels):
    module = full()
    tensors, index = operands(module, 6, 60, channels)
    exact = sweeps(module, tensors, index)
    single, _ = operands(module, 6, 60, channels, dtype=torch.float32)
    with use_kernels("cpu"):
        ours = sweeps(module, single, index)
    assert all(t.dtype == torch.float32 for t in ours)
    assert_close([t.double() for t in ours], exact, 2e-6)


@needs_compiler
def test_degree_three_with_many_paths():
    module = full(3)
    tensors, index = operands(module, 4, 20, 4)
    with use_kernels("cpu"):
        ours = sweeps(module, tensors, index)
    with use_kernels("reference"):
        assert_close(ours, sweeps(module, tensors, index), 1e-10)


@needs_compiler
def test_result_does_not_depend_on_threads():
    module = full()
    tensors, index = operands(module, 60, 1500, 16)
    before = torch.get_num_threads()
    try:
        with use_kernels("cpu"):
            torch.set_num_threads(1)
            one = sweeps(module, tensors, index)
            torch.set_num_threads(3)
            three = sweeps(module, tensors, index)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, three, strict=True):
        assert torch.equal(a, b)


@needs_compiler
def test_gradgradcheck_and_third_derivatives():
    module = full(1)
    tensors, index = operands(module, 3, 6, 2)
    with use_kernels("cpu"):
        assert torch.autograd.gradcheck(lambda *t: module(*t, index), tensors)
        assert torch.autograd.gradgradcheck(lambda *t: module(*t, index), tensors)

        def third(backend):
            with use_kernels(backend):
                out = (module(*tensors, index) ** 2).sum()
                for _ in range(2):
                    out = sum((g**2).sum() for g in torch.autograd.grad(out, tensors, create_graph=True))
                return list(torch.autograd.grad(out, tensors))

        assert_close(third("cpu"), third("reference"), 1e-10)


@needs_compiler
@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_some_derivatives_are_asked_for(asked):
    module = full(1)
    tensors, index = operands(module, 4, 12, 8)

    def run(backend):
        with use_kernels(backend):
            inputs = [t if i in asked else t.detach() for i, t in enumerate(tensors)]
            chosen = [inputs[i] for i in asked]
            out = module(*inputs, index)
            first = torch.autograd.grad((out**2).sum(), chosen, create_graph=True)
            return [*first, *torch.autograd.grad(sum((f**2).sum() for f in first), chosen)]

    assert_close(run("cpu"), run("reference"), 1e-10)


@needs_compiler
def test_edges_in_any_order_and_strided_operands():
    module = full()
    tensors, index = operands(module, 5, 33, 6)
    shuffle = torch.randperm(33, generator=torch.Generator().manual_seed(5))
    strided = [t.detach().transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    with use_kernels("cpu"):
        expected = module(*tensors, index)
        assert_close(
            [module(strided[0], strided[1][shuffle], strided[2][shuffle], index[:, shuffle])],
            [expected],
            1e-12,
        )


@needs_compiler
def test_an_edge_to_an_atom_that_is_not_there_is_an_error():
    module = full(1)
    tensors, index = operands(module, 4, 8, 2)
    index[1, 3] = 4
    with use_kernels("cpu"), pytest.raises(IndexError, match="atom 4 of 4"):
        module(*tensors, index)


@needs_compiler
def test_a_changed_edge_index_is_not_served_from_memory():
    module = full(1)
    tensors, index = operands(module, 4, 8, 2)
    with use_kernels("cpu"):
        module(*tensors, index)
        index[1] = (index[1] + 1) % 4
        ours = module(*tensors, index)
    with use_kernels("reference"):
        assert_close([ours], [module(*tensors, index)], 1e-12)


def test_scripted_traced_and_exported_take_the_reference():
    module = full(1)
    tensors, index = operands(module, 4, 8, 2)
    tensors = [t.detach() for t in tensors]
    expected = module(*tensors, index)
    assert_close([torch.jit.script(module)(*tensors, index)], [expected], 1e-12)
    exported = torch.export.export(module, (*tensors, index)).module()
    assert_close([exported(*tensors, index)], [expected], 1e-12)


def test_cast_to_float32_and_back_is_exact():
    module = full()
    tensors, index = operands(module, 4, 8, 2)
    with use_kernels("reference"):
        expected = module(*tensors, index)
        assert_close([module.to(torch.float32).to(torch.float64)(*tensors, index)], [expected], 1e-14)


def test_without_a_compiler_the_reference_runs_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_failed", [])
    monkeypatch.setenv("CC", "no-such-compiler")
    for cached in (build.compiler, cpu.cpu_convolution):
        cached.cache_clear()
    try:
        module = full(1)
        tensors, index = operands(module, 4, 8, 5)
        first, second = module(*tensors, index), module(*tensors, index)
        assert len([r for r in caplog.records if "no-such-compiler" in r.message]) == 1
        assert not available_backends()["cpu"].startswith("available")
        with use_kernels("cpu"), pytest.raises(InputError, match="no-such-compiler"):
            module(*tensors, index)
    finally:
        build.compiler.cache_clear()
    with use_kernels("reference"):
        assert_close([first, second], [module(*tensors, index)] * 2, 1e-12)


@needs_compiler
def test_processes_that_build_the_same_kernel_at_once(tmp_path):
    code = (
        "import torch\n"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_convolution import full, operands\n"
        "from pimlip_zoo.compiled.kernels import use_kernels\n"
        "m = full(1); t, i = operands(m, 4, 9, 3)\n"
        "with use_kernels('cpu'): print(m(*t, i).sum().item())\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {run.communicate(timeout=120)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(answers) == 1
    left = sorted((tmp_path / "pimlip-zoo" / "kernels").iterdir())
    assert {path.suffix for path in left} == {".so"}


def test_names_of_backends_are_checked(monkeypatch):
    with pytest.raises(InputError, match="did you mean cpu"), use_kernels("cpuu"):
        pass
    monkeypatch.setenv("PIMLIP_ZOO_KERNELS", "cuek")
    with pytest.raises(InputError, match="PIMLIP_ZOO_KERNELS"):
        dispatch.chosen_backend()
    monkeypatch.setenv("PIMLIP_ZOO_KERNELS", "reference")
    assert dispatch.chosen_backend() == "reference"
    assert set(available_backends()) == set(dispatch.BACKENDS) - {"auto"}


def test_another_thread_has_its_own_choice_of_a_backend():
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    together = Barrier(2)

    def choose(name):
        with use_kernels(name):
            together.wait(10)  # both are inside
            found = [dispatch.chosen_backend()]
        together.wait(10)
        return [*found, dispatch.chosen_backend()]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(choose, ["reference", "auto"])
    assert first == ["reference", "auto"]
    assert second == ["auto", "auto"]
