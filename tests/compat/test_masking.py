"""The calls of the authors' library: their loop runs with another import, and does what regrow's own lines do."""

import argparse
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import regrow
from regrow.compat import CosineDecay, LinearDecay, Masking, add_sparse_args, masking

EPOCHS, BATCHES = 3, 4


@pytest.fixture(autouse=True)
def _told(request):
    """Say the warning of the module once, so that a test of it alone sees it."""
    masking._tell.cache_clear()
    if "once" not in request.node.name:
        with pytest.warns(UserWarning, match="a way over"):
            masking._tell()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 6 * 6, 20)
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).flatten(1)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)


def loader():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(BATCHES)
    ]


def network():
    torch.manual_seed(0)
    return Network()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)


def masked(model=None, density=0.1, **modes):
    model = model or network()
    mask = Masking(sgd(model), CosineDecay(0.5, EPOCHS * BATCHES), **modes)
    mask.add_module(model, density=density)
    return model, mask


def train(model, step, at_end_of_epoch, epochs=EPOCHS):
    """Train in the shape of the authors' loop: an update at the end of every epoch but the last."""
    for epoch in range(1, epochs + 1):
        for data, target in loader():
            model.zero_grad()
            F.nll_loss(model(data), target).backward()
            step()
        if epoch < epochs:
            at_end_of_epoch()


def test_a_script_in_the_shape_of_the_authors_runs_and_stays_sparse(capsys):
    parser = argparse.ArgumentParser()
    add_sparse_args(parser)
    args = parser.parse_args(["--density", "0.2", "--growth", "momentum", "--verbose"])
    model = network()
    before = dict(model.named_parameters())
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 8, gamma=0.1)
    mask = None
    if not args.dense:
        decay = CosineDecay(args.prune_rate, EPOCHS * BATCHES)
        mask = Masking(
            optimizer,
            decay,
            prune_rate=args.prune_rate,
            prune_mode=args.prune,
            growth_mode=args.growth,
            redistribution_mode=args.redistribution,
            verbose=args.verbose,
            fp16=False,
        )
        mask.add_module(model, density=args.density)
    first = mask.masks

    def step():
        mask.step()
        scheduler.step()

    train(model, step, mask.at_end_of_epoch)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert set(mask.masks) == {"conv.weight", "fc1.weight", "fc2.weight"}
    total = sum(each.numel() for each in first.values())
    assert sum(int(each.sum()) for each in mask.masks.values()) == round(0.2 * total)
    assert any(not torch.equal(first[name], each) for name, each in mask.masks.items())
    for name, each in mask.masks.items():
        assert model.get_parameter(name)[~each].count_nonzero() == 0
    assert mask.steps == EPOCHS * BATCHES
    printed = capsys.readouterr().out
    assert printed.count("prune rate") == EPOCHS - 1
    assert "conv.weight: 11 -> " in printed


def own(recipe, density=0.1, **settings):
    """Train by regrow's own calls, the updates asked for at the end of an epoch; return the masks."""
    model = regrow.sparsify(network(), density, backend="masked", batch_last=False, **settings)
    optimizer = sgd(model)
    topology = regrow.TopologyUpdater(model, optimizer, replace(recipe, update_at=regrow.schedule.never()))
    train(model, optimizer.step, topology.update)
    return regrow.masks(model), model.state_dict()


def test_masks_and_weights_are_those_of_regrows_own_sparse_momentum():
    model, mask = masked()
    train(model, mask.step, mask.at_end_of_epoch)
    masks, state = own(regrow.sparse_momentum(BATCHES, EPOCHS * BATCHES))
    assert masks.keys() == mask.masks.keys()
    assert all(torch.equal(each, mask.masks[name]) for name, each in masks.items())
    assert all(torch.equal(each, model.state_dict()[name]) for name, each in state.items())


