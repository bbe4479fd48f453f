"""What else stands around a training loop: it gives what training without it gives, or says why not."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import regrow
from cases import Run, assert_same, each_storage, method, model, optimization

CONV, MLP, SGD = model("conv2d"), model("mlp"), optimization("sgd-nesterov")
STEPS, STOP = 8, 3
each_tried = pytest.mark.parametrize("name", ["sparse-momentum", "rigl", "set"])


def by_functional_call(run, seed):
    tensors = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
    return torch.func.functional_call(run.model, tensors, (run.case.inputs(seed),))


def checkpointed(run, seed):
    return checkpoint(run.model, run.case.inputs(seed), use_reentrant=False)


def checkpointed_reentrant(run, seed):
    return checkpoint(run.model, run.case.inputs(seed).requires_grad_(), use_reentrant=True)


def checkpointed_by_layer(run, seed):
    x = run.case.inputs(seed).requires_grad_()
    for number, layer in enumerate(run.model):
        x = checkpoint(layer, x, use_reentrant=number % 2 == 0)
    return x


@each_storage
@each_tried
@pytest.mark.parametrize(
    "outputs",
    [by_functional_call, checkpointed, checkpointed_reentrant, checkpointed_by_layer],
    ids=lambda f: f.__name__,
)
def test_another_way_through_the_model_trains_the_same_to_the_bit(outputs, name, storage):
    plain, other = (Run(CONV, method(name).recipe(), SGD, storage=storage) for _ in range(2))
    for seed in range(STEPS):
        other.optimizer.zero_grad()
        (outputs(other, seed) - 1).square().mean().backward()
        other.optimizer.step()
    assert_same(other.state(), plain.train(range(STEPS)).state())


class Ema:
    """An exponential average as in timm: a copy whose state is drawn towards the model's, tensor by tensor."""

    def __init__(self, network, decay=0.9):
        self.module, self.decay = copy.deepcopy(network).eval(), decay

    @torch.no_grad()
    def update(self, network):
        for own, other in zip(self.module.state_dict().values(), network.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.lerp_(other, 1 - self.decay)
            else:
                own.copy_(other)


def averaged(storage, name):
    run = Run(MLP, method(name).recipe(), SGD, storage=storage)
    ema, dense = Ema(run.model), {}
    for seed in range(STEPS):
        run.step(seed)
        before = dense or regrow.dense_state_dict(Run(MLP, method(name).recipe(), SGD).model)
        after = regrow.dense_state_dict(run.model)
        floating = {key for key, value in after.items() if value.is_floating_point()}
        dense = {key: torch.lerp(before[key], after[key], 1 - 0.9) if key in floating else after[key] for key in after}
        ema.update(run.model)
    ordinary = MLP.build().eval()
    ordinary.load_state_dict(dense)
    return ema.module, ordinary


@pytest.mark.parametrize(("storage", "name"), [("masked", "set"), ("masked", "sparse-momentum"), ("cpu", "static")])
def test_an_average_in_the_manner_of_timm_is_that_of_the_dense_weights(storage, name):
    ours, ordinary = averaged(storage, name)
    x = MLP.inputs(100)
    torch.testing.assert_close(ours(x), ordinary(x))


@pytest.mark.parametrize("name", ["set", "sparse-momentum"])
def test_one_of_a_sparsely_stored_model_raises_once_positions_differ(name):
    with pytest.raises(RuntimeError, match=r"regrow\.AveragedModel|must match"):
        averaged("cpu", name)


def muon_and_adamw(network, first):
    return [
        torch.optim.Muon([first], lr=0.02, momentum=0.9),
        torch.optim.AdamW([each for each in network.parameters() if each is not first], lr=0.01),
    ]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("one_updater", [True, False], ids=["one-updater", "two-updaters"])
@each_tried
def test_muon_beside_adamw_goes_on_from_their_states_to_the_bit(name, one_updater):
    def started(seed=0):
        torch.manual_seed(seed)
        keep_dense = ["3"] if one_updater else []
        network = regrow.sparsify(MLP.build(), 0.3, keep_dense=keep_dense, backend="masked", seed=seed)
        optimizers = muon_and_adamw(network, network[0].weight)
        names = [["0.weight"]] if one_updater else [["0.weight"], ["3.weight"]]
        updaters = [
            regrow.TopologyUpdater(network, optimizer, method(name).recipe(), weights=each, seed=seed)
            for optimizer, each in zip(optimizers, names, strict=False)
        ]
        return network, *optimizers, *updaters

    def train(parts, seeds):
        for seed in seeds:
            parts[0].zero_grad()
            (parts[0](MLP.inputs(seed)) - 1).square().mean().backward()
            for optimizer in parts[1:3]:
                optimizer.step()
        return parts

    whole, first, second = train(started(), range(STEPS)), train(started(), range(STOP)), started(seed=77)
    for part, other in zip(second[:3], first[:3], strict=True):
        part.load_state_dict(copy.deepcopy(other.state_dict()))
    train(second, range(STOP, STEPS))
    for one, other in zip(second, whole, strict=True):
        assert_same(dict(one.state_dict()), dict(other.state_dict()))
    assert second[3].step == STEPS


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_muon_takes_no_sparsely_stored_weight():
    network = regrow.sparsify(nn.Sequential(nn.Linear(8, 4)), 0.5, backend="cpu")
    with pytest.raises(ValueError, match="2D parameters"):
        torch.optim.Muon(network[0].parameters(), lr=0.1)
