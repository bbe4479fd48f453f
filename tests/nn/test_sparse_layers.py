"""Sparsely stored layers: they compute, copy, save and convert as the ordinary layers they stand for."""

import copy
import dataclasses
import pickle
import re
import warnings
from itertools import product

import pytest
import torch
from torch import nn

import regrow
from cases import assert_same, model
from regrow.convert.backend import _warn_once
from regrow.core.positions import absent as positions_absent
from regrow.ops import native
from regrow.ops.pattern import Geometry
from regrow.storage import sparse_weights

# name: (the ordinary layer, an input)
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (6, 7)),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (6, 7)),
    "linear of one vector": (lambda: nn.Linear(7, 5), (7,)),
    "linear of sequences": (lambda: nn.Linear(7, 5), (2, 3, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "conv1d without a batch": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv1d strided": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (2, 4, 9)),
    "conv1d same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 5)),
    "conv2d without a batch": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 5)),
    "conv2d valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 5)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, (2, 5), padding="same", dilation=(3, 1)), (2, 4, 7, 5)),
    "conv2d strided": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 3), (1, 2), (1, 2), bias=False), (2, 4, 7, 5)),
    "conv2d grouped": (lambda: nn.Conv2d(6, 9, 3, stride=2, padding=1, groups=3), (2, 6, 7, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 7, 5)),
}
each_layer = pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS.keys())
each_density = pytest.mark.parametrize("density", [0.3, 1.0])
each_copy = pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)


each_precision = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["reference", "kernels"])


def both(build, density=0.3, dtype=torch.float64):
    """Return the ordinary layer with zeros, and the sparsely stored one."""
    dense = nn.Sequential(build()).to(dtype)
    sparse = regrow.sparsify(copy.deepcopy(dense), density, backend="cpu")
    dense.load_state_dict(regrow.dense_state_dict(sparse))
    return dense, sparse


@each_layer
@each_density
@each_precision
def test_outputs_and_gradients_are_those_of_the_ordinary_layer(build, shape, density, dtype):
    dense, sparse = both(build, density, dtype)
    inputs = [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [layer(x) for layer, x in zip((dense, sparse), inputs, strict=True)]
    assert outputs[0].shape == outputs[1].shape
    torch.testing.assert_close(outputs[1], outputs[0])
    seen = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(seen)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(sparse[0].values.grad, dense[0].weight.grad.flatten()[sparse[0].index])
    if dense[0].bias is not None:
        torch.testing.assert_close(sparse[0].bias.grad, dense[0].bias.grad)


@each_layer
@each_precision
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9, 1.0])
def test_gradients_of_absent_weights_are_those_of_the_ordinary_layer(build, shape, dtype, share):
    dense, sparse = both(build, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    output = dense(x)
    seen = torch.randn_like(output)
    output.backward(seen)
    expected = dense[0].weight.grad.flatten()
    (weight,) = sparse_weights(sparse).values()
    absent = positions_absent(weight.index(), weight.numel)
    positions = absent[torch.randperm(len(absent))[: round(share * len(absent))]].sort().values
    weight.cover(None if share == 1.0 else positions, {})
    watched = sparse(x)
    torch.testing.assert_close(watched, output)
    watched.backward(seen)
    for at in (positions, weight.index()):
        torch.testing.assert_close(weight.at(weight.weight.grad, at), expected[at])


def test_gradients_of_absent_weights_are_put_together_from_parts(monkeypatch):
    monkeypatch.setattr("regrow.ops.gradient._CHUNK", 5)
    monkeypatch.setattr("regrow.ops.gradient._ROWS", 5)
    monkeypatch.setattr("regrow.ops.dense_gradient._COPIED", 200)
    monkeypatch.setattr("regrow.ops.dense_gradient._MADE", 50)
    monkeypatch.setattr("regrow.ops.dense_gradient._OUTPUTS", 4)
    for name in ("conv2d grouped", "conv2d strided", "conv2d", "linear"):
        for share, dtype in product((0.4, 0.9, 1.0), (torch.float32, torch.float64)):
            test_gradients_of_absent_weights_are_those_of_the_ordinary_layer(*LAYERS[name], dtype, share)


@each_layer
def test_the_ordinary_layer_comes_back(build, shape):
    plain = nn.Sequential(build()).double().eval()
    before = copy.deepcopy(plain)
    mask = regrow.masks(regrow.sparsify(copy.deepcopy(plain), 0.3))["0.weight"]
    sparse = regrow.sparsify(plain, masks={"0.weight": mask}, backend="cpu")
    assert not sparse[0].training
    back = regrow.densify(sparse)
    assert type(back[0]) is type(before[0])
    assert str(back) == str(before)
    assert not back[0].training
    assert torch.equal(back[0].weight, before[0].weight * mask)
    assert back.state_dict().keys() == before.state_dict().keys()


@pytest.mark.parametrize("count", [0, 1, 35])
def test_a_layer_may_have_no_weight_one_or_all(count):
    mask = torch.zeros(35, dtype=torch.bool)
    mask[torch.randperm(35)[:count]] = True
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(7, 5)), masks={"0.weight": mask.view(5, 7)}, backend="cpu")
    sparse(torch.randn(3, 7)).sum().backward()
    assert sparse[0].values.grad.shape == (count,)
    assert torch.equal(regrow.masks(sparse)["0.weight"].flatten(), mask)


