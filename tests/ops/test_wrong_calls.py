"""Operators called with what does not fit raise, whatever it is: none of it reaches a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.core.units import Units
from regrow.ops import gradient
from regrow.ops.conv2d import cpu as conv2d
from regrow.ops.conv2d.plan import flat
from regrow.ops.normalise import cpu as normalise
from regrow.ops.pattern import Blocks, Geometry, Pattern
from regrow.ops.pool import cpu as pool

pytest.importorskip("regrow._kernels")

GEOMETRY = Geometry((2, 1), (1, 1), (1, 1), 2)
SHAPE = (6, 4, 3, 3)
PATTERN = Pattern.of_mask(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.3)
# Units of four outputs, two in each group.
UNITS = Units((16, 4, 3, 3), (4, 1))
OF_UNITS = Pattern(UNITS.shape, UNITS.positions_of(torch.arange(0, UNITS.count, 3)).sort().values, UNITS.unit)


def convolution(pattern: Pattern = PATTERN) -> dict[str, Any]:
    """Return arguments that fit."""
    return {
        "x": torch.randn(5, 8, 6, 7),
        "values": torch.randn(pattern.nonzeros),
        "bias": torch.randn(pattern.shape[0]),
        "index": [tensor.clone() for tensor in pattern.forward_blocks(GEOMETRY)],
        "transposed_index": [tensor.clone() for tensor in pattern.transposed_blocks(GEOMETRY)],
        "weight_shape": list(pattern.shape),
        "geometry": flat(GEOMETRY),
    }


def convolution_gradient(pattern: Pattern = PATTERN) -> dict[str, Any]:
    given = convolution(pattern)
    del given["bias"]
    return {
        "output_gradient": torch.randn(5, pattern.shape[0], 3, 7),
        **given,
        "input_shape": [5, 8, 6, 7],
        "wanted": [True, True, True],
    }


def gradient_at(pattern: Pattern = PATTERN) -> dict[str, Any]:
    return {
        "gradient": torch.randn(5, pattern.shape[0], 3, 7),
        "x": torch.randn(5, 8, 6, 7),
        "positions": pattern.positions.clone(),
        "index": [tensor.clone() for tensor in pattern.forward_blocks(GEOMETRY)],
        "weight_shape": list(pattern.shape),
        "geometry": flat(GEOMETRY),
    }


def positions_only() -> dict[str, Any]:
    return {**gradient_at(), "index": []}


def max_pool() -> dict[str, Any]:
    return {"x": torch.randn(5, 3, 6, 6), "window": [3, 3, 2, 2, 1, 1]}


def max_pool_gradient() -> dict[str, Any]:
    output, winner = pool.max_operator(**max_pool())
    return {
        "output_gradient": output,
        "winner": winner,
        "window": [3, 3, 2, 2, 1, 1],
        "input_shape": [5, 3, 6, 6],
        "wanted": [True],
    }


def mean_pool() -> dict[str, Any]:
    return {**max_pool(), "divisor": 0}


def mean_pool_gradient() -> dict[str, Any]:
    given = max_pool_gradient()
    del given["winner"]
    return {**given, "divisor": 0}


def norm() -> dict[str, Any]:
    return {
        "x": torch.randn(5, 3, 4, 4), "weight": torch.randn(3), "bias": torch.randn(3), "residual": None,
        "mean": None, "variance": None, "epsilon": 1e-5, "relu": True, "training": True,
    }  # fmt: skip


def norm_gradient() -> dict[str, Any]:
    return {
        "output_gradient": torch.randn(5, 3, 4, 4), "x": torch.randn(5, 3, 4, 4), "output": None,
        "weight": torch.randn(3), "bias": torch.randn(3), "mean": torch.randn(3), "variance": torch.rand(3),
        "epsilon": 1e-5, "relu": True, "training": True, "input_shape": [5, 3, 4, 4], "wanted": [True] * 4,
    }  # fmt: skip


OPERATORS: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
    "conv2d": (conv2d.operator, convolution),
    "conv2d_gradient": (conv2d.gradient_operator, convolution_gradient),
    "gradient_at": (gradient._gradient_at, gradient_at),
    "conv2d of units": (conv2d.operator, partial(convolution, OF_UNITS)),
    "conv2d_gradient of units": (conv2d.gradient_operator, partial(convolution_gradient, OF_UNITS)),
    "gradient_at of units": (gradient._gradient_at, partial(gradient_at, OF_UNITS)),
    "gradient_at positions": (gradient._gradient_at, positions_only),
    "max_pool2d": (pool.max_operator, max_pool),
    "max_pool2d_gradient": (pool.max_gradient_operator, max_pool_gradient),
    "mean_pool2d": (pool.mean_operator, mean_pool),
    "mean_pool2d_gradient": (pool.mean_gradient_operator, mean_pool_gradient),
    "normalise": (normalise.operator, norm),
    "normalise_gradient": (normalise.gradient_operator, norm_gradient),
}


def part(field: str, change: Callable[[Tensor], Tensor], index: str = "index") -> Callable[[dict[str, Any]], None]:
    """Return what changes one tensor of an index structure."""

    def do(given: dict[str, Any]) -> None:
        at = Blocks._fields.index(field)
        given[index][at] = change(given[index][at])

    return do


def put(at: int, number: int) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[at] = number
        return tensor

    return change


def other(**arguments: Any) -> Callable[[dict[str, Any]], None]:
    """Return what takes other arguments."""
    return lambda given: given.update(arguments)


# Wrong parts of an index structure, for each operator that takes one.
PARTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "order beyond": part("order", put(3, 10_000)),
    "order below": part("order", put(3, -1)),
    "order twice": part("order", lambda tensor: torch.zeros_like(tensor)),
    "order short": part("order", lambda tensor: tensor[1:].clone()),
    "order empty": part("order", lambda tensor: tensor[:0]),
    "order int64": part("order", Tensor.long),
    "order matrix": part("order", lambda tensor: tensor[None]),
    "order strided": part("order", lambda tensor: torch.stack((tensor, tensor), 1)[:, 0]),
    "offset beyond": part("offset", put(0, 32_767)),
    "offset below": part("offset", put(0, -1)),
    "offset short": part("offset", lambda tensor: tensor[1:].clone()),
    "offset int32": part("offset", Tensor.int),
    "segment_row beyond": part("segment_row", put(0, 6)),
    "segment_row below": part("segment_row", put(0, -1)),
    "segment_row twice": part("segment_row", lambda tensor: torch.zeros_like(tensor)),
    "segment_row empty": part("segment_row", lambda tensor: tensor[:0]),
    "segment_start beyond": part("segment_start", put(-1, 10_000)),
    "segment_start first": part("segment_start", put(0, 1)),
    "segment_start falls": part("segment_start", put(1, 10_000)),
    "segment_start negative": part("segment_start", put(1, -5)),
    "segment_start short": part("segment_start", lambda tensor: tensor[:-1].clone()),
    "segment_start empty": part("segment_start", lambda tensor: tensor[:0]),
    "block_start beyond": part("block_start", put(-1, 10_000)),
    "block_start first": part("block_start", put(0, 1)),
    "block_start empty": part("block_start", lambda tensor: tensor[:0]),
    "block_start long": part("block_start", lambda tensor: tensor.repeat(2)),
    "blocking zero": part("blocking", put(0, 0)),
    "blocking negative": part("blocking", put(0, -4)),
    "blocking beyond": part("blocking", put(0, 1 << 30)),
    "blocking driver": part("blocking", put(1, 7)),
    "blocking empty": part("blocking", lambda tensor: tensor[:0]),
    "no tensors": lambda given: given["index"].clear() or given["index"].append(torch.zeros(1)),
    "too few tensors": lambda given: given["index"].pop(),
}

LARGE = 1 << 40
WRONG: dict[str, dict[str, Callable[[dict[str, Any]], None]]] = {
    "conv2d": {
        **PARTS,
        "input double": other(x=torch.randn(5, 8, 6, 7).double()),
        "input half": other(x=torch.randn(5, 8, 6, 7).half()),
        "input channels": other(x=torch.randn(5, 7, 6, 7)),
        "input flat": other(x=torch.randn(5, 8)),
        "input too small": other(x=torch.randn(5, 8, 6, 0)),
        "values short": other(values=torch.randn(3)),
        "values matrix": other(values=torch.randn(PATTERN.nonzeros, 1)),
        "values double": other(values=torch.randn(PATTERN.nonzeros).double()),
        "bias short": other(bias=torch.randn(5)),
        "bias double": other(bias=torch.randn(6).double()),
        "index missing": other(index=[]),
        "weight of three dimensions": other(weight_shape=[6, 4, 9]),
        "weight of no outputs": other(weight_shape=[0, 4, 3, 3]),
        "weight with more channels": other(weight_shape=[6, 8, 3, 3]),
        "weight negative": other(weight_shape=[6, 4, -3, -3]),
        "geometry of zeros": other(geometry=[0] * 7),
        "geometry short": other(geometry=[1, 1]),
        "geometry empty": other(geometry=[]),
        "no stride": other(geometry=[0, 1, 1, 1, 1, 1, 2]),
        "no groups": other(geometry=[2, 1, 1, 1, 1, 1, 0]),
        "groups that do not divide": other(geometry=[2, 1, 1, 1, 1, 1, 4]),
        "negative padding": other(geometry=[2, 1, -1, 1, 1, 1, 2]),
        "huge padding": other(geometry=[2, 1, LARGE, 1, 1, 1, 2]),
        "huge stride": other(geometry=[LARGE, 1, 1, 1, 1, 1, 2]),
        "huge dilation": other(geometry=[2, 1, 1, 1, 1 << 28, 1, 2]),
        "dilation beyond the plane": other(geometry=[2, 1, 1, 1, 9, 9, 2]),
        "huge output": other(geometry=[1, 1, 1 << 29, 1 << 29, 1, 1, 2]),
        "transposed order beyond": part("order", put(0, 10_000), "transposed_index"),
        "transposed phases": part("block_start", lambda tensor: tensor[:2].clone(), "transposed_index"),
        "transposed for another stride": other(
            transposed_index=list(PATTERN.transposed_blocks(GEOMETRY._replace(stride=(1, 2))))
        ),
    },
    "conv2d_gradient": {
        **PARTS,
        "gradient of another plane": other(output_gradient=torch.randn(5, 6, 3, 6)),
        "gradient of another batch": other(output_gradient=torch.randn(4, 6, 3, 7)),
        "gradient double": other(output_gradient=torch.randn(5, 6, 3, 7).double()),
        "input of another batch": other(x=torch.randn(4, 8, 6, 7)),
        "input double": other(x=torch.randn(5, 8, 6, 7).double()),
        "input missing": other(x=None),
        "input shape": other(input_shape=[5, 8, 60, 70]),
        "input shape negative": other(input_shape=[-5, 8, 6, 7]),
        "input shape short": other(input_shape=[5, 8]),
        "values short": other(values=torch.randn(3)),
        "wanted short": other(wanted=[True]),
        "transposed missing": other(transposed_index=[]),
        "transposed offset": part("offset", put(0, 32_767), "transposed_index"),
    },
    "gradient_at": {
        **PARTS,
        "input channels": other(x=torch.randn(5, 7, 6, 7)),
        "input double": other(x=torch.randn(5, 8, 6, 7).double()),
        "gradient of another plane": other(gradient=torch.randn(5, 6, 2, 7)),
        "gradient of integers": other(gradient=torch.zeros(5, 6, 3, 7, dtype=torch.int32)),
        "positions short": other(positions=PATTERN.positions[1:]),
        "positions missing": other(positions=None),
    },
    "gradient_at positions": {
        "beyond": lambda given: given["positions"].__setitem__(-1, 10_000),
        "below": lambda given: given["positions"].__setitem__(0, -1),
        "of floats": lambda given: given.update(positions=given["positions"].float()),
        "matrix": lambda given: given.update(positions=given["positions"][None]),
    },
    "max_pool2d": {
        "double": other(x=torch.randn(5, 3, 6, 6).double()),
        "of three dimensions": other(x=torch.randn(3, 6, 6)),
        "window of zeros": other(window=[0] * 6),
        "window short": other(window=[3, 3]),
        "window beyond": other(window=[9, 9, 1, 1, 0, 0]),
        "window negative": other(window=[3, 3, -1, 1, 0, 0]),
        "huge padding": other(window=[3, 3, 1, 1, LARGE, 0]),
    },
    "max_pool2d_gradient": {
        "winner beyond": lambda given: given["winner"].fill_(200),
        "winner in the padding": lambda given: given["winner"].fill_(0),
        "winner int64": lambda given: given.update(winner=given["winner"].long()),
        "winner short": lambda given: given.update(winner=given["winner"][:2]),
        "winner empty": other(winner=torch.empty(0, dtype=torch.uint8)),
        "gradient short": lambda given: given.update(output_gradient=given["output_gradient"][:2]),
        "gradient double": lambda given: given.update(output_gradient=given["output_gradient"].double()),
        "another plane": other(input_shape=[5, 3, 60, 60]),
        "another window": other(window=[2, 2, 1, 1, 0, 0]),
        "negative plane": other(input_shape=[5, 3, -6, 6]),
    },
    "mean_pool2d": {
        "divisor": other(divisor=-1),
        "half": other(x=torch.randn(5, 3, 6, 6).half()),
        "window of zeros": other(window=[0] * 6),
    },
    "mean_pool2d_gradient": {
        "divisor": other(divisor=-1),
        "another plane": other(input_shape=[5, 3, 60, 60]),
        "gradient short": lambda given: given.update(output_gradient=given["output_gradient"][:, :2]),
    },
    "normalise": {
        "double": other(x=torch.randn(5, 3, 4, 4).double()),
        "half": other(x=torch.randn(5, 3, 4, 4).half()),
        "of three dimensions": other(x=torch.randn(3, 4, 4)),
        "empty": other(x=torch.randn(0, 3, 4, 4)),
        "one number a channel": other(x=torch.randn(1, 3, 1, 1)),
        "weight long": other(weight=torch.randn(4)),
        "weight short": other(weight=torch.randn(2)),
        "bias double": other(bias=torch.randn(3).double()),
        "mean alone": other(mean=torch.randn(3), training=False),
        "mean short": other(mean=torch.randn(2), variance=torch.randn(3), training=False),
        "mean in training": other(mean=torch.randn(3), variance=torch.randn(3)),
        "residual": other(residual=torch.randn(5, 3, 4, 3)),
    },
    "normalise_gradient": {
        "gradient short": other(output_gradient=torch.randn(4, 3, 4, 4)),
        "gradient half": other(output_gradient=torch.randn(5, 3, 4, 4).half()),
        "input double": other(x=torch.randn(5, 3, 4, 4).double()),
        "output short": other(output=torch.randn(5, 3, 4, 3)),
        "mean short": other(mean=torch.randn(2)),
        "variance long": other(variance=torch.randn(4)),
        "weight long": other(weight=torch.randn(4)),
        "wanted long": other(wanted=[True] * 5),
        "another shape": other(input_shape=[5, 3, 4, 40]),
    },
}

# What is wrong of units alone: a unit of any other size than four, and rows of units that leave the values.
UNIT_PARTS: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"blocking {rows} rows": part("blocking", put(2, rows)) for rows in (-4, 0, 1, 2, 3, 5, 8, 16, 1 << 30)},
    "blocking without rows": part("blocking", lambda tensor: tensor[:2].clone()),
    "order of later rows beyond": part("order", put(3, OF_UNITS.nonzeros - 1)),
    "order one further": part("order", lambda tensor: tensor + 1),
    "order of single weights": part("order", lambda tensor: tensor.repeat(4)),
    "index of single weights": lambda given: given["index"].__setitem__(
        slice(5), list(Pattern(OF_UNITS.shape, OF_UNITS.positions).forward_blocks(GEOMETRY))[:5]
    ),
    "weight of rows that no units divide": other(weight_shape=[18, 4, 3, 3]),
    "weight of one unit more": other(weight_shape=[20, 4, 3, 3]),
}
# What is none of these, as an input gradient by units needs no transposed index.
for _name in ("conv2d", "conv2d_gradient", "gradient_at"):
    WRONG[f"{_name} of units"] = {
        **{wrong: spoil for wrong, spoil in WRONG[_name].items() if wrong != "transposed missing"},
        **UNIT_PARTS,
    }
for _name in ("conv2d of units", "conv2d_gradient of units"):
    WRONG[_name] |= {
        "values of no whole units": other(values=torch.randn(OF_UNITS.nonzeros - 1)),
        "values of a unit more": other(values=torch.randn(OF_UNITS.nonzeros + 4)),
        "transposed index of units": lambda given: given.update(transposed_index=given["index"]),
        "no index": lambda given: given.update(index=given["transposed_index"]),
    }


@pytest.mark.parametrize("name", OPERATORS)
def test_what_fits_is_computed(name: str) -> None:
    operator, fitting = OPERATORS[name]
    operator(**fitting())


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, table in WRONG.items() for wrong in table])
def test_what_does_not_fit_raises(name: str, wrong: str) -> None:
    operator, fitting = OPERATORS[name]
    given = fitting()
    WRONG[name][wrong](given)
    with pytest.raises((ValueError, RuntimeError)):
        operator(**given)


@pytest.mark.parametrize("transposed", ["none", "its own", "that of single weights"])
def test_an_index_of_units_needs_no_transposed_one_and_heeds_none(transposed: str) -> None:
    given = convolution_gradient(OF_UNITS)
    expected = [each.clone() for each in conv2d.gradient_operator(**given)]
    if transposed == "none":
        given["transposed_index"] = []
    elif transposed == "that of single weights":
        given["transposed_index"] = list(Pattern(OF_UNITS.shape, OF_UNITS.positions).transposed_blocks(GEOMETRY))
    for ours, theirs in zip(conv2d.gradient_operator(**given), expected, strict=True):
        assert torch.equal(ours, theirs)
    x, weight = given["x"].double(), torch.zeros(OF_UNITS.numel, dtype=torch.float64)
    weight[OF_UNITS.positions] = given["values"].double()
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
        given["output_gradient"].double(), x, weight.view(OF_UNITS.shape), [16], *GEOMETRY[:3], False, [0, 0],
        GEOMETRY.groups, [True] * 3,
    )  # fmt: skip
    for ours, theirs in zip(expected, (of_x, of_weight.flatten()[OF_UNITS.positions], of_bias), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_an_index_that_changes_is_looked_at_again() -> None:
    given = convolution()
    conv2d.operator(**given)
    given["index"][0][0] = -7
    with pytest.raises(ValueError, match="the index does not fit"):
        conv2d.operator(**given)


def test_altered_constants_of_an_exported_model_raise() -> None:
    layer = regrow.sparsify(nn.Sequential(nn.Linear(9, 5)), 0.5, backend="cpu").requires_grad_(False)
    x = torch.randn(4, 9)
    program = torch.export.export(layer, (x,)).module()
    program(x)
    constants = [each for module in program.modules() for each in vars(module).values() if isinstance(each, Tensor)]
    offsets = [tensor for tensor in constants if tensor.dtype == torch.int16]
    assert len(offsets) == 1
    offsets[0].fill_(30_000)
    with pytest.raises((ValueError, RuntimeError), match="the index does not fit"):
        program(x)
    with pytest.raises((ValueError, RuntimeError)):
        torch.export.export(layer, (x,)).module()(x.double())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(4, 3), (0, 4)),
        (lambda: nn.Linear(4, 3), (2, 0, 4)),
        (lambda: nn.Conv1d(4, 3, 3, padding=1), (0, 4, 5)),
        (lambda: nn.Conv2d(4, 3, 3, padding=1), (0, 4, 5, 5)),
        (lambda: nn.Conv2d(4, 3, (1, 3)), (0, 4, 1, 5)),
    ],
)
def test_a_batch_of_no_samples_gives_an_empty_output_and_no_gradient(build: Any, shape: tuple[int, ...]) -> None:
    layer = build()
    sparse = regrow.sparsify(nn.Sequential(build()), 0.5, backend="cpu")
    x = torch.randn(shape, requires_grad=True)
    output = sparse(x)
    assert output.shape == layer(x).shape
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in sparse.parameters())


@pytest.mark.parametrize("shape", [(64, 16, 2, 8), (3, 16, 1, 1)])
def test_a_plane_that_is_too_small_raises_as_in_pytorch(shape: tuple[int, ...]) -> None:
    sparse = regrow.sparsify(nn.Sequential(nn.Conv2d(16, 32, 3, stride=2)), 0.3, backend="cpu")
    for layer in (nn.Conv2d(16, 32, 3, stride=2), sparse):
        with pytest.raises(RuntimeError, match=r"[Kk]ernel"):
            layer(torch.randn(shape))


def test_negated_and_symbolic_zeros_are_read_as_what_they_are() -> None:
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(4, 3)), 0.5, backend="cpu")
    x = torch.randn(5, 4)
    torch.testing.assert_close(sparse(torch._neg_view(x)), sparse(-x))
    zeros = torch._efficientzerotensor((5, 4))
    torch.testing.assert_close(sparse(zeros), sparse(torch.zeros(5, 4)))
    output = sparse(x.requires_grad_())
    gradient = torch.randn(5, 3)
    wanted = [x, *sparse.parameters()]
    negated = torch.autograd.grad(output, wanted, torch._neg_view(gradient), retain_graph=True)
    for ours, theirs in zip(negated, torch.autograd.grad(output, wanted, -gradient), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("build", "shape"), [(lambda: nn.Linear(4, 3), (5, 4)), (lambda: nn.Conv2d(4, 3, 3), (5, 4, 6, 6))]
)
def test_a_traced_layer_computes_the_same(build: Any, shape: tuple[int, ...]) -> None:
    sparse = regrow.sparsify(nn.Sequential(build()), 0.5, backend="cpu")
    x = torch.randn(shape)
    traced = torch.jit.trace(sparse, (x,))
    torch.testing.assert_close(traced(x), sparse(x))


def test_tangents_pass_through_sparse_layers() -> None:
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(4, 3)), 0.5, backend="cpu")
    dense = regrow.densify(regrow.sparsify(nn.Sequential(nn.Linear(4, 3)), 1.0, backend="cpu"))
    dense.load_state_dict(regrow.dense_state_dict(sparse))
    x, direction = torch.randn(5, 4), torch.randn(5, 4)
    for ours, theirs in zip(
        torch.func.jvp(sparse, (x,), (direction,)), torch.func.jvp(dense, (x,), (direction,)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_backward_pass_after_an_update_raises() -> None:
    sparse = regrow.sparsify(nn.Sequential(nn.Conv2d(4, 4, 3)), 0.3, backend="cpu")
    loss = sparse(torch.randn(2, 4, 5, 5)).sum()
    layer = sparse[0]
    layer.replace(layer.index.clone(), layer.values.detach().clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_pattern_holds_whole_units() -> None:
    assert Pattern((4, 3), torch.tensor([1, 4]), unit=(2, 1)).unit == (2, 1)
    assert Pattern((4, 4, 2, 1), torch.tensor([0, 2, 8, 10]), unit=(2, 2)).nonzeros == 4
    with pytest.raises(ValueError, match="whole units"):
        Pattern((4, 3), torch.tensor([1, 5]), unit=(2, 1))
    with pytest.raises(ValueError, match="do not divide"):
        Pattern((4, 3), torch.tensor([1, 4]), unit=(1, 2))
