"""backend="auto" with an example: what is measured decides, the rest is masked, and the model is left alone."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import regrow
from regrow.convert import choose as choosing
from regrow.convert.choice import Choice, remembered
from regrow.experiments.bench.steps.measure import measure
from regrow.experiments.bench.steps.report import Settings, step_configs

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Dropout(0.5), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2)
    )


@pytest.fixture
def times(monkeypatch):
    """Let given figures stand for measured ones: of layers by their dense shape, and of whole models in order.

    What is timed is run once, so that it works.
    """
    layers, models, asked = {}, [], []

    def time_layer(module, index, unit, calls):
        asked.append((module, len(index), list(calls)))
        real(module, index, unit, calls)
        return choosing._Times(*layers.get(tuple(module.weight.shape), (1.0, 2.0)))

    def time_pair(dense, sparse, seconds):
        dense(), sparse()
        whole = seconds == choosing._SECONDS_MODEL
        return choosing._Times(*(models.pop(0) if whole and models else (2.0, 1.0)))

    real = choosing._time_layer
    monkeypatch.setattr(choosing, "_time_layer", time_layer)
    monkeypatch.setattr(choosing, "_time_pair", time_pair)
    return SimpleNamespace(layers=layers, models=models, asked=asked)


def storages(model):
    return {layer.name: layer.storage for layer in regrow.summary(model).layers}


def reasons(model):
    return {layer.name: layer.reason for layer in regrow.summary(model).layers}


def test_a_storage_that_was_asked_for_has_no_reason():
    for backend in ("masked", "cpu"):
        summary = regrow.summary(regrow.sparsify(network(), 0.3, backend=backend))
        assert {(layer.reason, layer.gain) for layer in summary.layers} == {("", None)}


def test_an_example_for_a_backend_that_measures_nothing_is_refused():
    with pytest.raises(ValueError, match="example_input serves"):
        regrow.sparsify(network(), 0.3, backend="cpu", example_input=X)


def test_layers_that_gain_are_stored_sparsely_with_the_figures(times):
    times.layers[40, 6] = (10.0, 2.0)
    times.layers[30, 40] = (1.1, 1.0)
    model = regrow.sparsify(network(), 0.3, example_input=X)
    assert storages(model) == {"0.weight": "sparse", "3.weight": "masked", "5.weight": "masked"}
    first, _, third = regrow.summary(model).layers
    assert (first.gain, first.reason) == (5.0, "10 ms dense, 2 ms sparse")
    assert (third.gain, third.reason) == (0.5, "1 ms dense, 2 ms sparse")
    lines = str(regrow.summary(model)).splitlines()
    assert lines[0].split()[-2:] == ["gain", "why"]
    assert lines[2].endswith("5.00x  10 ms dense, 2 ms sparse")


def test_layers_are_called_as_the_example_calls_them(times):
    regrow.sparsify(network(), 0.5, example_input=X)
    calls = [call for _, _, calls in times.asked for call in calls]
    assert [call.shape for call in calls] == [(5, 6), (5, 40), (5, 30)]
    # the first layer's input is data: dense computes no gradient for it
    assert [call.requires_grad for call in calls] == [False, True, True]


def test_equal_layers_are_timed_once(times):
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    regrow.sparsify(model, 0.5, example_input=torch.randn(3, 8))
    assert len(times.asked) == 2  # the first wants no gradient of its input


def test_what_does_not_make_the_whole_model_faster_goes_back(times):
    times.layers.update({(40, 6): (3.0, 1.0), (30, 40): (9.0, 1.0), (2, 30): (4.0, 1.0)})
    times.models.extend([(1.0, 1.1), (1.0, 0.5)])
    model = regrow.sparsify(network(), 0.3, example_input=X)
    assert storages(model) == {"0.weight": "masked", "3.weight": "sparse", "5.weight": "masked"}
    assert reasons(model)["0.weight"] == "3 ms dense, 1 ms sparse; but the whole model gains more without"
    times.models.extend([(1.0, 1.0)] * 3)
    assert set(storages(regrow.sparsify(network(), 0.3, example_input=X)).values()) == {"masked"}


def test_the_model_is_left_as_it_was(times):
    times.layers[30, 40] = (9.0, 1.0)
    measured, plain = network(), network()
    measured[2].eval()
    torch.manual_seed(3)
    regrow.sparsify(measured, 0.3, example_input=X, seed=4)
    after = torch.rand(3)
    torch.manual_seed(3)
    torch.testing.assert_close(after, torch.rand(3), rtol=0, atol=0)
    regrow.sparsify(plain, 0.3, backend="masked", seed=4)
    expected, actual = regrow.dense_state_dict(plain), regrow.dense_state_dict(measured)
    assert set(actual) == set(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=0)
    assert [module.training for module in measured] == [True, True, False, True, True, True]
    assert all(parameter.grad is None for parameter in measured.parameters())
    assert not any(module._forward_pre_hooks for module in measured.modules())


class Odd(nn.Module):
    """Layers that cannot be stored sparsely, or are not reached."""

    def __init__(self):
        super().__init__()
        self.inner, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)
        self.core = nn.RNN(6, 6, batch_first=True)
        self.hooked = nn.Linear(6, 6)
        self.hooked.register_forward_hook(lambda *_: None)

    def forward(self, x, scale):
        return {"out": self.hooked(self.core(self.inner(x)[None])[0]) * scale}


def test_what_cannot_be_stored_sparsely_stays_masked_with_the_reason(times):
    times.layers[6, 6] = (9.0, 1.0)
    model = regrow.sparsify(Odd(), 0.5, example_input=(X, 2.0))
    found = reasons(model)
    assert storages(model)["inner.weight"] == "sparse"
    assert found["unused.weight"] == "the example input does not reach it"
    assert "hooks" in found["hooked.weight"]
    assert "only the weights of nn.Linear" in found["core.weight_ih_l0"]
    double = regrow.sparsify(network().double(), 0.5, example_input=X.double())
    assert set(reasons(double).values()) == {"no kernels for torch.float64 on cpu"}
    with torch.autocast("cpu", torch.float16):
        low = regrow.sparsify(network(), 0.5, example_input=X)
    assert set(reasons(low).values()) == {"no kernels for torch.float16 on cpu"}


def test_layers_are_timed_as_autocast_calls_them():
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        calls = choosing._observe(model, [model[0], model[3]], (X,))
    assert [each.dtype for each in calls[model[0]]] == [torch.float32]
    assert [each.dtype for each in calls[model[3]]] == [torch.bfloat16]
    assert all(each.input().dtype is each.dtype for made in calls.values() for each in made)


def test_the_reason_travels_with_the_layer_and_ends_with_its_storage(times):
    times.layers[40, 6] = (10.0, 2.0)
    model = regrow.sparsify(network(), 0.3, example_input=X)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert reasons(other) == reasons(model)
    assert remembered(model[0], "weight") == Choice("sparse", "10 ms dense, 2 ms sparse", 5.0)
    dense = regrow.densify(model)
    assert all(remembered(module, "weight") is None for module in dense.modules())


def test_a_model_of_both_storages_trains_as_a_masked_one(times):
    times.layers[30, 40] = (10.0, 2.0)
    trained = {}
    for backend, example in (("auto", X), ("masked", None)):
        model = regrow.sparsify(network(), 0.3, backend=backend, example_input=example).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        regrow.TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=2, steps=8))
        for _ in range(6):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
        trained[backend] = model
    assert set(storages(trained["auto"]).values()) == {"masked", "sparse"}
    masks, expected = (regrow.masks(trained[backend]) for backend in ("auto", "masked"))
    for name in expected:
        assert torch.equal(masks[name], expected[name])
    weights, wanted = (regrow.dense_state_dict(trained[backend]) for backend in ("auto", "masked"))
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_real_measurements_choose_something():
    model = regrow.sparsify(network(), 0.1, example_input=X)
    assert all(layer.gain and layer.gain > 0 for layer in regrow.summary(model).layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "density"),
    [
        ("mnist-lenet300-100", 128, 0.02),
        ("mnist-lenet300-100", 128, 0.1),
        pytest.param("mnist-lenet300-100", 128, 0.5, marks=pytest.mark.xfail(reason="masks alone take 4 % of 2 ms")),
        ("mnist-lenet5", 128, 0.1),
        ("mnist-lenet5", 128, 0.5),
        ("cifar10-vgg16-d", 32, 0.02),
        ("cifar10-vgg16-d", 32, 0.1),
        ("cifar10-vgg16-d", 32, 0.5),
    ],
)
def test_a_network_under_auto_is_not_slower_than_dense(name, batch, density):
    # Another process on the machine can spoil one measurement; it must not spoil three.
    settings = Settings(batch=batch, method="static", growth=None, rounds=41, seconds=15, compile_seconds=0)
    (config,) = step_configs([name], [density], settings)
    ratios = []
    for _ in range(3):
        ratios.append(measure(config, settings).ratio["dense"].median)
        if ratios[-1] >= 0.98:
            return
    pytest.fail(f"{name} at {density}: dense over sparse {ratios}")
