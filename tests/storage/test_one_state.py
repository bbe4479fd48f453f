"""One state: what either storage wrote, or a dense model, loads into both; what does not fit changes nothing."""

import copy
import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import regrow
from cases import MODELS, Run, assert_same, method, model, optimization, weights
from regrow.storage import sparse_weights

SPARSE_MODELS = pytest.mark.parametrize("row", [row for row in MODELS if row.sparse], ids=lambda row: row.name)
SOURCES = pytest.mark.parametrize("source", ["masked", "cpu"])
TARGETS = pytest.mark.parametrize("target", ["masked", "cpu"])
BLOCKS = pytest.mark.parametrize("block", [(1, 1), (2, 1)], ids=str)


@SPARSE_MODELS
@SOURCES
@TARGETS
@BLOCKS
def test_a_state_loads_into_the_same_model_in_either_storage(row, source, target, block):
    torch.manual_seed(1)
    first = regrow.sparsify(row.build(), 0.3, block=block, backend=source, seed=1).eval()
    second = regrow.sparsify(row.build(), 0.3, block=block, backend=target, seed=2).eval()
    assert str(second.load_state_dict(first.state_dict())) == "<All keys matched successfully>"
    assert_same(regrow.masks(second), regrow.masks(first))
    assert_same(weights(second), weights(first))
    torch.testing.assert_close(second(row.inputs(0)), first(row.inputs(0)))


@SPARSE_MODELS
@TARGETS
def test_a_dense_state_is_taken_at_the_weights_that_exist(row, target):
    torch.manual_seed(1)
    dense = row.build()
    network = regrow.sparsify(row.build(), 0.3, backend=target)
    masks = regrow.masks(network)
    network.load_state_dict(dense.state_dict())
    assert_same(regrow.masks(network), masks)
    for name, weight in weights(network).items():
        assert torch.equal(weight, dense.get_parameter(name).detach() * masks[name])


@SOURCES
@TARGETS
def test_a_training_goes_on_in_the_other_storage(source, target):
    def run(storage):
        return Run(
            model("conv2d"), method("set").recipe(), optimization("sgd"), storage=storage, prepare=nn.Module.double
        )

    first, second = run(source).train(range(3)), run(target)
    second.model.load_state_dict(first.model.state_dict())
    second.topology.load_state_dict(first.topology.state_dict())
    first.train(range(3, 8))
    second.train(range(3, 8))
    assert_same(regrow.masks(second.model), regrow.masks(first.model))


@SOURCES
@pytest.mark.parametrize("growth", [regrow.growth.exact(), regrow.growth.candidates(2, 1)], ids=str)
def test_what_growth_looks_at_is_no_part_of_the_state(source, growth):
    recipe = dataclasses.replace(method("sparse-momentum").recipe(), growth=growth)
    run = Run(model("mlp"), recipe, optimization("sgd-nesterov"), storage=source).train(range(3))
    twin = regrow.sparsify(model("mlp").build(), 0.3, backend="cpu", seed=5)
    twin.load_state_dict(run.model.state_dict())
    assert_same(regrow.masks(twin), regrow.masks(run.model))
    assert twin[0].values.shape == twin[0].index.shape


def _unsorted(state):
    state["0.index"] = state["0.index"].flip(0)


def _twice(state):
    state["0.index"][1] = state["0.index"][0]


def _beyond(state):
    state["0.index"][-1] = 8 * 12


def _negative(state):
    state["0.index"][0] = -1


def _too_few(state):
    state["0.index"] = state["0.index"][:-1]


def _index_alone(state):
    del state["0.values"]


def _values_alone(state):
    del state["0.index"]


def _no_units(state):
    state["0.index"] = torch.arange(len(state["0.index"]), dtype=torch.int32)


BROKEN = [_unsorted, _twice, _beyond, _negative, _too_few, _index_alone, _values_alone, _no_units]


@TARGETS
@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("strict", [True, False])
def test_positions_that_do_not_fit_are_refused_and_change_nothing(target, spoil, strict):
    source = regrow.sparsify(model("mlp").build(), 0.3, block=(2, 1), backend="cpu")
    network = regrow.sparsify(model("mlp").build(), 0.3, block=(2, 1), backend=target, seed=3)
    state = copy.deepcopy(source.state_dict())
    spoil(state)
    before = copy.deepcopy(dict(network.state_dict()))
    if target == "masked" and spoil in (_index_alone, _values_alone) and not strict:
        network.load_state_dict(state, strict=False)  # nothing in it is of this storage
        assert_same(regrow.masks(network)["0.weight"], before["0.weight_mask"])
        return
    with pytest.raises(RuntimeError, match=r"0.(index|weight|values|weight_mask)"):
        network.load_state_dict(state, strict=strict)
    after = dict(network.state_dict())
    for key in ("0.values", "0.index", "0.weight", "0.weight_mask"):
        if key in before:
            assert torch.equal(after[key], before[key]), key
    network(torch.randn(4, 8)).sum().backward()


