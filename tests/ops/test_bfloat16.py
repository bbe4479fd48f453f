"""Activations of bfloat16: kernels give what they give in float32, rounded once, and no worse than PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_batch_last_ops import SHAPES, WINDOWS, drawn
from test_ops import CASES, Case, operands, random_pattern
from test_unit_kernels import in_units, unit_pattern
from torch import Tensor, nn

import regrow
from regrow.ops import (
    batch_last,
    dropout,
    is_batch_last,
    max_pool2d,
    mean_pool2d,
    normalise,
    sparse_conv2d,
    sparse_linear,
)
from regrow.ops.blocking import Blocking
from regrow.ops.conv2d import cpu
from regrow.ops.conv2d.plan import flat
from regrow.ops.conv2d.reference import dense_weight
from regrow.ops.gradient import weight_gradient_at
from regrow.ops.layout import allocate_batch_last, to_batch_last, to_channels_last, to_rows
from regrow.ops.normalise import cpu as normalise_cpu
from regrow.ops.pattern import Geometry, Pattern
from regrow.ops.pool import cpu as pool_cpu
from regrow.ops.select import as_activation, storage_obstacle

pytest.importorskip("regrow._kernels")
pytestmark = pytest.mark.usefixtures("poisoned_memory")

HALF = torch.bfloat16


def autocast(enabled: bool = True, dtype: torch.dtype = HALF) -> torch.autocast:
    return torch.autocast("cpu", dtype, enabled=enabled)


def rounded_once(function: Callable[..., Tensor], activations: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Compare output and all gradients, bit for bit, with those in float32 of the same numbers.

    Args:
        function: takes activations, then weights.
        activations: given as bfloat16, and as float32.
        weights: given as float32.
    """
    found = []
    for half in (True, False):
        given = [tensor.detach().to(HALF) for tensor in activations]
        given = [tensor if half else tensor.float() for tensor in given]
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (*given, *weights)]
        with autocast(half):
            output = function(*leaves)
        gradient = drawn(*output.shape, seed=9).to(HALF)
        found.append((output, *torch.autograd.grad(output, leaves, gradient if half else gradient.float())))
    assert found[0][0].dtype is HALF
    for number, (actual, expected) in enumerate(zip(*found, strict=True)):
        assert actual.dtype is (torch.float32 if number > len(activations) else HALF)
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=0, equal_nan=True)


def convolution_rounds_once(case: Case, pattern: Pattern | None = None) -> None:
    x, values, bias, pattern = operands(case, pattern)

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        output = sparse_conv2d(x, values, bias, pattern, *case.geometry)
        assert is_batch_last(output)
        return output

    rounded_once(function, [x], [values, bias])


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_convolution_is_that_in_single_precision(name: str, rows: int) -> None:
    if rows == 1:
        convolution_rounds_once(CASES[name])
    else:
        convolution_rounds_once(*in_units(CASES[name], rows))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("blocking", [Blocking(1000, True), Blocking(3, True), Blocking(3, False)])
@pytest.mark.parametrize("batch", [3, 35, 130])
@pytest.mark.parametrize("name", ["odd", "uneven stride", "stride and dilation", "groups", "four positions"])
def test_sums_of_several_blocks_are_rounded_once(
    name: str, batch: int, blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.ops.pattern.choose_blocking", lambda *_, **__: blocking)
    convolution_rounds_once(replace(CASES[name], batch=batch))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("per_block", [1000, 3])
@pytest.mark.parametrize("batch", [3, 35, 130])
@pytest.mark.parametrize("name", ["odd", "uneven stride", "dilation", "groups", "all together", "four positions"])
def test_sums_of_several_blocks_of_units_are_rounded_once(
    name: str, batch: int, per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "regrow.ops.pattern.unit_blocking", lambda every, *_, **__: Blocking(min(every, per_block), True, 4)
    )
    convolution_rounds_once(*in_units(replace(CASES[name], batch=batch), 4))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("batch", [1, 7, 16, 33, 130])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 16), (130, 72), (4000, 40)])