def test_the_index_structure_is_made_once():
    sparse = regrow.sparsify(model("mlp").build(), 0.3, backend="cpu")
    pattern = sparse[0].pattern
    sparse(torch.randn(4, 8))
    sparse.load_state_dict(sparse.state_dict())
    assert sparse[0].pattern is pattern


def test_another_number_of_weights_can_be_loaded_into_the_same_parameters():
    source, target = (regrow.sparsify(model("mlp").build(), d, backend="cpu") for d in (0.5, 0.2))
    parameters = list(target.parameters())
    x = torch.randn(4, 8)
    alive = target(x).sum()  # a graph of the old shape
    alive.backward()
    target.load_state_dict(source.state_dict())
    assert all(a is b for a, b in zip(parameters, target.parameters(), strict=True))
    assert_same(target.state_dict(), source.state_dict())
    target(x).sum().backward()
    assert target[0].values.grad.shape == target[0].values.shape == source[0].values.shape


def test_a_state_of_another_shape_is_refused_and_changes_nothing():
    source = regrow.sparsify(nn.Sequential(nn.Linear(9, 9)), 0.5, backend="cpu")
    target = regrow.sparsify(nn.Sequential(nn.Linear(7, 5)), 0.5, backend="cpu")
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(RuntimeError, match=re.escape("0.index does not fit this layer")):
        target.load_state_dict(source.state_dict())
    assert_same(dict(target.state_dict()), dict(before))


@each_copy
def test_a_copy_made_while_absent_weights_are_covered_covers_none(copied):
    sparse = regrow.sparsify(model("mlp").build(), 0.3, backend="cpu")
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1, momentum=0.9)
    topology = regrow.TopologyUpdater(sparse, optimizer, regrow.sparse_momentum(every=2, steps=8))
    assert sparse[0].covered is not None
    twin = copied(sparse)
    assert twin[0].covered is None
    assert torch.equal(twin.eval()(torch.ones(1, 8)), sparse.eval()(torch.ones(1, 8)))
    topology.remove()
    assert sparse[0].covered is None


@each_copy
def test_a_copy_of_units_computes_and_trains_as_the_original(copied):
    sparse = regrow.sparsify(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)), 0.3, block=(4, 1), backend="cpu")
    twin, x = copied(sparse), torch.randn(20, 4, 7, 6)
    assert twin[0].pattern.unit == (4, 1)
    for network in (sparse, twin):
        network(x).square().sum().backward()
    for ours, theirs in zip(twin.parameters(), sparse.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_dtypes_follow_and_positions_stay_whole_numbers():
    sparse = regrow.sparsify(model("conv2d").build(), 0.3, backend="cpu").to(torch.bfloat16)
    assert sparse[0].values.dtype == torch.bfloat16
    assert sparse[0].index.dtype == torch.int32
    assert sparse(model("conv2d").inputs(0).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(8, 12), (4, 8)), (nn.Conv2d(3, 4, 3), (4, 3, 8, 8))])
def test_what_follows_may_work_in_place(layer, shape):
    sparse = regrow.sparsify(nn.Sequential(layer), 0.3, backend="cpu")
    x = torch.randn(shape)
    copied, in_place = (sparse(x) for _ in range(2))
    expected = torch.autograd.grad(copied.relu().square().sum(), list(sparse.parameters()))
    actual = torch.autograd.grad(in_place.relu_().square().sum(), list(sparse.parameters()))
    torch.testing.assert_close(actual, expected)