USES = {
    "forward": lambda network: network(torch.randn(3, 6, dtype=network[0].values.dtype)),
    "state_dict": lambda network: network.state_dict(),
    "dense_state_dict": regrow.dense_state_dict,
    "densify": regrow.densify,
    "summary": regrow.summary,
    "to": lambda network: network.to(torch.float64),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_an_index_written_in_place_is_refused(use, dtype):
    network = regrow.sparsify(nn.Sequential(nn.Linear(6, 4)), 0.5, backend="cpu").to(dtype)
    network[0].index.copy_(network[0].index.clone())
    use(network)
    network = regrow.sparsify(nn.Sequential(nn.Linear(6, 4)), 0.5, backend="cpu").to(dtype)
    network[0].index.copy_(torch.arange(12, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="written into the index of a sparse layer in place"):
        use(network)


def averaged(name, steps=6):
    """Return a model of sparse storage after some steps, and its average."""
    run = Run(model("mlp"), method(name).recipe(), optimization("sgd"), storage="cpu")
    average = AveragedModel(run.model)
    for seed in range(steps):
        run.step(seed)
        average.update_parameters(run.model)
    return run.model, average


def test_averages_over_different_positions_are_refused():
    _, average = averaged("set")
    with pytest.raises(RuntimeError, match="AveragedModel"):
        average(model("mlp").inputs(0))
    with pytest.raises(RuntimeError, match="AveragedModel"):
        average.state_dict()


def test_averages_over_the_same_positions_are_served():
    network, average = averaged("static")
    assert_same(regrow.masks(average.module), regrow.masks(network))
    torch.testing.assert_close(
        average(model("mlp").inputs(0)), regrow.densify(copy.deepcopy(average.module))(model("mlp").inputs(0))
    )


def test_a_state_for_one_call_has_its_own_positions():
    one, two = (regrow.sparsify(nn.Sequential(nn.Linear(6, 4)), 0.5, backend="cpu", seed=seed) for seed in (0, 1))
    x = torch.randn(3, 6)
    before = one(x)
    assert torch.equal(torch.func.functional_call(one, two.state_dict(), (x,)), two(x))
    assert torch.equal(one(x), before)


def test_a_graph_from_before_a_change_is_refused():
    network = regrow.sparsify(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), 0.5, backend="cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    topology = regrow.TopologyUpdater(network, optimizer, regrow.set(every=100, steps=1000))
    loss = network(torch.randn(3, 6)).sum()
    topology.update()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_state_loaded_under_inference_mode_trains_on():
    source, network = (regrow.sparsify(model("mlp").build(), 0.3, backend="cpu", seed=seed) for seed in (0, 1))
    state = source.state_dict()
    with torch.inference_mode():
        network.load_state_dict(state)
    network(torch.randn(4, 8)).sum().backward()
    assert network[0].values.grad is not None


@pytest.mark.parametrize(
    "settings", [{}, {"use_buffers": True, "multi_avg_fn": get_ema_multi_avg_fn(0.9)}], ids=["weights", "all"]
)
def test_averages_of_a_masked_model_have_whole_masks(settings):
    run = Run(model("mlp"), method("set").recipe(), optimization("sgd"))
    averaged = AveragedModel(run.model, **settings)
    for seed in range(6):
        run.step(seed)
        averaged.update_parameters(run.model)
    for name, mask in regrow.masks(averaged.module).items():
        assert mask.dtype == torch.bool, name


def test_positions_are_not_sent_to_other_processes_at_every_pass():
    for backend, keys in (("masked", {"0.weight_mask", "3.weight_mask"}), ("cpu", {"0.index", "3.index"})):
        network = regrow.sparsify(model("mlp").build(), 0.3, backend=backend)
        assert set(network._ddp_params_and_buffers_to_ignore) == keys
        assert not hasattr(regrow.densify(network), "_ddp_params_and_buffers_to_ignore")


def test_what_the_user_keeps_from_other_processes_stays_kept():
    network = model("mlp").build()
    network._ddp_params_and_buffers_to_ignore = ["1.running_mean"]
    assert "1.running_mean" in regrow.sparsify(network, 0.3)._ddp_params_and_buffers_to_ignore
    assert regrow.densify(network)._ddp_params_and_buffers_to_ignore == ["1.running_mean"]


def test_a_buffer_of_the_users_that_ends_like_a_mask_is_left_alone():
    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.register_buffer("inner_mask", torch.ones(4, 4))
            self.other = nn.Parameter(torch.ones(4))
            self.register_buffer("other_mask", torch.ones(4))

    network = regrow.sparsify(Masking(), 0.5)
    assert list(sparse_weights(network)) == ["inner.weight"]
    regrow.densify(network)
    assert {"inner_mask", "other_mask"} <= set(network.state_dict())


def test_a_mask_of_another_shape_is_named():
    network = regrow.sparsify(nn.Sequential(nn.Linear(6, 4)), 0.5)
    state = {**network.state_dict(), "0.weight_mask": torch.ones(3, 3, dtype=torch.bool)}
    with pytest.raises(RuntimeError, match=re.escape("0.weight_mask")):
        network.load_state_dict(state)
