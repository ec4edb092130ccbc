"""cuEquivariance computes the same forms as plain torch, in every derivative; without a GPU by its own fallback."""

import importlib.util

import pytest
import torch
from e3nn import o3
from test_convolution import assert_close, e3nn_convolution, full, operands, sweeps
from test_polynomial import module_of as polynomial_of
from test_polynomial import operands as polynomial_operands
from test_product import module_of as contraction_of
from test_product import operands as product_operands

from pimlip_zoo.compiled.kernels import available_backends, cueq, use_kernels
from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.convolution import Convolution, convolution_spec

installed = importlib.util.find_spec("cuequivariance_torch") is not None
needs_cueq = pytest.mark.skipif(
    not installed, reason="cuEquivariance is not installed: pip install 'pimlip-zoo[cueq]'"
)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def by(backend, function, tensors, index, dtype=torch.float64):
    moved = [t.detach().to(device, dtype).requires_grad_() for t in tensors]
    with use_kernels(backend):
        return [t.cpu().double() for t in sweeps(function, moved, index.to(device))]


@pytest.fixture
def called(monkeypatch):
    """Which functions of cueq ran."""
    names = []
    for name in ("convolve", "multiply_edges", "contract"):
        function = getattr(cueq, name)
        monkeypatch.setattr(cueq, name, lambda *a, f=function, n=name: (names.append(n), f(*a))[1])
    return names


@needs_cueq
@pytest.mark.parametrize(
    ("irreps", "targets"), [("0e", "0e + 1o"), ("0e + 1o", "0e + 1o + 2e"), ("0e + 0o + 1o + 1e", "0o + 1e")]
)
@pytest.mark.parametrize("channels", [1, 5])
def test_convolution_equals_e3nn_in_all_derivatives(irreps, targets, channels, called):
    spec = convolution_spec(o3.Irreps(irreps), o3.Irreps("0e + 1o"), o3.Irreps(targets))
    module = Convolution(spec)
    tensors, index = operands(module, 4, 11, channels)
    ours = by("cueq", module.to(device), tensors, index)
    assert_close(ours, sweeps(e3nn_convolution(module, channels), tensors, index), 1e-10)
    assert "convolve" in called


@needs_cueq
def test_convolution_in_float32():
    module = full(1)
    tensors, index = operands(module, 4, 11, 8)
    expected = by("reference", module.to(device), tensors, index)
    assert_close(by("cueq", module, tensors, index, torch.float32), expected, 2e-6)


@needs_cueq
@pytest.mark.parametrize(("nodes", "count", "channels"), [(0, 0, 4), (1, 0, 4), (3, 6, 0)])
def test_nothing_to_compute(nodes, count, channels):
    module = full(1)
    tensors, index = operands(module, nodes, count, channels)
    assert_close(by("cueq", module, tensors, index), by("reference", module, tensors, index), 1e-12)


@needs_cueq
def test_edges_times_environment_equal_plain_torch(called):
    module = contraction_of("0e + 1o", "0e + 1o + 2e", 6, l_max=1).to(device)
    tensors, centre = product_operands(module, 3, 9, 6)
    inputs = [*tensors, module.weights]

    def run(v, a, _, c):
        return module(v, a, c)

    with use_kernels("reference"):
        expected = sweeps(run, [*tensors, module.weights], centre)
    with use_kernels("cueq"):
        ours = sweeps(run, inputs, centre)
    assert_close(ours, expected, 1e-10)
    assert {"multiply_edges", "contract"} <= set(called)


@needs_cueq
@pytest.mark.parametrize("correlation", [1, 3])
def test_symmetric_contraction_equals_plain_torch(correlation, called):
    module = polynomial_of("0e + 1o", "0e + 1o", correlation, 5).to(device)
    x, species = polynomial_operands(module, 7, 5)

    def run(backend):
        with use_kernels(backend):
            inputs = [x.detach().to(device).requires_grad_(), module.weights]
            return sweeps(lambda t, _, s: module(t, s), inputs, species.to(device))

    assert_close(run("cueq"), run("reference"), 1e-11)
    assert "contract" in called


@needs_cueq
def test_a_species_that_is_not_there_is_an_error():
    module = polynomial_of("0e", "0e", 1, 2)
    x, species = polynomial_operands(module, 3, 2)
    with use_kernels("cueq"), pytest.raises(IndexError):
        module(x, species + 3)


@pytest.mark.skipif(installed, reason="cuEquivariance is installed")
def test_without_cuequivariance_its_name_is_refused():
    assert "pip install 'pimlip-zoo[cueq]'" in available_backends()["cueq"]
    with pytest.raises(InputError, match="cueq is not available: not installed"), use_kernels("cueq"):
        pass