def test_what_follows_may_work_in_place_on_a_watched_output():
    plain = nn.Sequential(nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Linear(12, 5))
    sparse = regrow.sparsify(plain, 0.3, backend="cpu")
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1, momentum=0.9)
    regrow.TopologyUpdater(sparse, optimizer, regrow.sparse_momentum(every=2, steps=8))
    sparse(torch.randn(4, 8)).sum().backward()


def mixture():
    """Return a model whose first layer is stored sparsely and whose last is masked."""
    first = regrow.sparsify(nn.Sequential(nn.Linear(8, 12), nn.ReLU()), 0.3, backend="cpu")
    return nn.Sequential(*first, *regrow.sparsify(nn.Sequential(nn.Linear(12, 5)), 0.4))


def test_a_model_may_mix_storages():
    mixed = mixture()
    assert {name: int(mask.sum()) for name, mask in regrow.masks(mixed).items()} == {"0.weight": 29, "2.weight": 24}
    assert [row.storage for row in regrow.summary(mixed).layers] == ["sparse", "masked"]
    assert [weight.storage for weight in sparse_weights(mixed).values()] == ["sparse", "masked"]
    plain = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5))
    state = regrow.dense_state_dict(mixed)
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)
    x = torch.randn(4, 8)
    torch.testing.assert_close(mixed(x), plain(x))
    back = regrow.densify(mixed)
    torch.testing.assert_close(back(x), plain(x))
    assert regrow.masks(back) == {}


@pytest.mark.parametrize("growth", [regrow.growth.exact(), regrow.growth.window(3), regrow.growth.candidates(2, 1)])
def test_a_mixture_trains_and_exchanges_weights(growth):
    mixed = mixture()
    optimizer = torch.optim.SGD(mixed.parameters(), lr=0.1, momentum=0.9)
    recipe = regrow.sparse_momentum(every=3, steps=12)
    recipe = dataclasses.replace(recipe, growth=growth)
    before = regrow.masks(mixed)
    regrow.TopologyUpdater(mixed, optimizer, recipe)
    for _ in range(12):
        optimizer.zero_grad()
        mixed(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    after = regrow.masks(mixed)
    assert sum(int(mask.sum()) for mask in after.values()) == 29 + 24
    assert all(not torch.equal(after[name], before[name]) for name in after)


def test_a_layer_at_several_places_stays_one_layer():
    layer = nn.Linear(8, 8)
    shared = nn.Sequential(layer, nn.Tanh(), layer)
    plain = copy.deepcopy(shared)
    regrow.sparsify(shared, 0.5, backend="cpu")
    assert shared[0] is shared[2]
    assert list(regrow.masks(shared)) == ["0.weight"]
    plain.load_state_dict(regrow.dense_state_dict(shared))
    x = torch.randn(4, 8)
    torch.testing.assert_close(shared(x), plain(x))
    back = regrow.densify(shared)
    assert back[0] is back[2]


class Unusual(nn.Linear):
    """A subclass, which may use its weight in ways of its own."""


def tied():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    network[1].weight = network[0].weight
    return network


def hooked():
    network = nn.Sequential(nn.Linear(8, 8))
    network[0].register_forward_hook(lambda *_: None)
    return network


# name: (the model, the weight, the cause)
REFUSED = {
    "transposed": (model("transposed2d").build, "0.weight", "ConvTranspose2d.weight has none"),
    "conv3d": (model("conv3d").build, "0.weight", "Conv3d.weight has none"),
    "attention": (model("attention").build, "attention.in_proj_weight", "MultiheadAttention multiplies by it itself"),
    "attention's output": (model("attention").build, "attention.out_proj.weight", "multiplies by it itself"),
    "recurrent": (model("gru").build, "core.weight_ih_l0", "GRU.weight_ih_l0 has none"),
    "subclass": (lambda: nn.Sequential(Unusual(8, 8)), "0.weight", "Unusual.weight has none"),
    "tied": (tied, "0.weight", "it is tied to '1.weight'"),
    "padding": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding_mode="circular")), "0.weight", "'circular'"),
    "hooks": (hooked, "0.weight", "hooks"),
}


