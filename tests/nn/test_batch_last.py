"""Networks whose norms and pools follow the layout of sparse convolutions, beside the ordinary ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import regrow
from cases import assert_same, weights
from regrow.convert import follow_layout
from regrow.experiments.models import build
from regrow.nn.batch_last import (
    BatchLast,
    BatchLastAdaptiveAvgPool2d,
    BatchLastAvgPool2d,
    BatchLastDropout,
    BatchLastMaxPool2d,
    BatchLastNorm2d,
    FoldedReLU,
    SharedReLU,
)
from regrow.nn.batch_last_conv import BatchLastConv2d
from regrow.ops import is_batch_last
from regrow.ops.layout import batch_last

pytest.importorskip("regrow._kernels")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chain(*middle: nn.Module) -> nn.Sequential:
    """Return modules between two convolutions of eight channels."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, nn.Conv2d(8, 4, 1))


def sparse(model: nn.Module, **settings: object) -> nn.Module:
    return regrow.sparsify(model, 0.5, backend="cpu", **settings)


def exchanged(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, BatchLast)}


NORMS = {
    "usual": {},
    "no parameters": {"affine": False},
    "no statistics kept": {"track_running_stats": False},
    "cumulative mean": {"momentum": None},
    "other numbers": {"momentum": 0.3, "eps": 0.01},
}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("settings", NORMS.values(), ids=NORMS.keys())
def test_a_norm_trains_and_evaluates_as_pytorchs(settings: dict[str, object], relu: bool) -> None:
    ordinary = nn.BatchNorm2d(6, **settings)
    norm = BatchLastNorm2d(copy.deepcopy(ordinary), relu=relu)
    for step in range(5):
        if step == 3:
            ordinary.eval()
            norm.eval()
        inputs = [(drawn(9, 6, 5, 5, seed=step) * 2 + 3).requires_grad_() for _ in range(2)]
        expected = ordinary(inputs[0])
        outputs = [torch.relu(expected) if relu else expected, norm(inputs[1])]
        for module, output in zip((ordinary, norm), outputs, strict=True):
            module.zero_grad()
            output.backward(drawn(9, 6, 5, 5, seed=20 + step))
        assert is_batch_last(outputs[1])
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(norm.parameters(), ordinary.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.state_dict(), ordinary.state_dict())


POOLS = {
    "max": (nn.MaxPool2d(2), BatchLastMaxPool2d),
    "max overlapping": (nn.MaxPool2d(3, 2, padding=1), BatchLastMaxPool2d),
    "mean": (nn.AvgPool2d((2, 3)), BatchLastAvgPool2d),
    "mean with padding": (nn.AvgPool2d(3, 1, padding=1), BatchLastAvgPool2d),
    "mean without padding": (nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), BatchLastAvgPool2d),
    "sum": (nn.AvgPool2d(2, divisor_override=1), BatchLastAvgPool2d),
    "plane": (nn.AdaptiveAvgPool2d((1, 1)), BatchLastAdaptiveAvgPool2d),
}


@pytest.mark.parametrize(("pool", "kind"), POOLS.values(), ids=POOLS.keys())
def test_a_pool_is_pytorchs(pool: nn.Module, kind: type[nn.Module]) -> None:
    model = sparse(chain(copy.deepcopy(pool)))
    assert exchanged(model) == {"1": kind}
    inputs = [drawn(9, 4, 6, 7).requires_grad_() for _ in range(2)]
    outputs = [pool(inputs[0]), model[1](inputs[1])]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(each.grad for each in inputs))
    back = regrow.densify(model)[1]
    assert type(back) is type(pool)
    assert repr(back) == repr(pool)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(17),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(2),
        nn.LPPool2d(2, 2),
        nn.InstanceNorm2d(8),
    ],
    ids=repr,
)
def test_what_has_no_kernels_is_left_alone(pool: nn.Module) -> None:
    model = sparse(chain(pool))
    assert exchanged(model) == {}
    assert model[1] is pool


