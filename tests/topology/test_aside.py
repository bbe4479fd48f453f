"""While growth gathers, known optimizers step only active weights: the rest is as if they stepped all."""

import copy

import pytest
import torch
from torch import nn

import regrow
from regrow.core.growth import candidates, exact, window
from regrow.storage import sparse_weights
from regrow.topology.averages import average_of

EVERY, STEPS = 6, 20
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "dampening": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5, foreach=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=True),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Training:
    """A small sparse network in training, at first with hooks of its own on the optimizer."""

    def __init__(self, make=OPTIMIZERS["nesterov"], growth=None, *, after=(), before=(), method=regrow.sparse_momentum):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()
        self.model = regrow.sparsify(network, 0.2, backend="cpu")
        self.optimizer = make(self.model.parameters())
        for hook in after:
            self.optimizer.register_step_post_hook(hook)
        recipe = regrow.sparse_momentum(every=EVERY, steps=STEPS, growth=growth)
        self.topology = regrow.TopologyUpdater(self.model, self.optimizer, recipe)
        for hook in before:
            self.optimizer.register_step_pre_hook(hook)
        self.generator = torch.Generator().manual_seed(1)

    @property
    def weight(self):
        return sparse_weights(self.model)["0.weight"]

    def backward(self):
        self.optimizer.zero_grad()
        x = torch.randn(32, 12, generator=self.generator, dtype=torch.float64)
        self.model(x).square().mean().backward()

    def steps(self, number):
        for _ in range(number):
            self.backward()
            self.optimizer.step()
        return self

    def state(self):
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.model.state_dict().values(), *(parameter.data for parameter in self.model.parameters()), *moments]


def assert_equal(training, other):
    for left, right in zip(training.state(), other.state(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-15)


@each_optimizer
@pytest.mark.parametrize("growth", [window(3), exact(), candidates(3, 2)], ids=str)
def test_it_is_as_if_the_optimizer_stepped_all(make, growth):
    seen = []

    def see(optimizer, *_):
        seen.append(training.weight.weight.numel() == training.weight.nonzeros())

    # A hook behind the updater's own may need the whole gradient: then the optimizer has all weights.
    training, whole = Training(make, growth, after=[see]), Training(make, growth, before=[lambda *_: None])
    for _ in range(STEPS):
        assert_equal(training.steps(1), whole.steps(1))
    assert whole.topology.step == STEPS
    # all but the first, in which the optimizer has no averages yet
    assert all(seen[1:])


@each_optimizer
def test_a_step_sees_the_gradient_of_active_weights_and_leaves_that_of_all(make):
    seen = []

    def see(optimizer, *_):
        parameter = training.weight.weight
        seen.append((parameter.shape, parameter.grad.shape))

    training = Training(make, window(3), after=[see])
    training.steps(EVERY - 2).backward()
    gradient = training.weight.weight.grad
    assert gradient.numel() == training.weight.numel
    kept = gradient.clone()
    training.optimizer.step()
    assert training.weight.weight.grad is gradient
    assert torch.equal(gradient, kept)
    assert seen[-1] == ((training.weight.nonzeros(),),) * 2


def test_an_optimizer_that_is_not_known_steps_all():
    class Own(torch.optim.SGD):
        pass

    seen = []

    def see(optimizer, *_):
        seen.append(training.weight.weight.numel())

    training = Training(lambda parameters: Own(parameters, lr=0.1, momentum=0.9), exact(), after=[see])
    training.steps(3)
    assert set(seen) == {training.weight.numel}


@pytest.mark.parametrize(
    "settings",
    [{"maximize": True}, {"differentiable": True}, {"fused": True}, {"momentum": 0.0}, {"foreach": True}],
    ids=str,
)
def test_only_what_is_known_of_the_settings_is_followed(settings):
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], **{"lr": 0.1, "momentum": 0.9, **settings})
    known = settings.keys() <= {"foreach"}
    state = {"momentum_buffer": torch.zeros(2)}
    assert (average_of(optimizer, optimizer.param_groups[0], state) is not None) == known


class FailedError(Exception):
    pass


def fail_in(step):
    left = [step]

    def hook(*_):
        left[0] -= 1
        if left[0] == 0:
            raise FailedError

    return hook


@pytest.mark.parametrize("again", [True, False])
def test_after_a_step_that_failed_the_training_goes_on(again):
    training = Training(growth=window(3), after=[fail_in(EVERY - 1)]).steps(EVERY - 2)
    training.backward()
    with pytest.raises(FailedError):
        training.optimizer.step()
    if again:
        training.backward()
        assert training.weight.weight.grad.numel() == training.weight.nonzeros()
    training.steps(STEPS)
    assert training.topology.step == EVERY - 2 + STEPS
    assert training.weight.nonzeros() + sparse_weights(training.model)["2.weight"].nonzeros() == round(0.2 * 320)


def test_what_a_step_that_failed_left_is_undone_before_a_step_of_all_weights():
    training = Training(OPTIMIZERS["sgd"], exact(), after=[fail_in(4)]).steps(3)
    parameter = training.weight.weight
    before = training.optimizer.state[parameter]["momentum_buffer"].clone()
    training.backward()
    with pytest.raises(FailedError):
        training.optimizer.step()
    training.optimizer.register_step_pre_hook(lambda *_: None)
    training.steps(1)
    absent = ~training.weight.mask().flatten()
    after = training.optimizer.state[parameter]["momentum_buffer"]
    # the layer did not look at absent weights after the step that failed
    assert torch.equal(after[absent], 0.9 * before[absent])
    assert training.topology.step == 4


def test_after_a_step_that_failed_the_state_is_whole():
    training = Training(growth=window(3), after=[fail_in(EVERY - 1)]).steps(EVERY - 2)
    training.backward()
    with pytest.raises(FailedError):
        training.optimizer.step()
    other = Training(growth=window(3))
    other.model.load_state_dict(training.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    other.generator.set_state(training.generator.get_state())
    assert_equal(training, other)
    training.steps(1)
    other.steps(1)
    assert_equal(training, other)
