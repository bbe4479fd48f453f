"""A training that may be one of several: each process takes every n-th sample of the batch that one would take."""

import dataclasses

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import regrow

STEPS, BATCH = 8, 8


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))


def conv():
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 6))


MODELS = {"mlp": (mlp, (12,)), "conv": (conv, (2, 3, 3))}
SOURCES = {
    "default": None,
    "exact": regrow.growth.exact(),
    "window": regrow.growth.window(2),
    "candidates": regrow.growth.candidates(2, per_nonzero=0.5),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


class Training:
    """A few steps of one process; `size` processes see the batch of one."""

    def __init__(
        self,
        rank,
        size,
        *,
        model="mlp",
        storage="cpu",
        method="sparse-momentum",
        growth="default",
        optimizer="sgd",
        given="wrapper",
        seed=0,
        settings=None,
        **wrapping,
    ):
        self.rank, self.size = rank, size
        build, self.shape = MODELS[model]
        torch.manual_seed(seed)
        step_method = regrow.methods.STEP_METHODS.get(method)
        make = step_method or regrow.methods.METHODS[method]
        what = make(every=2, steps=STEPS, **(settings or {}))
        density = 0.3
        if step_method and what.dense:
            density = 1.0
        elif not step_method and what.density is not None:
            density = what.density(0)
        if SOURCES[growth] is not None:
            what = dataclasses.replace(what, growth=SOURCES[growth])
        self.model = regrow.sparsify(build(), density, backend=storage, seed=seed).double()
        self.network = DistributedDataParallel(self.model, **wrapping) if size > 1 else self.model
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        updater = regrow.StepUpdater if step_method else regrow.TopologyUpdater
        self.topology = updater(self.network if given == "wrapper" else self.model, self.optimizer, what)

    def loss(self, step, part=0, parts=1):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(BATCH, *self.shape, generator=generator, dtype=torch.float64)
        chosen = inputs[self.rank :: self.size]
        return (self.network(chosen[part::parts]) - 1).square().mean() / parts

    def step(self, step):
        self.optimizer.zero_grad()
        self.loss(step).backward()
        self.optimizer.step()

    def positions(self):
        return {name: mask.nonzero().tolist() for name, mask in regrow.masks(self.model).items()}

    def weights(self):
        return {name: number.tolist() for name, number in regrow.dense_state_dict(self.model).items()}


def course(rank, size, **settings):
    """Return positions and weights after each step."""
    training, states = Training(rank, size, **settings), []
    for step in range(STEPS):
        training.step(step)
        states.append((training.positions(), training.weights()))
    return states


def assert_as_one(pair, **settings):
    """Assert that two processes are equal to the bit, and one process, with both batches, equal to rounding."""
    first, second = pair(course, **settings)
    assert first == second
    one = course(0, 1, **{name: value for name, value in settings.items() if name not in WRAPPING})
    for (ours, our_weights), (theirs, their_weights) in zip(first, one, strict=True):
        assert ours == theirs
        for name, weights in their_weights.items():
            torch.testing.assert_close(torch.tensor(our_weights[name]), torch.tensor(weights), rtol=1e-9, atol=1e-12)
    assert first[0][0] != first[-1][0] or settings.get("method") == "static"


WRAPPING = {"static_graph", "gradient_as_bucket_view", "find_unused_parameters", "given"}


def average_by_hand(model):
    for parameter in model.parameters():
        distributed.all_reduce(parameter.grad)
        parameter.grad /= distributed.get_world_size()
