"""Models whose norms, activations or dropout are exchanged after `sparsify` folded them, and what tracing leaves."""

import copy
import pickle

import pytest
import torch
from torch import nn

import regrow
from regrow.nn.batch_last import BatchLastNorm2d, FoldedDropout, FoldedReLU

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """One ReLU after two norms."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.one, self.two, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.one(self.first(x)))
        return self.relu(self.two(self.second(x)))


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )


def both(build):
    """Return a model whose norms follow the layout of sparse layers, and one that computes the same and has none."""
    torch.manual_seed(0)
    model = regrow.sparsify(build(), 0.6, backend="cpu")
    plain = regrow.densify(copy.deepcopy(model))
    assert any(isinstance(module, BatchLastNorm2d) for module in model.modules())
    return model, plain


def assert_equal(model, plain):
    torch.testing.assert_close(model(X), plain(X))


def to_sync_batchnorm(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def first_norm_frozen(model):
    norm = next(name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))
    setattr(model, norm, nn.BatchNorm2d(4, affine=False))
    return model


def relu_gone(model):
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.ReLU | FoldedReLU))
    setattr(model, name, nn.Identity())
    return model


def relu_replaced(model):
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.ReLU | FoldedReLU))
    setattr(model, name, nn.Tanh())
    return model


CHANGES = [to_sync_batchnorm, first_norm_frozen, relu_gone, relu_replaced]
each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
each_model = pytest.mark.parametrize("build", [chain, Block], ids=["chain", "block"])
each_way = pytest.mark.parametrize(
    "carried",
    [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["itself", "deepcopy", "pickle"],
)


@each_model
@each_change
@each_way
def test_what_was_folded_applies_itself_where_the_model_has_changed(build, change, carried):
    model, plain = both(build)
    model = carried(model)
    assert_equal(model.eval(), plain.eval())
    assert_equal(change(model).eval(), change(plain).eval())


@each_change
def test_folds_of_a_copy_are_not_those_of_the_original(change):
    model, plain = both(Block)
    change(copy.deepcopy(model))
    assert_equal(model, plain)


def test_a_folded_relu_costs_no_second_one():
    model, _ = both(chain)
    with torch.profiler.profile() as profile:
        model.eval()(X)
    assert not {"aten::relu", "aten::clamp_min"} & {event.name for event in profile.events()}


@pytest.mark.parametrize("change", [to_sync_batchnorm, relu_replaced], ids=lambda change: change.__name__)
def test_dropout_drops_once_where_the_model_has_changed(change):
    model, _ = both(chain)
    model = change(model)
    dropout = model[3].train()
    assert type(dropout) is FoldedDropout
    for place in (1, 2):
        model[place].eval()
    given, dropped = [], []
    dropout.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()))
    dropout.register_forward_hook(lambda _, inputs, output: dropped.append(output))
    model.eval()[3].train()
    model(X.repeat(16, 1, 1, 1))
    active = given[0] != 0
    torch.testing.assert_close(float((dropped[0][active] == 0).float().mean()), 0.5, rtol=0, atol=0.06)
    kept = active & (dropped[0] != 0)
    torch.testing.assert_close(dropped[0][kept], 2 * given[0][kept])


def test_another_dropout_is_the_only_one():
    model, _ = both(chain)
    model[3] = nn.Dropout(0.0)
    model[1].eval()
    torch.testing.assert_close(model[3].train()(model[:3](X)), model[:3].eval()(X))


def test_a_compiled_model_sees_that_it_has_changed():
    torch._dynamo.reset()
    model, plain = both(chain)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), plain.eval()(X))
    first_norm_frozen(model).eval(), first_norm_frozen(plain).eval()
    torch.testing.assert_close(compiled(X), plain(X))
    torch._dynamo.reset()


class Writes(nn.Module):
    """Writes into a buffer and keeps what it was given, in an attribute and in a list."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), None
        self.seen = []
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("average", torch.ones(1))

    def forward(self, x):
        self.average.mul_(0.9)
        self.scale.mul_(0.9)
        self.last = x
        self.seen.append(x)
        return self.relu(self.norm(self.conv(x))) * torch.rand(1)


def test_tracing_leaves_nothing_behind():
    model = Writes()
    state = torch.random.get_rng_state()
    regrow.sparsify(model, 0.5, backend="cpu")
    assert isinstance(model.norm, BatchLastNorm2d)
    assert (model.average, model.scale.data, model.last, model.seen) == (torch.ones(1), torch.ones(1), None, [])
    assert torch.equal(torch.random.get_rng_state(), state)
    pickle.dumps(model)
