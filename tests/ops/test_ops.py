"""Every kernel against its meaning: the dense weight and PyTorch's own operations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from regrow.ops import batch_last, is_batch_last, sparse_conv2d, sparse_linear
from regrow.ops.blocking import Blocking
from regrow.ops.conv2d import cpu
from regrow.ops.conv2d.reference import conv2d as conv2d_reference
from regrow.ops.layout import allocate_batch_last, release_memory
from regrow.ops.linear.reference import linear as linear_reference
from regrow.ops.native import kernels
from regrow.ops.pattern import Geometry, Pattern

pytest.importorskip("regrow._kernels")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@dataclass(frozen=True)
class Case:
    """One convolution; the geometry is (stride, padding, dilation, groups)."""

    batch: int
    channels: int
    outputs: int
    plane: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    geometry: Geometry = Geometry(padding=(1, 1))  # noqa: RUF009 - a named tuple, immutable
    density: float = 0.3


CASES = {
    "one sample": Case(1, 3, 4, (5, 5)),
    "one of all": Case(1, 1, 1, (1, 1), (1, 1), Geometry()),
    "odd": Case(33, 17, 19, (7, 9)),
    "batch 7": Case(7, 3, 17, (4, 4)),
    "batch 16": Case(16, 17, 3, (8, 8)),
    "batch 63": Case(63, 3, 5, (2, 2)),
    "batch 100": Case(100, 64, 32, (8, 8)),
    "several blocks": Case(16, 70, 40, (5, 6), density=0.1),
    "very sparse": Case(33, 70, 40, (6, 6), density=0.004),
    "stride": Case(20, 6, 9, (9, 8), geometry=Geometry(stride=(2, 2), padding=(1, 1))),
    "uneven stride": Case(20, 6, 9, (10, 11), (3, 5), Geometry(stride=(3, 2), padding=(0, 2))),
    "stride beyond the kernel": Case(7, 4, 8, (6, 7), (1, 1), Geometry(stride=(2, 3))),
    "dilation": Case(16, 5, 6, (11, 9), geometry=Geometry(padding=(2, 1), dilation=(2, 3))),
    "stride and dilation": Case(9, 5, 6, (12, 13), geometry=Geometry((2, 3), (2, 1), (3, 2))),
    "groups": Case(17, 12, 8, (6, 6), geometry=Geometry(padding=(1, 1), groups=4)),
    "depthwise": Case(17, 40, 40, (6, 6), geometry=Geometry(padding=(1, 1), groups=40)),
    "all together": Case(33, 6, 9, (9, 8), geometry=Geometry((2, 1), (1, 2), (1, 2), 3)),
    "no padding": Case(17, 8, 8, (7, 7), geometry=Geometry()),
    "padding beyond the kernel": Case(5, 2, 3, (3, 3), geometry=Geometry(padding=(4, 3))),
    "one row": Case(33, 17, 9, (1, 30), (1, 3), Geometry(padding=(0, 1))),
    "four positions": Case(35, 17, 19, (2, 2)),
    "one position": Case(100, 12, 8, (1, 1)),
    "four positions in groups": Case(64, 12, 8, (2, 2), (2, 3), Geometry((2, 1), (1, 2), (1, 2), 4)),
    "from four positions to one": Case(
        33, 70, 40, (2, 2), geometry=Geometry(stride=(2, 2), padding=(1, 1)), density=0.1
    ),
    "a line of positions": Case(130, 6, 9, (1, 4), (1, 3), Geometry(padding=(0, 1))),
    "large kernel": Case(16, 3, 4, (12, 12), (11, 11), Geometry(stride=(4, 4), padding=(2, 2))),
}


def random_pattern(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Pattern:
    return Pattern.of_mask(torch.rand(shape, generator=generator) < density)


def operands(case: Case, pattern: Pattern | None = None) -> tuple[Tensor, Tensor, Tensor, Pattern]:
    generator = torch.Generator().manual_seed(1)
    if pattern is None:
        shape = (case.outputs, case.channels // case.geometry.groups, *case.kernel)
        pattern = random_pattern(shape, case.density, generator)
    return (
        torch.randn(case.batch, case.channels, *case.plane, generator=generator).requires_grad_(),
        torch.randn(pattern.nonzeros, generator=generator).requires_grad_(),
        torch.randn(case.outputs, generator=generator).requires_grad_(),
        pattern,
    )


def compare(output: Tensor, expected: Tensor, inputs: list[Tensor], scale: float) -> None:
    """Compare an output and all gradients with those of a float64 reference on the same leaves."""
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    # What the kernels write goes into memory full of NaN: whatever they leave out shows.
    actual = torch.autograd.grad(output, inputs, gradient)
    wanted = torch.autograd.grad(expected, inputs, gradient.double())
    for a, b in zip((output, *actual), (expected, *wanted), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-6 * scale)


def convolve_both(case: Case, pattern: Pattern | None = None) -> None:
    x, values, bias, pattern = operands(case, pattern)
    output = sparse_conv2d(x, values, bias, pattern, *case.geometry)
    expected = conv2d_reference(x.double(), values.double(), bias.double(), pattern, case.geometry)
    assert output.shape == expected.shape
    assert is_batch_last(output)
    compare(output, expected, [x, values, bias], scale=math.sqrt(output.numel()))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("name", CASES)
def test_convolution_is_the_dense_one(name: str) -> None:
    convolve_both(CASES[name])


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("blocking", [Blocking(1000, True), Blocking(3, True), Blocking(3, False)])
@pytest.mark.parametrize("batch", [35, 64, 100, 130, 300])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.batch < 35])
def test_either_driver_gives_the_dense_one(
    name: str, batch: int, blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.ops.pattern.choose_blocking", lambda *_, **__: blocking)
    convolve_both(replace(CASES[name], batch=batch))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("batch", [1, 7, 16, 33, 63, 100])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 17), (17, 3), (130, 70)])
def test_linear_is_the_dense_one(batch: int, inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = random_pattern((outputs, inputs), 0.3, generator)
    x = torch.randn(batch, inputs, generator=generator).requires_grad_()
    values = torch.randn(pattern.nonzeros, generator=generator).requires_grad_()
    bias = torch.randn(outputs, generator=generator).requires_grad_()
    output = sparse_linear(x, values, bias, pattern)
    assert is_batch_last(output)
    compare(
        output,
        linear_reference(x.double(), values.double(), bias.double(), pattern),
        [x, values, bias],
        scale=math.sqrt(output.numel()),
    )


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("batch", "plane"), [(16, 2), (33, 2), (20, 1), (16, 5)])
def test_convolution_with_more_threads_than_tiles(
    batch: int, plane: int, stride: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.ops.pattern.choose_blocking", lambda *_, **__: Blocking(5, False))
    # Few nonzeros: some rows have none in the blocks of a share.
    geometry = Geometry(stride=(stride, stride), padding=(1, 1))
    case = Case(batch, 24, 20, (plane, plane), geometry=geometry, density=0.05)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        convolve_both(case)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("batch", [16, 70, 128])
def test_linear_with_threads_that_share_rows(threads: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = random_pattern((40, 4000), 0.01, generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for way in (pattern, random_pattern((4000, 40), 0.01, generator)):
            x = torch.randn(batch, way.shape[1], generator=generator).requires_grad_()
            values = torch.randn(way.nonzeros, generator=generator).requires_grad_()
            output = sparse_linear(x, values, None, way)
            expected = linear_reference(x.double(), values.double(), None, way)
            compare(output, expected, [x, values], scale=math.sqrt(output.numel()))
    finally:
        torch.set_num_threads(before)


def test_linear_takes_any_number_of_leading_dimensions() -> None:
    pattern = random_pattern((5, 9), 0.5, torch.Generator().manual_seed(0))
    values = torch.randn(pattern.nonzeros)
    for shape in [(9,), (4, 9), (2, 3, 9), (2, 1, 3, 9)]:
        x = torch.randn(shape)
        torch.testing.assert_close(sparse_linear(x, values, None, pattern), linear_reference(x, values, None, pattern))


@pytest.mark.parametrize("plane", [(6, 7), (1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_inputs_have_their_layout(layout: torch.memory_format, plane: tuple[int, int]) -> None:
    x, values, bias, pattern = operands(Case(70, 6, 5, plane))
    for each in (x.detach().contiguous(memory_format=layout), batch_last(x.detach())):
        each = each.requires_grad_()
        output = sparse_conv2d(each, values, bias, pattern, padding=(1, 1))
        (gradient,) = torch.autograd.grad(output, each, torch.ones_like(output))
        assert is_batch_last(gradient) if is_batch_last(each) else gradient.is_contiguous(memory_format=layout)
        expected = conv2d_reference(x.double(), values.double(), bias.double(), pattern, Geometry(padding=(1, 1)))
        (right,) = torch.autograd.grad(expected, x, torch.ones_like(expected))
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [4, 9, 12, 27, 36])
def test_linear_on_tokens_keeps_them_in_rows_but_within_a_perceptron(outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = random_pattern((outputs, 9), 0.5, generator)
    values = torch.randn(pattern.nonzeros, generator=generator).requires_grad_()
    rows = torch.randn(2, 5, 9, generator=generator)
    columns = batch_last(rows.flatten(0, 1)).view(2, 5, 9)
    for x, of_rows in ((rows, True), (columns, False)):
        x = x.detach().requires_grad_()
        output = sparse_linear(x, values, None, pattern)
        assert output.is_contiguous() == (outputs in (4, 9, 27))
        expected = linear_reference(x.double(), values.double(), None, pattern)
        compare(output, expected, [x, values], scale=math.sqrt(output.numel()))
        x.grad = None
        (gradient,) = torch.autograd.grad(sparse_linear(x * 1, values, None, pattern).square().sum(), x)
        assert gradient.is_contiguous() == of_rows


SHAPE = (6, 20, 3, 3)


def special_masks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    empty_rows = torch.rand(SHAPE, generator=generator) < 0.2
    empty_rows[::2] = False
    full_rows = torch.rand(SHAPE, generator=generator) < 0.2
    full_rows[1::2] = True
    one = torch.zeros(SHAPE, dtype=torch.bool)
    one[3, 17, 2, 0] = True
    return {
        "empty rows": empty_rows,
        "full rows": full_rows,
        "one weight": one,
        "none": torch.zeros(SHAPE, dtype=torch.bool),
        "all": torch.ones(SHAPE, dtype=torch.bool),
    }


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("name", special_masks())
def test_special_patterns(name: str) -> None:
    convolve_both(Case(33, 20, 6, (5, 6)), Pattern.of_mask(special_masks()[name]))


@pytest.mark.parametrize("case", [Case(17, 6, 5, (6, 7)), Case(16, 6, 5, (4, 8))])
def test_any_layout_of_the_input_gives_the_same(case: Case) -> None:
    x, values, bias, pattern = operands(case)
    x = x.detach()
    wide = torch.randn(*case.plane, case.batch, 2 * case.channels)
    layouts = {
        "contiguous": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "batch last": batch_last(x),
        "slice": wide.permute(2, 3, 0, 1)[:, ::2].copy_(x),
        "transposed plane": x.transpose(2, 3).contiguous().transpose(2, 3),
    }
    expected = sparse_conv2d(layouts.pop("contiguous"), values, bias, pattern, *case.geometry)
    for layout in layouts.values():
        actual = sparse_conv2d(layout, values, bias, pattern, *case.geometry)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_batch_last_input_is_not_copied() -> None:
    x = torch.randn(8, 3, 4, 5)
    once = batch_last(x)
    assert once.stride() == (1, 160, 40, 8)
    assert batch_last(once) is once
    torch.testing.assert_close(once, x, rtol=0, atol=0)


def test_strided_values_bias_and_output_gradient() -> None:
    x, values, bias, pattern = operands(CASES["odd"])
    apart = [torch.stack([tensor.detach()] * 2, 1)[:, 0] for tensor in (values, bias)]
    expected = sparse_conv2d(x, values, bias, pattern, padding=(1, 1))
    torch.testing.assert_close(sparse_conv2d(x, *apart, pattern, padding=(1, 1)), expected, rtol=0, atol=0)
    # The gradient of a sum is one number seen from everywhere: all strides are zero.
    (one,) = torch.autograd.grad(expected.sum(), x)
    (wanted,) = torch.autograd.grad(conv2d_reference(x, values, bias, pattern, CASES["odd"].geometry).sum(), x)
    torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("plane", [8, 9])
@pytest.mark.parametrize("sweep", [False, True])
def test_what_is_not_finite_passes_as_in_dense(
    sweep: bool, plane: int, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.ops.pattern.choose_blocking", lambda *_, **__: Blocking(16, sweep))
    case = Case(35, 20, 6, (plane, plane))
    x, values, bias, pattern = operands(case, Pattern.of_mask(torch.ones(SHAPE, dtype=torch.bool)))
    with torch.no_grad():
        x[4, 3, 2, 5] = bad
        x[32, 7, 7, 7] = bad
    output = sparse_conv2d(x, values, bias, pattern, *case.geometry)
    expected = conv2d_reference(x, values, bias, pattern, case.geometry)
    gradient = torch.randn(expected.shape)
    actual = torch.autograd.grad(output, [x, values, bias], gradient)
    wanted = torch.autograd.grad(expected, [x, values, bias], gradient)
    for a, b in zip((output, *actual), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_equal_inputs_give_equal_bits(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, values, bias, pattern = operands(CASES["batch 100"])

        def run() -> tuple[Tensor, ...]:
            output = sparse_conv2d(x, values, bias, pattern, padding=(1, 1))
            return output, *torch.autograd.grad(output, [x, values, bias], torch.ones_like(output))

        first = run()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
        convolve_both(CASES["odd"])
    finally:
        torch.set_num_threads(before)


def test_gradcheck() -> None:
    x, values, bias, pattern = operands(Case(3, 2, 3, (4, 5), geometry=Geometry((2, 1), (1, 1))))

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse_conv2d(x, values, bias, pattern, (2, 1), (1, 1))

    # Linear in each argument, so a wide step costs no accuracy, and float32 is enough.
    with pytest.warns(UserWarning, match="double precision"):
        assert torch.autograd.gradcheck(function, (x, values, bias), eps=0.1, atol=1e-3, rtol=1e-3)


def test_float64_takes_the_reference() -> None:
    x, values, bias, pattern = (
        tensor.detach().double().requires_grad_() if isinstance(tensor, Tensor) else tensor
        for tensor in operands(Case(2, 2, 3, (4, 4)))
    )
    assert isinstance(pattern, Pattern)
    assert torch.autograd.gradcheck(lambda *inputs: sparse_conv2d(*inputs, pattern, padding=(1, 1)), (x, values, bias))


def test_double_backward_is_refused() -> None:
    x, values, bias, pattern = operands(CASES["odd"])
    output = sparse_conv2d(x, values, bias, pattern, padding=(1, 1))
    x_gradient, values_gradient = torch.autograd.grad(output.square().sum(), [x, values], create_graph=True)
    for gradient in (x_gradient, values_gradient):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            gradient.sum().backward(retain_graph=True)


@pytest.mark.parametrize("frozen", ["x", "values", "bias"])
def test_frozen_inputs_get_no_gradient(frozen: str) -> None:
    x, values, bias, pattern = operands(CASES["odd"])
    leaves = {"x": x, "values": values, "bias": bias}
    leaves[frozen].requires_grad_(False)
    sparse_conv2d(x, values, bias, pattern, padding=(1, 1)).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


@pytest.mark.parametrize("name", ["odd", "stride"])
def test_operators_keep_the_rules_of_torch_library(name: str) -> None:
    # opcheck compares what is written only: it cannot bear memory full of NaN.
    torch.use_deterministic_algorithms(False)
    case = CASES[name]
    x, values, bias, pattern = operands(case)
    geometry = [*case.geometry.stride, *case.geometry.padding, *case.geometry.dilation, case.geometry.groups]
    index, transposed = list(pattern.forward_blocks(case.geometry)), list(pattern.transposed_blocks(case.geometry))
    shape = list(pattern.shape)
    others = (index, transposed, shape, geometry)
    torch.library.opcheck(cpu.operator, (x, values, bias, *others))
    output = sparse_conv2d(x, values, bias, pattern, *case.geometry).detach()
    for wanted in ([True, True, True], [False, True, False], [True, False, True]):
        torch.library.opcheck(
            cpu.gradient_operator, (output, x.detach(), values.detach(), *others, list(x.shape), wanted)
        )


@pytest.mark.parametrize("name", ["odd", "all together", "one sample"])
def test_operators_give_what_direct_calls_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    x, values, bias, pattern = operands(case)

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse_conv2d(x, values, bias, pattern, *case.geometry)

    direct = _with_gradients(function, [x, values, bias])
    monkeypatch.setattr(cpu, "direct", lambda *_: False)
    by_operators = _with_gradients(function, [x, values, bias])
    assert all(torch.equal(a, b) for a, b in zip(direct, by_operators, strict=True))
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(function(x, values, bias).square().sum(), x, create_graph=True)[0].sum().backward()


def test_compiled_without_graph_break() -> None:
    x, values, bias, pattern = operands(CASES["odd"])
    pattern.forward_blocks(CASES["odd"].geometry)
    pattern.transposed_blocks(CASES["odd"].geometry)

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse_conv2d(x.sin(), values, bias, pattern, padding=(1, 1)).relu()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(
        _with_gradients(compiled, [x, values, bias]), _with_gradients(function, [x, values, bias]), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def _with_gradients(function: object, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    assert callable(function)
    output = function(*inputs)
    return output, *torch.autograd.grad(output.sum(), inputs)


def test_exported() -> None:
    pattern = random_pattern((5, 9), 0.5, torch.Generator().manual_seed(0))

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = torch.nn.Parameter(torch.randn(pattern.nonzeros))
            self.pattern = pattern

        def forward(self, x: Tensor) -> Tensor:
            return sparse_linear(x, self.values, None, self.pattern)

    layer, x = Layer().requires_grad_(False), torch.randn(4, 9)
    expected = layer(x)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)


def test_errors_name_the_shapes() -> None:
    x, values, bias, pattern = operands(CASES["odd"])
    with pytest.raises(ValueError, match="do not fit"):
        sparse_conv2d(x[:, :5], values, bias, pattern)
    with pytest.raises(ValueError, match="weights exist"):
        sparse_conv2d(x, values[1:], bias, pattern)
    with pytest.raises(ValueError, match="biases"):
        sparse_conv2d(x, values, bias[1:], pattern)
    with pytest.raises(ValueError, match="does not fit"):
        sparse_linear(torch.randn(3, 4), values, None, pattern)
    with pytest.raises(ValueError, match="at least 1"):
        sparse_conv2d(x, values, bias, pattern, stride=(0, 1))
    with pytest.raises(ValueError, match="no kernels"):
        kernels().use_instruction_set("abacus")


def test_memory_of_large_outputs_is_used_again() -> None:
    first = allocate_batch_last((64, 16, 32, 32))
    address = first.data_ptr()
    assert is_batch_last(first)
    kept = first[:, 3]
    del first
    assert allocate_batch_last((64, 16, 32, 32)).data_ptr() != address, "a view keeps the memory"
    del kept
    assert allocate_batch_last((64, 16, 32, 32)).data_ptr() == address
    assert release_memory() > 0
    assert release_memory() == 0