def shared(share):
    return {
        "redistribute": regrow.redistribute.by_share(share, at_least=1, fill=0.99, overflow="equal"),
        "rates": regrow.redistribute.spare_full_by(share),
    }


SCORE, SHARE = regrow.score, regrow.redistribute
MODES = {
    "SET": ({"prune_mode": "SET"}, {"drop": SCORE.magnitude_by_sign}),
    "global": (
        {"prune_mode": "global_magnitude"},
        {"drops": SHARE.lowest_of_all(SCORE.magnitude), "rates": None},
    ),
    "random": ({"growth_mode": "random"}, {"grow": SCORE.random}),
    "global growth": (
        {"growth_mode": "global_momentum_growth"},
        {"redistribute": SHARE.by_rank(SCORE.momentum)},
    ),
    "magnitude": ({"redistribution_mode": "magnitude"}, shared(SHARE.mean_of(SCORE.magnitude))),
    "nonzero": ({"redistribution_mode": "nonzero"}, shared(SHARE.nonzeros)),
    "none": ({"redistribution_mode": "none"}, shared(SHARE.weights)),
}


@pytest.mark.parametrize("density", [0.1, 0.85])  # in the second full layers are spared
@pytest.mark.parametrize("modes", MODES)
def test_every_mode_is_the_rule_of_that_name(modes, density):
    asked, parts = MODES[modes]
    model, mask = masked(density=density, **asked)
    train(model, mask.step, mask.at_end_of_epoch)
    recipe = regrow.sparse_momentum(BATCHES, EPOCHS * BATCHES)
    masks, _ = own(replace(recipe, **parts), density)
    assert all(torch.equal(each, mask.masks[name]) for name, each in masks.items())
    if density == 0.1:
        others, _ = own(recipe, density)
        assert any(not torch.equal(each, masks[name]) for name, each in others.items())


def test_what_an_output_grows_is_shared_by_momentum_neuron():
    model, mask = masked(growth_mode="momentum_neuron")
    train(model, mask.step, mask.at_end_of_epoch)
    plain, other = masked()
    train(plain, other.step, other.at_end_of_epoch)
    assert any(not torch.equal(each, other.masks[name]) for name, each in mask.masks.items())


@pytest.mark.parametrize(
    ("remove", "left_out"),
    [
        (lambda mask: mask.remove_weight("fc1"), ["fc1"]),
        (lambda mask: mask.remove_weight("fc1.weight"), ["fc1"]),
        (lambda mask: mask.remove_weight_partial_name("fc"), ["fc*"]),
        (lambda mask: mask.remove_type(nn.Conv2d), [nn.Conv2d]),
        (lambda mask: (mask.remove_weight("fc1"), mask.remove_type(nn.Conv2d)), ["fc1", nn.Conv2d]),
        (lambda mask: (mask.remove_type(nn.BatchNorm2d), mask.remove_weight_partial_name("bias")), []),
        (lambda mask: mask.remove_weight("norm"), []),
    ],
)
def test_what_is_removed_is_left_dense_as_by_keep_dense(remove, left_out):
    model, mask = masked()
    remove(mask)
    expected = regrow.sparsify(network(), 0.1, keep_dense=left_out, backend="masked", batch_last=False)
    assert {name: each.tolist() for name, each in mask.masks.items()} == {
        name: each.tolist() for name, each in regrow.masks(expected).items()
    }
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
    train(model, mask.step, mask.at_end_of_epoch)
    assert sum(map(int, (each.sum() for each in mask.masks.values()))) == sum(
        int(each.sum()) for each in regrow.masks(expected).values()
    )


def test_names_to_remove_may_be_given_with_the_module():
    model = network()
    mask = Masking(sgd(model), LinearDecay(0.5, 10))
    mask.add_module(model, 0.1, remove_param_names=("conv", "fc2"))
    assert set(mask.masks) == {"fc1.weight"}


