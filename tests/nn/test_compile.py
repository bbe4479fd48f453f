"""Models with sparse layers under torch.compile and torch.export, and the rules of torch.library."""

import dataclasses

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import regrow
from cases import assert_same, weights
from regrow.core.growth import candidates, exact, window
from regrow.ops import gradient
from regrow.ops.pattern import Geometry, Pattern
from regrow.storage import sparse_weights

SOURCES = pytest.mark.parametrize("growth", [exact(), window(2), candidates(2, 1)], ids=str)
PLANE, LINE = (5, 4, 8, 8), (5, 4, 9)


def plane() -> nn.Module:
    """Convolutions and a linear layer, strided, padded and grouped."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.Flatten(),
        nn.Linear(8 * 9, 10),
    )  # fmt: skip


def line() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 6, 4, padding="same"), nn.Tanh(), nn.Conv1d(6, 3, 3, dilation=2))


MODELS = pytest.mark.parametrize(("build", "shape"), [(plane, PLANE), (line, LINE)], ids=["plane", "line"])


class Training:
    """A sparsely stored model, its optimizer and its updater; compiled or not."""

    def __init__(self, build, growth, *, compiled, backend="aot_eager", block=(1, 1), storage="cpu"):
        torch.manual_seed(0)
        self.model = regrow.sparsify(build(), 0.3, block=block, backend=storage)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        recipe = dataclasses.replace(regrow.sparse_momentum(every=3, steps=30), growth=growth)
        self.topology = regrow.TopologyUpdater(self.model, self.optimizer, recipe)
        self.forward = torch.compile(self.model, fullgraph=True, backend=backend) if compiled else self.model

    def step(self, x):
        self.optimizer.zero_grad()
        self.forward(x).square().mean().backward()
        self.optimizer.step()


@pytest.fixture(autouse=True)
def fresh():
    """Compile everything anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@SOURCES
@MODELS
@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_a_compiled_training_is_the_same_and_is_compiled_anew_once_at_most(build, shape, growth, storage):
    plain, compiled = (Training(build, growth, compiled=one, storage=storage) for one in (False, True))
    torch._dynamo.utils.counters.clear()
    for seed in range(16):  # five updates
        for training in (plain, compiled):
            training.step(inputs(shape, seed))
        assert_same(regrow.masks(compiled.model), regrow.masks(plain.model))
        torch.testing.assert_close(weights(compiled.model), weights(plain.model))
    assert not torch._dynamo.utils.counters["graph_break"]
    # with and without a window: where one begins the backward pass computes more
    sizes_change = storage == "cpu" and growth.steps is not None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (2 if sizes_change else 1)


def test_what_a_user_leaves_open_stays_open():
    with torch.compiler.config.patch(dynamic_sources="L['x']"):
        regrow.sparsify(plane(), 0.3, backend="cpu")
        once = torch.compiler.config.dynamic_sources
        regrow.sparsify(plane(), 0.3, backend="cpu")
        assert torch.compiler.config.dynamic_sources == once
        assert once.startswith("L['x'],")
        assert "values" in once


def test_a_compiled_training_of_units_is_the_same():
    plain, compiled = (Training(plane, window(2), compiled=one, block=(4, 1)) for one in (False, True))
    assert [compiled.model[at].pattern.rows_of_entry(groups) for at, groups in ((0, 1), (2, 2), (4, 1))] == [4, 4, 2]
    for seed in range(5):  # one update
        for training in (plain, compiled):
            training.step(inputs(PLANE, seed))
        assert_same(regrow.masks(compiled.model), regrow.masks(plain.model))
        torch.testing.assert_close(weights(compiled.model), weights(plain.model))


def test_inductor_compiles_it_too():
    plain, compiled = (Training(plane, window(2), compiled=one, backend="inductor") for one in (False, True))
    for seed in range(4):
        for training in (plain, compiled):
            training.step(inputs(PLANE, seed))
    assert_same(regrow.masks(compiled.model), regrow.masks(plain.model))
    torch.testing.assert_close(weights(compiled.model), weights(plain.model))


@MODELS
def test_the_first_call_ever_may_be_compiled(build, shape):
    sparse = regrow.sparsify(build(), 0.3, backend="cpu")
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs(shape, 0)), sparse(inputs(shape, 0)))