def test_linear_is_that_in_single_precision(batch: int, inputs: int, outputs: int, rows: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (outputs, inputs)
    pattern = unit_pattern(shape, rows, 0.1) if rows > 1 else random_pattern(shape, 0.1, generator)
    weights = [torch.randn(pattern.nonzeros, generator=generator), torch.randn(outputs, generator=generator)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rounded_once(lambda x, values, bias: sparse_linear(x, values, bias, pattern), [drawn(batch, inputs)], weights)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("any_instruction_set")
def test_large_outputs_are_right_around_the_caches() -> None:
    case = Case(128, 8, 64, (36, 36), (1, 1), Geometry())  # 10 MiB and more
    for pattern in (None, unit_pattern((64, 8, 1, 1), 4, 0.3)):
        convolution_rounds_once(case, pattern)
    shape = (128, 8, 66, 66)
    rounded_once(lambda x: normalise(x, relu=True)[0], [drawn(*shape)], [])
    rounded_once(lambda x: max_pool2d(x, (2, 2), (2, 2)), [drawn(*shape)], [])
    rounded_once(lambda x: dropout(x, 0.3, seed=1), [drawn(*shape)], [])


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_normalisation_is_that_in_single_precision(
    shape: tuple[int, ...], training: bool, relu: bool, residual: bool, affine: bool, rate: float
) -> None:
    channels = shape[1]
    given = {} if training else {"mean": drawn(channels, seed=5), "variance": drawn(channels, seed=6).square() + 0.1}

    def function(x: Tensor, *others: Tensor) -> Tensor:
        more, *parameters = others if residual else (None, *others)
        weight, bias = parameters or (None, None)
        output, mean, variance = normalise(x, weight, bias, residual=more, relu=relu, rate=rate, seed=7, **given)
        assert mean.dtype is variance.dtype is torch.float32
        return output

    activations = [drawn(*shape) * 3 + 1, *([drawn(*shape, seed=2)] if residual else [])]
    rounded_once(function, activations, [drawn(channels, seed=3), drawn(channels, seed=4)] if affine else [])


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("batch", [1, 7, 16, 33, 64])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_pools_are_those_in_single_precision(batch: int, window: tuple[tuple[int, int], ...]) -> None:
    for width in (7, 8):
        x = drawn(batch, 3, 6, width).mul(2).round()
        rounded_once(lambda x: max_pool2d(x, *window), [x], [])
        rounded_once(lambda x: mean_pool2d(x, *window), [x], [])
        rounded_once(lambda x: mean_pool2d(x, *window, divisor=5), [x], [])


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("batch", [2, 7, 33])
def test_dropout_drops_the_same(batch: int) -> None:
    rounded_once(lambda x: dropout(x, 0.3, seed=3), [drawn(batch, 3, 5, 7)], [])
    x = batch_last(drawn(batch, 3, 5, 7).to(HALF))
    expected = dropout(x, 0.3, seed=3)
    assert torch.equal(dropout(x, 0.3, seed=3, inplace=True), expected)
    assert torch.equal(x, expected)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 3.39e38, 1e-40, -0.0])
def test_rounding_is_pytorchs(special: float) -> None:
    numbers = torch.cat([drawn(5000) * 10.0 ** torch.arange(-20, 20).repeat(125), torch.tensor([special] * 37)])
    # Halfway between two bfloat16, to either side of it, and with ties to even both ways.
    halfway = (torch.arange(1000, dtype=torch.int32) << 16) + (0x3F80 << 16) + 0x8000
    numbers = torch.cat([numbers, *((halfway + off).view(torch.float32) for off in (-1, 0, 1))])
    x = torch.ones(2, len(numbers), 1, 1, dtype=HALF)
    zero = torch.zeros(len(numbers))
    # (x - 0) * 0 + bias
    output, *_ = normalise(x, zero, numbers, mean=zero, variance=zero + 1)
    expected = numbers.to(HALF).view(1, -1, 1, 1).expand_as(output)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (130, 70), (7, 3, 5, 4), (64, 70, 9, 8), (128, 64, 36, 36)], ids=str)