def test_the_topology_is_updated_every_k_steps():
    model, mask = masked(prune_every_k_steps=2)
    changed, last = [], mask.masks
    for number, (data, target) in enumerate(loader(), 1):
        F.nll_loss(model(data), target).backward()
        mask.step()
        if any(not torch.equal(each, last[name]) for name, each in mask.masks.items()):
            changed.append(number)
        last = mask.masks
    assert changed == [2, 4]


@pytest.mark.parametrize("decay", [CosineDecay, LinearDecay])
def test_the_prune_rate_falls_with_the_steps(decay):
    model = network()
    mask = Masking(sgd(model), decay(0.4, EPOCHS * BATCHES))
    mask.add_module(model, 0.1)
    rates = [mask.prune_rate]
    train(model, lambda: (mask.step(), rates.append(mask.prune_rate)), lambda: None)
    assert rates[0] == 0.5  # what `Masking` was given, until the decay has stepped
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0.005 if decay is CosineDecay else 0.0)


def test_the_cosine_is_that_of_pytorch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, 0.005)
    ours = CosineDecay(0.5, 20)
    for _ in range(20):
        optimizer.step()
        theirs.step()
        ours.step()
        assert ours.get_dr(0.5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_weights_that_are_not_zero_make_the_masks_of_a_resumed_model():
    trained, mask = masked()
    train(trained, mask.step, mask.at_end_of_epoch)
    weights = regrow.dense_state_dict(trained)
    model = network()
    model.load_state_dict(weights)
    resumed = Masking(sgd(model), CosineDecay(0.5, 10))
    resumed.add_module(model, density=0.1, sparse_init="resume")
    assert all(torch.equal(each, weights[name] != 0) for name, each in resumed.masks.items())


def test_linear_spreads_weights_as_erdos_renyi_kernel_does():
    model = network()
    mask = Masking(sgd(model), CosineDecay(0.5, 10))
    mask.add_module(model, 0.2, sparse_init="linear")
    expected = regrow.sparsify(network(), 0.2, distribution="erdos-renyi-kernel", backend="masked", batch_last=False)
    assert {name: each.tolist() for name, each in mask.masks.items()} == {
        name: each.tolist() for name, each in regrow.masks(expected).items()
    }


def test_several_modules_make_one_pool():
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(30, 20), nn.Linear(20, 30)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01)
    mask = Masking(optimizer, CosineDecay(0.5, 10))
    mask.add_module(encoder, 0.2)
    mask.add_module(decoder, 0.4)
    before = {name: int(each.sum()) for name, each in mask.masks.items()}
    assert before == {"0.weight": 120, "1.weight": 240}
    x = torch.randn(16, 30)
    for _ in range(3):
        optimizer.zero_grad()
        (decoder(encoder(x).tanh()) - x).square().mean().backward()
        mask.step()
        mask.truncate_weights()
    after = {name: int(each.sum()) for name, each in mask.masks.items()}
    assert after != before
    assert sum(after.values()) == 360


def test_the_warning_comes_once():
    with pytest.warns(UserWarning, match="a way over"):
        masked()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"growth_mode": "gradient"}, ValueError, "no growth_mode 'gradient': choose among momentum, random"),
        ({"prune_mode": lambda *_: None}, TypeError, r"regrow\.Recipe"),
        ({"fp16": True}, ValueError, "autocast"),
    ],
)
def test_what_is_not_there_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        masked(**settings)


def test_calls_out_of_turn_are_refused():
    model = network()
    mask = Masking(sgd(model), CosineDecay(0.5, 10))
    with pytest.raises(RuntimeError, match="add_module"):
        mask.step()
    with pytest.raises(ValueError, match="no sparse_init 'dense'"):
        mask.add_module(model, 0.1, sparse_init="dense")
    mask.add_module(model, 0.1)
    with pytest.raises(ValueError, match="no parameter 'fc9'"):
        mask.remove_weight("fc9")
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    mask.step()
    with pytest.raises(RuntimeError, match="before the first step"):
        mask.remove_weight("fc1")