def test_chains_are_exchanged_and_given_back() -> None:
    norm, relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    model = chain(norm, relu, nn.MaxPool2d(2), nn.Dropout(0.1))
    names = set(model.state_dict())
    parameters = dict(norm.named_parameters())
    model = sparse(model.eval())
    assert exchanged(model) == {
        "1": BatchLastNorm2d,
        "2": FoldedReLU,
        "3": BatchLastMaxPool2d,
        "4": BatchLastDropout,
    }
    assert model[1].relu
    assert not any(module.training for module in model.modules())
    assert all(model[1].get_parameter(name) is parameter for name, parameter in parameters.items())
    assert set(regrow.dense_state_dict(model)) == names
    summary = regrow.summary(model)
    assert summary.batch_last == ("1", "2", "3", "4")
    assert "4 modules follow the layout of sparse layers" in str(summary)
    back = regrow.densify(model)
    assert [type(module) for module in back[1:5]] == [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Dropout]
    assert back[2].inplace
    assert all(back[1].get_parameter(name) is parameter for name, parameter in parameters.items())
    assert set(back.state_dict()) == names


def test_it_can_be_refused_and_masked_storage_wants_none_of_it() -> None:
    assert exchanged(sparse(chain(nn.BatchNorm2d(8)), batch_last=False)) == {}
    assert exchanged(regrow.sparsify(chain(nn.BatchNorm2d(8)), 0.5, backend="masked")) == {}