def test_layouts_are_copied(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = drawn(*shape).to(dtype)
    copied = to_batch_last(x)
    assert is_batch_last(copied)
    assert torch.equal(copied, x)
    rows = to_rows(copied)
    assert rows.is_contiguous()
    assert torch.equal(rows, x)
    if x.dim() == 4:
        last = to_channels_last(copied)
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(last, x)
        assert torch.equal(to_batch_last(last), x)


def test_memory_of_large_outputs_is_used_again() -> None:
    first = allocate_batch_last((64, 16, 32, 32), HALF)
    assert (first.dtype, first.shape) == (HALF, (64, 16, 32, 32))
    assert is_batch_last(first)
    address = first.data_ptr()
    del first
    assert allocate_batch_last((64, 8, 32, 32)).data_ptr() == address


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("one of all", "very sparse")])
def test_errors_are_no_larger_than_those_of_pytorchs_autocast(name: str, rows: int) -> None:
    """Of output and gradients, against float64, beside the dense weight under autocast."""
    case, given = (CASES[name], None) if rows == 1 else in_units(CASES[name], rows)
    x, values, bias, pattern = operands(case, given)

    def dense(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, dense_weight(values, pattern), bias, *case.geometry)

    exact_leaves = [tensor.detach().double().requires_grad_() for tensor in (x, values, bias)]
    exact = dense(*exact_leaves)
    gradient = drawn(*exact.shape, seed=2).to(HALF)
    expected = [exact, *torch.autograd.grad(exact, exact_leaves, gradient.double())]
    with autocast():
        ours, theirs = sparse_conv2d(x, values, bias, pattern, *case.geometry), dense(x, values, bias)
    assert ours.dtype is theirs.dtype is HALF
    of_ours, of_theirs = (torch.autograd.grad(output, [x, values, bias], gradient) for output in (ours, theirs))
    for a, b, c in zip((ours, *of_ours), (theirs, *of_theirs), expected, strict=True):
        assert error(a, c) <= 1.2 * error(b, c) + 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_norms_follow_pytorchs_under_autocast(training: bool) -> None:
    norm = nn.BatchNorm2d(3)
    ours = regrow.nn.batch_last.BatchLastNorm2d(nn.BatchNorm2d(3))
    norm.train(training), ours.train(training)
    for dtype in (HALF, torch.float32):
        x = drawn(9, 3, 6, 5).mul(2).add(1).to(dtype)
        with autocast():
            expected, actual = norm(x), ours(x)
        assert actual.dtype is expected.dtype is dtype
        torch.testing.assert_close(actual, expected)
    for a, b in zip(ours.buffers(), norm.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


LAYERS = [(nn.Linear(12, 8), (9, 12)), (nn.Conv1d(3, 8, 3), (9, 3, 10)), (nn.Conv2d(3, 8, 3), (9, 3, 6, 5))]


def stored(layer: nn.Module, rows: int = 1) -> nn.Module:
    return regrow.sparsify(nn.Sequential(layer), 0.5, block=(rows, 1), backend="cpu")


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["linear", "conv1d", "conv2d"])
def test_layers_take_and_give_what_ordinary_layers_do(layer: nn.Module, shape: tuple[int, ...], rows: int) -> None:
    sparse = stored(layer, rows)
    dense = regrow.densify(stored(layer, rows))
    for given in (HALF, torch.float32):
        x = drawn(*shape).to(given).requires_grad_()
        for dtype in (HALF, torch.float16):
            with autocast(dtype=dtype):
                output = sparse(x)
            # What the kernels do not know is computed in the weight's precision.
            assert output.dtype is (HALF if dtype is HALF else torch.float32)
        with autocast():
            output, expected = sparse(x), dense(x)
        torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)
        output.float().square().sum().backward()
        assert x.grad is not None
        assert x.grad.dtype is given
        assert all(parameter.grad.dtype is torch.float32 for parameter in sparse.parameters())
    assert sparse(drawn(*shape)).dtype is torch.float32
    with pytest.raises(ValueError, match=r"under torch\.autocast"):
        sparse(drawn(*shape).to(HALF))
    with pytest.raises(ValueError, match=r"under torch\.autocast"):
        sparse(drawn(*shape).double())