@MODELS
@pytest.mark.parametrize(("watched", "block"), [(False, (1, 1)), (True, (1, 1)), (False, (2, 1))])
def test_an_exported_model_computes_the_same(build, shape, watched, block):
    training = Training(build, exact() if watched else window(1), compiled=False, block=block)
    assert (training.model[0].covered is not None) is watched
    x = inputs(shape, 0)
    expected = training.model(x)
    exported = torch.export.export(training.model, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    torch.testing.assert_close(exported(inputs(shape, 1)), training.model(inputs(shape, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize(
    ("shape", "x", "output", "geometry"),
    [
        ((3, 7), (4, 7), (4, 3), Geometry()),
        ((3, 7), (2, 4, 7), (2, 4, 3), Geometry()),
        ((4, 3, 3, 2), (2, 6, 5, 6), (2, 4, 3, 3), Geometry((2, 2), (1, 0), (1, 1), 2)),
    ],
    ids=["linear", "sequence", "convolution"],
)
def test_the_operators_keep_the_rules_of_torch_library(shape, x, output, geometry, share, dtype):
    numel = torch.Size(shape).numel()
    pattern = Pattern(shape, torch.randperm(numel)[: round(share * numel)].sort().values.int())
    x, output = torch.randn(x, dtype=dtype), torch.randn(output, dtype=dtype, requires_grad=True)
    absent = torch.zeros(pattern.nonzeros, dtype=dtype, requires_grad=True)
    arguments = gradient._arguments(output, x, pattern, shape, geometry)
    assert bool(arguments[1]) is (share < 0.5 and dtype == torch.float32)
    torch.library.opcheck(gradient._watch, (output, x, absent, *arguments))
    torch.library.opcheck(gradient._gradient_at, (output.detach(), x, *arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_so_does_the_one_for_every_position(dtype):
    x, output = torch.randn(4, 7, dtype=dtype), torch.randn(4, 3, dtype=dtype, requires_grad=True)
    absent = torch.zeros(21, dtype=dtype, requires_grad=True)
    arguments = gradient._arguments(output, x, None, (3, 7), Geometry())
    torch.library.opcheck(gradient._watch, (output, x, absent, *arguments))
    torch.library.opcheck(gradient._gradient_at, (output.detach(), x, *arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_watched_layer_refuses_to_be_differentiated_twice(dtype):
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(7, 5)), 0.3, backend="cpu").to(dtype)
    (weight,) = sparse_weights(sparse).values()
    weight.cover(None, {})
    loss = sparse(torch.randn(2, 7, dtype=dtype)).square().sum()
    (at,) = torch.autograd.grad(loss, [weight.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        at.sum().backward()


def test_a_sparse_layer_refuses_to_be_differentiated_twice():
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(7, 5)), 0.3, backend="cpu")
    loss = sparse(torch.randn(2, 7)).square().sum()
    (at,) = torch.autograd.grad(loss, [sparse[0].values], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*masked storage"):
        at.sum().backward()


def finite_differences(function, at: Tensor, step: float) -> Tensor:
    """Return the gradient of a scalar function by central differences."""
    result = torch.empty_like(at)
    for i in range(at.numel()):
        ends = []
        for sign in (1, -1):
            moved = at.detach().clone()
            moved.view(-1)[i] += sign * step
            ends.append(function(moved))
        result.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return result


@MODELS
def test_gradients_of_sparse_models_by_finite_differences(build, shape):
    """Double precision takes the reference; single precision, by kernels, agrees with it."""
    torch.manual_seed(0)
    single = regrow.sparsify(build(), 0.3, backend="cpu")
    double = regrow.sparsify(build(), 0.3, backend="cpu")
    double.load_state_dict(single.state_dict())
    double.double()
    x = inputs((2, *shape[1:]), 0)
    for network, entered in ((single, x), (double, x.double())):
        network(entered).square().sum().backward()
    for (name, ours), (_, reference) in zip(single.named_parameters(), double.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad.float(), rtol=1e-4, atol=1e-4, msg=name)
    values = double[0].values

    def loss(moved: Tensor) -> Tensor:
        state = {**dict(double.named_parameters()), "0.values": moved}
        return torch.func.functional_call(double, state, (x.double(),)).square().sum().detach()

    torch.testing.assert_close(finite_differences(loss, values, 1e-6), values.grad, rtol=1e-5, atol=1e-6)


def test_under_autocast_models_compute_in_bfloat16():
    sparse = regrow.sparsify(plane(), 0.3, backend="cpu", keep_dense=["last"])
    x = inputs(PLANE, 0)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = sparse[:4](x)
        output = sparse(x)
    assert (hidden.dtype, output.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(hidden.float(), sparse[:4](x), rtol=0.02, atol=0.02)
    output.float().square().sum().backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in sparse.parameters())