class Block(nn.Module):
    """A residual block before whose convolutions a norm stands; `kind` is what its forward does beyond."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        normed = self.norm1(x)
        active = torch.relu(normed) if self.kind == "functional" else self.relu1(normed)
        inner = self.conv1(active)
        inner = self.relu1(inner) if self.kind == "shared relu" else inner
        if self.kind == "evaluation" and not self.training:
            inner = inner - self.norm2(inner)
        inner = self.conv2(self.relu2(self.norm2(inner)))
        if self.kind == "data" and x.sum() > 0:
            return inner
        if self.kind == "norm used twice":
            inner = inner + normed
        return inner + x


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plain", {"norm1": True, "relu1": None, "norm2": True, "relu2": None}),
        ("functional", {"norm1": False, "norm2": True, "relu2": None}),
        ("shared relu", {"norm1": True, "relu1": None, "norm2": True, "relu2": None}),
        ("norm used twice", {"norm1": False, "norm2": True, "relu2": None}),
        ("evaluation", {"norm1": True, "relu1": None, "norm2": False}),
        ("data", {}),
    ],
)
def test_only_what_the_graph_shows_is_exchanged(kind: str, expected: dict[str, bool | None]) -> None:
    torch.manual_seed(0)
    model = Block(kind)
    plain = sparse(copy.deepcopy(model), batch_last=False)
    model = sparse(model)
    found = {name: getattr(model.get_submodule(name), "relu", None) for name in exchanged(model)}
    assert found == expected
    for mode in (True, False):
        outputs = [each.train(mode)(drawn(6, 3, 5, 5)) for each in (model, plain)]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_modules_with_hooks_and_subclasses_are_left_alone() -> None:
    class Own(nn.BatchNorm2d):
        pass

    hooked = nn.BatchNorm2d(8)
    hooked.register_forward_hook(lambda *_: None)
    assert exchanged(sparse(chain(hooked))) == {}
    assert exchanged(sparse(chain(Own(8)))) == {}
    relu = nn.ReLU()
    relu.register_forward_hook(lambda *_: None)
    model = sparse(chain(nn.BatchNorm2d(8), relu))
    assert exchanged(model) == {"1": BatchLastNorm2d}
    assert not model[1].relu


def test_a_norm_between_dense_layers_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    model = nn.Sequential(*model, nn.ReLU(), nn.Conv2d(8, 8, 1))
    # The second one feeds a sparse convolution, which wants its layout.
    assert exchanged(sparse(model, keep_dense=["0", "3"])) == {"4": BatchLastNorm2d, "5": FoldedReLU}


def test_a_module_at_two_places_is_exchanged_at_both_or_not_at_all() -> None:
    norm = nn.BatchNorm2d(8)
    model = sparse(chain(norm, nn.Conv2d(8, 8, 1), norm))
    assert isinstance(model[1], BatchLastNorm2d)
    assert model[1] is model[3]
    pool = nn.MaxPool2d(1)
    assert exchanged(sparse(nn.Sequential(pool, chain(pool)))) == {}


def test_other_types_and_a_single_sample_take_pytorchs_way() -> None:
    model = chain(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))
    double, single = sparse(copy.deepcopy(model)).double(), sparse(copy.deepcopy(model)).double()
    plain = sparse(model, batch_last=False).double()
    x = drawn(5, 3, 6, 6).double()
    torch.testing.assert_close(double(x), plain(x))
    torch.testing.assert_close(double.state_dict(), plain.state_dict())
    for each in (single.float(), plain.float()):
        each.eval()
    single.load_state_dict(plain.state_dict())
    torch.testing.assert_close(single(x[:1].float()), plain(x[:1].float()))


def test_copies_pickles_and_state_dicts_carry_everything() -> None:
    model = sparse(chain(nn.BatchNorm2d(8), nn.ReLU()))
    x = drawn(5, 3, 6, 6)
    model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert exchanged(other) == exchanged(model)
        assert_same(other(x), copy.deepcopy(model)(x))
    ordinary = sparse(chain(nn.BatchNorm2d(8), nn.ReLU()), batch_last=False)
    ordinary.load_state_dict(model.state_dict())
    torch.testing.assert_close(ordinary.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    model.load_state_dict(ordinary.state_dict())
    dense = chain(nn.BatchNorm2d(8), nn.ReLU())
    dense.load_state_dict(regrow.dense_state_dict(model))
    torch.testing.assert_close(dense.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_model_is_traced_in_the_mode_of_neither() -> None:
    model = chain(nn.BatchNorm2d(8), nn.ReLU())
    model[1].eval()
    follow_layout._traced(model)
    assert [module.training for module in model] == [True, False, True, True]


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_a_compiled_model_trains_the_same(backend: str) -> None:
    torch._dynamo.reset()
    model = sparse(chain(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)))
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for each in (model, compiled):
        for seed in range(2):
            each(drawn(5, 3, 6, 6, seed=seed)).square().sum().backward()
    torch.testing.assert_close(other.state_dict(), model.state_dict())
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch._dynamo.reset()


def curve(network: str, recipe: regrow.Recipe, backend: str, **settings: object) -> tuple[nn.Module, list[float]]:
    """Train some steps; return the model and its losses."""
    torch.manual_seed(0)
    options = {"dropout": 0.0} if network.startswith("wrn") else {}
    model = build(network, image_shape=(3, 16, 16), classes=10, **options)
    model = regrow.sparsify(model, 0.1, backend=backend, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    regrow.TopologyUpdater(model, optimizer, recipe)
    losses = []
    for step in range(5):
        images, labels = drawn(18, 3, 16, 16, seed=step), torch.arange(18) % 10
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


# Fourteen layers of ReLU amplify rounding so that after a few steps another weight may grow: there the topology stays.
@pytest.mark.parametrize(
    ("network", "recipe"),
    [
        ("vgg-small", regrow.sparse_momentum(every=3, steps=12)),
        pytest.param("wrn-16-8", regrow.static(), marks=pytest.mark.slow),
    ],
    ids=["vgg-small", "wrn-16-8"],
)
def test_a_whole_network_trains_as_in_masked_storage(network: str, recipe: regrow.Recipe) -> None:
    masked, expected = curve(network, recipe, "masked")
    fused, losses = curve(network, recipe, "cpu")
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(isinstance(norm, BatchLastNorm2d) and norm.relu for norm in norms)
    assert not any(isinstance(module, nn.ReLU) for module in fused.modules())
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert_same(regrow.masks(fused), regrow.masks(masked))
    # Rounding turns a ReLU on or off here and there, which elementwise bounds would not bear.
    for name, weight in weights(masked).items():
        assert torch.dist(weights(fused)[name], weight) <= 5e-4 * weight.norm(), name


def test_residual_networks_are_exchanged() -> None:
    model = sparse(build("resnet18", image_shape=(3, 32, 32), classes=10))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(isinstance(norm, BatchLastNorm2d) for norm in norms)
    # The second norm of a block meets the shortcut before its ReLU.
    assert sum(norm.relu for norm in norms) == 9
    assert isinstance(model.maxpool, BatchLastMaxPool2d)
    assert isinstance(model.avgpool, BatchLastAdaptiveAvgPool2d)


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_a_residual_network_with_dense_stem_and_shortcuts_is_exchanged(network: str) -> None:
    dense = build(network, image_shape=(3, 32, 32), classes=10, width=0.25)
    ordinary = {name: module for name, module in dense.named_modules() if isinstance(module, nn.Conv2d)}
    plain = sparse(copy.deepcopy(dense), keep_dense=["conv1", "*.downsample.0"], batch_last=False)
    model = sparse(dense, keep_dense=["conv1", "*.downsample.0"])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(isinstance(norm, BatchLastNorm2d) for norm in norms)
    assert isinstance(model.maxpool, BatchLastMaxPool2d)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert kinds.pop("conv1") is nn.Conv2d
    assert set(kinds.values()) == {BatchLastConv2d}
    assert all(model.get_submodule(name) is ordinary[name] for name in kinds)
    x = drawn(20, 3, 32, 32)
    outputs = [each(x) for each in (model, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    for output in outputs:
        output.square().sum().backward()
    # Rounding decides which element of a pool's window wins, and so do gradients of the layers before it.
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 2e-2 * other.grad.norm() + 1e-3, name
    assert all(type(regrow.densify(model).get_submodule(name)) is nn.Conv2d for name in kinds)


CONVOLUTIONS = {
    "one tap": {"kernel_size": 1},
    "one tap, stride and bias": {"kernel_size": 1, "stride": (2, 3), "bias": True},
    "one tap, same": {"kernel_size": 1, "padding": "same", "bias": True},
    "one tap, padded": {"kernel_size": 1, "padding": 1},
    "groups": {"kernel_size": 1, "groups": 2},
    "nine taps": {"kernel_size": 3, "padding": 1, "bias": True},
    "reflected": {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "reflect"},
}


def pairs(settings: dict[str, object]) -> tuple[nn.Conv2d, BatchLastConv2d]:
    ordinary = nn.Conv2d(8, 6, **{"bias": False, **settings})
    return ordinary, BatchLastConv2d.of(copy.deepcopy(ordinary))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_dense_convolution_with_the_batch_innermost_is_pytorchs(kind: str, dtype: torch.dtype) -> None:
    ordinary, convolution = pairs(CONVOLUTIONS[kind])
    x = drawn(5, 8, 6, 7).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    found = []
    for each, inputs in ((ordinary, x), (convolution, batch_last(x))):
        each = each.double() if dtype is torch.float64 else each
        inputs = inputs.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            output = each(inputs)
        output.float().square().sum().backward()
        found.append([output, inputs.grad, *(parameter.grad for parameter in each.parameters())])
    for expected, is_now in zip(*found, strict=True):
        torch.testing.assert_close(is_now, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert is_batch_last(found[1][1])
    assert is_batch_last(found[1][0]) == (kind in ("one tap", "one tap, stride and bias", "one tap, same"))


@pytest.mark.parametrize("settings", [CONVOLUTIONS["one tap, stride and bias"], CONVOLUTIONS["nine taps"]])
def test_a_dense_convolution_takes_everything_that_an_ordinary_one_takes(settings: dict[str, object]) -> None:
    ordinary, convolution = pairs(settings)
    for x in (drawn(5, 8, 6, 7), drawn(8, 6, 7), drawn(1, 8, 6, 7), drawn(0, 8, 6, 7)):
        torch.testing.assert_close(convolution(x), ordinary(x))
    x = batch_last(drawn(3, 8, 4, 5))
    torch.testing.assert_close(convolution(batch_last(drawn(0, 8, 6, 7))), ordinary(drawn(0, 8, 6, 7)))
    with torch.no_grad():
        torch.testing.assert_close(convolution(x), ordinary(x))
    with torch.inference_mode():
        torch.testing.assert_close(convolution(x), ordinary(x))
    torch.testing.assert_close(*(torch.func.jvp(each, (x,), (x,)) for each in (convolution, ordinary)))
    with pytest.raises(RuntimeError, match="expected input"):
        convolution(batch_last(drawn(3, 7, 4, 5)))
    double = batch_last(drawn(3, 8, 4, 5).double()).requires_grad_()
    assert torch.autograd.gradgradcheck(convolution.double(), (double,))


def test_a_dense_convolution_that_gets_no_such_input_is_left_alone_and_hooks_stay() -> None:
    hooked, called = nn.Conv2d(8, 8, 1), []
    hooked.register_forward_hook(lambda *_: called.append(1))
    model = sparse(nn.Sequential(nn.Conv2d(3, 8, 3), hooked, nn.Conv2d(8, 4, 1)), keep_dense=["1"])
    model(drawn(3, 3, 6, 6))
    assert (type(model[1]), len(called)) == (BatchLastConv2d, 1)
    first = sparse(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), keep_dense=["0"])[0]
    assert type(first) is nn.Conv2d
    shared = nn.Conv2d(3, 3, 1)
    sparse(nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared), keep_dense=["0"])
    assert type(shared) is nn.Conv2d


def test_a_parametrization_of_a_dense_convolution_outlives_densify() -> None:
    model = sparse(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)), keep_dense=["1"]).eval()
    nn.utils.parametrizations.weight_norm(model[1])
    x = drawn(3, 3, 6, 6)
    expected = model(x)
    back = regrow.densify(model)
    assert torch.nn.utils.parametrize.is_parametrized(back[1])
    torch.testing.assert_close(back(x), expected, rtol=1e-4, atol=1e-5)


def test_what_a_dense_convolution_gives_may_be_changed_in_place() -> None:
    ordinary, convolution = pairs(CONVOLUTIONS["one tap"])
    gradients = []
    for each, x in ((ordinary, drawn(3, 8, 4, 5)), (convolution, batch_last(drawn(3, 8, 4, 5)))):
        x.requires_grad_()
        output = each(x)
        output += 1
        output.relu_().square().sum().backward()
        gradients.append((x.grad, each.weight.grad))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_masked_convolution_among_sparse_ones_stays_masked() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    model = regrow.sparsify(model, 0.5, backend={"1.weight": "masked", "*": "cpu"})
    assert type(model[1]) is BatchLastConv2d
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(regrow.masks(each)["1.weight"], each[1].weight != 0)
        x = drawn(3, 3, 6, 6)
        torch.testing.assert_close(each(x), regrow.densify(copy.deepcopy(each))(x), rtol=1e-4, atol=1e-5)
    other = regrow.sparsify(nn.Sequential(*map(copy.deepcopy, regrow.densify(copy.deepcopy(model)))), 0.5, seed=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(regrow.masks(other)["1.weight"], regrow.masks(model)["1.weight"])


class OneReLU(nn.Module):
    """A residual block with a single ReLU, as torchvision's: after the first norm and after the sum."""

    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