def test_inputs_are_converted_to_what_is_served() -> None:
    x, weight = torch.zeros(2), torch.zeros(3)
    assert as_activation(x, weight) is x
    with autocast():
        assert as_activation(x, weight).dtype is HALF
        assert as_activation(x.to(HALF), weight).dtype is HALF
        assert as_activation(x.long(), weight).dtype is torch.int64
        assert as_activation(x, weight.to(HALF)) is x
        assert storage_obstacle(nn.Linear, torch.zeros(2, 3)) is None
        assert storage_obstacle(nn.Linear, torch.zeros(2, 3).to(HALF)) == "no kernels for torch.bfloat16 on cpu"
    with autocast(dtype=torch.float16):
        assert as_activation(x, weight) is x
        assert as_activation(x.to(HALF), weight).dtype is torch.float32
        assert storage_obstacle(nn.Linear, torch.zeros(2, 3)) == "no kernels for torch.float16 on cpu"


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_gradient_of_absent_weights(rows: int, dense: bool) -> None:
    case = CASES["stride"]
    for shape, geometry, plane in (
        ((8, 6, 3, 3), case.geometry, case.plane), ((16, 24), Geometry(), ()),
    ):  # fmt: skip
        pattern = unit_pattern(shape, rows, 0.9 if dense else 0.3)
        x = drawn(20, shape[1], *plane).to(HALF)
        output = F.conv2d(x, x.new_zeros(shape), None, *geometry) if plane else F.linear(x, x.new_zeros(shape))
        gradient = drawn(*output.shape, seed=2).to(HALF)
        actual = weight_gradient_at(pattern, x, gradient, geometry)
        exact = weight_gradient_at(pattern, x.double(), gradient.double(), geometry)
        assert error(actual, exact) < (4e-3 if dense else 1e-6)


@pytest.mark.parametrize("method", ["exact", "window:3", "candidates:3:2"])
def test_looking_steps_give_the_gradient_of_absent_weights(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    sparse = regrow.sparsify(model, 0.3, block=(4, 1), backend="cpu")
    before = regrow.masks(sparse)
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.05, momentum=0.9)
    growth = {"exact": regrow.growth.exact, "window": regrow.growth.window, "candidates": regrow.growth.candidates}
    name, *numbers = method.split(":")
    recipe = replace(regrow.sparse_momentum(every=4, steps=20), growth=growth[name](*map(int, numbers)))
    regrow.TopologyUpdater(sparse, optimizer, recipe)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        with autocast():
            output = sparse(drawn(16, 3, 6, 6, seed=step % 2))
        loss = F.cross_entropy(output.float(), torch.arange(16) % 10)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert any(not torch.equal(before[name], mask) for name, mask in regrow.masks(sparse).items())
    assert all(state["momentum_buffer"].dtype is torch.float32 for state in optimizer.state.values())


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.2), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32 * 4, 10),
    )  # fmt: skip


def test_a_network_stays_in_bfloat16_and_in_its_layout() -> None:
    torch.manual_seed(0)
    sparse = regrow.sparsify(network(), 0.3, block=(4, 1), backend="cpu")
    seen: list[Tensor] = []
    for module in sparse:
        if not isinstance(module, nn.Flatten | nn.Linear):
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    with autocast():
        output = sparse(drawn(32, 3, 8, 8))
    assert output.dtype is HALF
    assert len(seen) > 5
    assert all(each.dtype is HALF and is_batch_last(each) for each in seen[:-1])
    output.float().square().mean().backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in sparse.parameters())


def test_sparse_and_masked_storage_train_alike() -> None:
    losses = {}
    for backend in ("cpu", "masked"):
        torch.manual_seed(0)
        model = regrow.sparsify(network()[:7].append(nn.Flatten()).append(nn.Linear(32 * 16, 10)), 0.3, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        regrow.TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=6, steps=12))
        losses[backend] = []
        for step in range(12):
            optimizer.zero_grad()
            with autocast():
                output = model(drawn(32, 3, 8, 8, seed=step % 2))
            loss = F.cross_entropy(output.float(), torch.arange(32) % 10)
            loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
    assert losses["cpu"][-1] < 0.7 * losses["cpu"][0]
    torch.testing.assert_close(torch.tensor(losses["cpu"]), torch.tensor(losses["masked"]), rtol=0.05, atol=0.05)