@pytest.mark.parametrize(("build", "name", "cause"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_stored_is_refused_with_its_name_and_the_mend(build, name, cause):
    network = build()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    reason = f"{re.escape(repr(name))}[^\n]*: [^\n]*{re.escape(cause)}"
    line = f"^sparse storage cannot hold [^\n]*{reason}[^\n]*keep_dense[^\n]*masked"
    with pytest.raises(ValueError, match=line):
        regrow.sparsify(network, 0.5, backend="cpu")
    assert_same(dict(network.state_dict()), before)
    regrow.sparsify(network, 0.5, backend="masked")


def test_without_the_kernels_or_off_the_cpu_it_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"'0.weight': it is on meta, and the kernels compute on the CPU"):
        regrow.sparsify(nn.Sequential(nn.Linear(7, 5, device="meta")), 0.5, backend="cpu")
    monkeypatch.setattr("regrow.ops.native._kernels", None)
    with pytest.raises(ValueError, match=r"'0.weight': regrow was installed without its compiled kernels; reinstall"):
        regrow.sparsify(nn.Sequential(nn.Linear(7, 5)), 0.5, backend="cpu")


def test_what_an_installation_lacks_is_said_once(monkeypatch):
    _warn_once.cache_clear()

    def sparsified():
        return regrow.sparsify(nn.Sequential(nn.Linear(256, 256)), 0.05)

    monkeypatch.setattr("regrow.ops.native._kernels", None)
    with pytest.warns(UserWarning, match="without its compiled kernels; .* stored masked") as caught:
        masked = sparsified()
    assert caught[0].filename == __file__
    assert "without its compiled kernels" in regrow.summary(masked).stored
    # nothing is lacking where storage was asked for
    _warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regrow.sparsify(nn.Sequential(nn.Linear(256, 256)), 0.05, backend="masked")


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_of_one_thread_are_mentioned_where_there_are_more(threads, monkeypatch):
    _warn_once.cache_clear()
    monkeypatch.setattr("regrow.ops.native.on_one_thread", lambda: True)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regrow.sparsify(nn.Sequential(nn.Linear(256, 256)), 0.05)
    assert [native.ONE_THREAD in str(each.message) for each in caught] == [True] * (threads - 1)


def test_a_bare_layer_has_nothing_to_hold_its_replacement():
    with pytest.raises(ValueError, match=r"wrap it in nn.Sequential first"):
        regrow.sparsify(nn.Linear(8, 8), 0.5, backend="cpu")
    layer = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5, backend="cpu")[0]
    with pytest.raises(ValueError, match=r"call its to_dense\(\)"):
        regrow.densify(layer)


@pytest.mark.parametrize("stacked", [False, True])
def test_the_perceptron_of_a_transformer_that_reads_its_weights_in_evaluation_computes_the_same(stacked):
    dense = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    dense = nn.TransformerEncoder(dense, 2) if stacked else nn.Sequential(dense)
    backend = {"*linear?": "cpu", "*attn*": "masked"}
    sparse = regrow.sparsify(copy.deepcopy(dense), 0.5, backend=backend)
    assert sum(weight.storage == "sparse" for weight in sparse_weights(sparse).values()) == (4 if stacked else 2)
    dense.load_state_dict(regrow.dense_state_dict(sparse))
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) > torch.tensor([[4], [2], [3]])
    for training in (True, False):
        outputs = [network.train(training)(x) for network in (dense, sparse)]
        torch.testing.assert_close(outputs[1], outputs[0])
        with torch.no_grad():  # the fast path of PyTorch, for the dense one
            settings = {"src_key_padding_mask": padding} if stacked else {}
            outputs = [network(x, **settings) for network in (dense, sparse)]
        kept = ~padding if stacked else slice(None)
        torch.testing.assert_close(outputs[1][kept], outputs[0][kept])


def test_the_table_counts_all_that_a_layer_holds():
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(100, 50)), 0.1, backend="cpu")
    table = regrow.summary(sparse, torch.zeros(2, 100))
    pattern = sparse[0].pattern
    groups = (*pattern.forward_blocks(Geometry()), *pattern.transposed_blocks(Geometry()))
    held = 500 * (4 + 4) + sum(tensor.nbytes for tensor in groups)  # values, positions, and what kernels read
    assert table.layers[0].bytes == held
    assert table.bytes == held + 50 * 4
    assert table.flops == 2 * 500
    conv = regrow.sparsify(nn.Sequential(nn.Conv2d(4, 8, 3)), 0.5, backend="cpu")
    assert regrow.summary(conv, torch.zeros(2, 4, 6, 5)).flops == 2 * 144 * 12