def one_relu(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return chain(nn.BatchNorm2d(8), nn.ReLU(), OneReLU(nn.ReLU(inplace)), OneReLU(nn.ReLU(inplace)))


@pytest.mark.parametrize("inplace", [True, False])
def test_a_relu_that_also_follows_a_sum_is_folded_where_it_follows_a_norm(inplace: bool) -> None:
    model, plain = sparse(one_relu(inplace)), sparse(one_relu(inplace), batch_last=False)
    assert [type(block.relu) for block in model[3:5]] == [SharedReLU, SharedReLU]
    assert [(block.bn1.relu, block.bn2.relu) for block in model[3:5]] == [(True, False)] * 2
    calls = []
    for block in model[3:5]:
        block.relu.register_forward_hook(lambda _, inputs, output: calls.append(output is inputs[0]))
    x = drawn(6, 3, 5, 5)
    outputs = [each(x) for each in (model, plain)]
    if not inplace:
        assert calls == [True, False, True, False]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(sparse(one_relu(inplace))))):
        torch.testing.assert_close(each.eval()(x), each(x))
    assert [type(block.relu) for block in regrow.densify(model)[3:5]] == [nn.ReLU, nn.ReLU]
    assert model[3].relu.inplace is inplace


def test_a_shared_relu_applies_itself_to_whatever_is_not_the_very_output_of_a_norm() -> None:
    model = sparse(one_relu(False)).eval()
    norm, relu = model[3].bn1, model[3].relu
    rectified = norm(batch_last(drawn(6, 8, 5, 5)))
    assert relu(rectified) is rectified
    assert bool((relu(rectified - 1) >= 0).all())
    rectified -= 1
    assert bool((relu(rectified) >= 0).all())
    x = drawn(6, 3, 5, 5)
    expected = model(x)
    with torch.inference_mode():
        assert_same(model(x), expected)
    # Another module in its place: the norm leaves its output alone.
    other = sparse(one_relu(False), batch_last=False).eval()
    for each in (model, other):
        each[3].relu = nn.GELU()
    torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)
    # Another norm: ReLU is applied to it.
    for each in (model, other):
        each[4].bn1 = nn.BatchNorm2d(8).eval()
    torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)


def test_a_compiled_model_with_a_shared_relu_computes_the_same() -> None:
    model = sparse(one_relu())
    x = drawn(6, 3, 5, 5)
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), expected)