def test_compiled_and_exported_networks_compute_the_same() -> None:
    torch.manual_seed(0)
    sparse = regrow.sparsify(network(), 0.3, backend="cpu").eval()
    x = drawn(16, 3, 8, 8)
    with autocast():
        expected = sparse(x)
        compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
        actual = compiled(x)
        exported = torch.export.export(sparse, (x,)).module()(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(exported, expected)
    found = [
        torch.autograd.grad(output.float().square().sum(), list(sparse.parameters())) for output in (actual, expected)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_operators_keep_the_rules_of_torch_library() -> None:
    # opcheck compares what is written only: it cannot bear memory full of NaN.
    torch.use_deterministic_algorithms(False)
    x, values, bias, pattern = operands(CASES["odd"])
    x = batch_last(x.detach().to(HALF)).requires_grad_()
    geometry = CASES["odd"].geometry
    others = (
        list(pattern.forward_blocks(geometry)), list(pattern.transposed_blocks(geometry)), list(pattern.shape),
        flat(geometry),
    )  # fmt: skip
    torch.library.opcheck(cpu.operator, (x, values, bias, *others))
    with autocast():
        output = sparse_conv2d(x, values, bias, pattern, *geometry).detach()
    given = (output, x.detach(), values.detach(), *others, list(x.shape), [True] * 3)
    torch.library.opcheck(cpu.gradient_operator, given)
    y, ones = batch_last(drawn(5, 3, 6, 6).to(HALF)), torch.ones(3)
    settings = (1e-5, True, True)
    torch.library.opcheck(normalise_cpu.operator, (y, ones, ones, None, None, None, *settings))
    torch.library.opcheck(
        normalise_cpu.gradient_operator,
        (y, y.clone(), None, ones, ones, ones, ones, *settings, list(y.shape), [True, True, True, False]),
    )
    torch.library.opcheck(pool_cpu.max_operator, (y, [3, 3, 2, 2, 1, 1]))
    torch.library.opcheck(pool_cpu.mean_operator, (y, [3, 3, 2, 2, 1, 1], 0))


def test_operators_refuse_types_that_do_not_go_together() -> None:
    x, values, bias, pattern = operands(CASES["odd"])
    geometry = CASES["odd"].geometry
    others = (
        list(pattern.forward_blocks(geometry)), list(pattern.transposed_blocks(geometry)), list(pattern.shape),
        flat(geometry),
    )  # fmt: skip
    half = x.to(HALF)
    for given in ((half, values.to(HALF), bias), (half, values, bias.to(HALF)), (x.half(), values, bias)):
        with pytest.raises(ValueError, match=r"must be a dense torch\.float32"):
            cpu.operator(*given, *others)
    gradient = torch.randn(33, 19, 7, 9)
    for one, other in ((gradient.to(HALF), x), (gradient, half)):
        with pytest.raises(ValueError, match="the input must be a dense"):
            cpu.gradient_operator(one, other, values, *others, list(x.shape), [True] * 3)
    y, ones = drawn(5, 3, 4, 4), torch.ones(3)
    for given in ((y.to(HALF), ones.to(HALF), ones, None), (y, ones, ones, y.to(HALF)), (y.half(), ones, ones, None)):
        with pytest.raises(ValueError, match="must be a dense"):
            normalise_cpu.operator(*given, None, None, 1e-5, True, True)
    with pytest.raises(ValueError, match="must be a dense"):
        pool_cpu.max_operator(y.half(), [3, 3, 2, 2, 1, 1])


def test_models_of_bfloat16_weights_are_computed_by_pytorch() -> None:
    sparse = stored(nn.Conv2d(3, 8, 3)).to(HALF)
    x = drawn(9, 3, 6, 5).to(HALF)
    expected = regrow.densify(stored(nn.Conv2d(3, 8, 3)).to(HALF))
    expected.load_state_dict(regrow.dense_state_dict(sparse))
    assert torch.equal(sparse(x), expected(x))
