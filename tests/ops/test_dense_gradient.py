"""The gradient of all positions of a convolution's weight, against autograd in double precision."""

import pytest
import torch
import torch.nn.functional as F

from regrow.ops import dense_gradient
from regrow.ops.dense_gradient import conv2d_dense
from regrow.ops.layout import batch_last
from regrow.ops.pattern import Geometry

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Small planes, whose gradient is put together from products of matrices: shape of the input, outputs, kernel.
SMALL = {
    "square": ((5, 3, 4, 4), 4, (3, 3), Geometry(padding=(1, 1))),
    "many outputs": ((7, 3, 2, 2), 150, (3, 3), Geometry(padding=(1, 1))),
    "uneven": ((3, 2, 5, 7), 5, (3, 5), Geometry(padding=(2, 0), dilation=(2, 1))),
    "taps that read padding alone": ((4, 2, 2, 2), 3, (5, 5), Geometry(padding=(4, 4))),
    "one position": ((4, 2, 1, 1), 3, (3, 3), Geometry(padding=(1, 1))),
    "no padding": ((4, 2, 5, 5), 3, (3, 3), Geometry(dilation=(1, 2))),
    "beyond the kernel": ((4, 2, 2, 3), 3, (3, 3), Geometry(padding=(3, 4))),
    "one tap": ((4, 6, 3, 3), 5, (1, 1), Geometry()),
}
OTHERS = {
    "large": ((3, 4, 9, 8), 5, (3, 3), Geometry(padding=(1, 1))),
    "strided": ((3, 4, 6, 6), 5, (3, 3), Geometry((2, 1), (1, 1))),
    "grouped": ((3, 4, 4, 4), 6, (3, 3), Geometry(padding=(1, 1), groups=2)),
    "no sample": ((0, 4, 4, 4), 6, (3, 3), Geometry(padding=(1, 1))),
}
LAYOUTS = {"batch last": batch_last, "contiguous": torch.Tensor.contiguous}


def draw(case):
    shape, outputs, kernel, geometry = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(outputs, shape[1] // geometry.groups, *kernel, generator=generator, dtype=torch.float64)
    output = F.conv2d(x.double(), weight.requires_grad_(), None, *geometry)
    given = torch.randn(output.shape, generator=generator)
    output.backward(given.double())
    return x, given, weight


@pytest.mark.parametrize("parts", [1 << 20, 50])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", SMALL | OTHERS)
def test_it_is_that_of_autograd(name, layout, parts, monkeypatch):
    monkeypatch.setattr(dense_gradient, "_MADE", parts)
    case = (SMALL | OTHERS)[name]
    x, given, weight = draw(case)
    found = conv2d_dense(layout(x), layout(given), weight.shape, case[3])
    torch.testing.assert_close(found.double(), weight.grad.flatten(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["square", "many outputs", "one position", "one tap"])
def test_sums_of_half_precision_are_single(name):
    shape, outputs, kernel, geometry = SMALL[name]
    x, given, weight = draw(SMALL[name])
    x, given = batch_last(x).bfloat16(), batch_last(given).bfloat16()
    weight = torch.zeros(outputs, shape[1], *kernel, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), weight, None, *geometry).backward(given.double())
    found = conv2d_dense(x, given, weight.shape, geometry, torch.float32)
    torch.testing.assert_close(found.double(), weight.grad.flatten(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SMALL | OTHERS)
def test_small_planes_take_products_of_matrices(name, monkeypatch):
    called = []
    monkeypatch.setattr(dense_gradient, "_by_taps", lambda *given: called.append(given))
    case = (SMALL | OTHERS)[name]
    x, given, weight = draw(case)
    conv2d_dense(batch_last(x), batch_last(given), weight.shape, case[3])
    assert bool(called) is (name in SMALL)
