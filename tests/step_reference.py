"""The methods that act in every step once more: plain loops and autograd on a dense model, from their definitions.

Each has what the network computes with (`effective`, differentiable), what it adds to the loss, and what it does after
the optimizer's step on the dense weights, which are the model's own parameters here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

DIVISORS = ("exp_avg_sq", "max_exp_avg_sq")


def straight_through(value: Tensor, gradient_to: Tensor) -> Tensor:
    """The first in the forward pass, the second in the backward pass."""
    return value.detach() + gradient_to - gradient_to.detach()


def largest(weight: Tensor, count: int) -> Tensor:
    flat = weight.detach().reshape(-1).abs().tolist()
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[sorted(range(len(flat)), key=lambda at: (-flat[at], at))[:count]] = True
    return mask.view(weight.shape)


def restart(state: dict, before: Tensor, now: Tensor) -> None:
    """No state outside, zero for what is new; what an optimizer divides by starts at the mean over what stays."""
    for key, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.shape == now.shape:
            mean = tensor[now & before].mean() if key in DIVISORS else 0.0
            tensor[~now], tensor[now & ~before] = 0.0, mean


class TopKast:
    def __init__(self, weights, *, every, density, backward_density, penalty):
        self.weights, self.every, self.penalty = weights, every, penalty
        self.counts = {n: (round(density * w.numel()), round(backward_density * w.numel())) for n, w in weights.items()}
        self.choose()

    def choose(self):
        self.network = {name: largest(w, self.counts[name][0]) for name, w in self.weights.items()}
        self.trained = {name: largest(w, self.counts[name][1]) for name, w in self.weights.items()}

    def effective(self, name):
        weight = self.weights[name]
        return straight_through(weight * self.network[name], weight * self.trained[name])

    def extra_loss(self):
        total = 0
        for name, weight in self.weights.items():
            inside, outside = self.network[name], self.trained[name] & ~self.network[name]
            density = inside.sum() / inside.numel()
            total = total + (weight * inside).square().sum() + (weight * outside).square().sum() / density
        return self.penalty * total

    def after_step(self, step, optimizer, before):
        for name, weight in self.weights.items():
            weight[~self.trained[name]] = before[name][~self.trained[name]]
        if step % self.every == 0:
            old = self.trained
            self.choose()
            for name, weight in self.weights.items():
                restart(optimizer.state[weight], old[name], self.trained[name])

    def masks(self):
        return self.network


class SrSte:
    dimension = 1

    def __init__(self, weights, *, penalty, keep=2, of=4):
        self.weights, self.penalty, self.keep, self.of = weights, penalty, keep, of

    def masks(self):
        found = {}
        for name, weight in self.weights.items():
            rows = weight.detach().movedim(self.dimension, -1)
            mask = torch.zeros(rows.shape, dtype=torch.bool)
            for row, out in zip(rows.reshape(-1, rows.shape[-1]), mask.view(-1, rows.shape[-1]), strict=True):
                for start in range(0, len(row), self.of):
                    out[start : start + self.of] = largest(row[start : start + self.of], self.keep)
            found[name] = mask.movedim(-1, self.dimension)
        return found

    def effective(self, name):
        return straight_through(self.weights[name] * self.masks()[name], self.weights[name])

    def extra_loss(self):
        masks = self.masks()
        return self.penalty / 2 * sum((weight * ~masks[name]).square().sum() for name, weight in self.weights.items())

    def after_step(self, step, optimizer, before): ...


class SoftThreshold:
    def __init__(self, weights, *, initial, decay):
        self.weights, self.decay = weights, decay
        self.numbers = {name: nn.Parameter(torch.full((), initial, dtype=w.dtype)) for name, w in weights.items()}

    def effective(self, name):
        weight = self.weights[name]
        return weight.sign() * torch.relu(weight.abs() - torch.sigmoid(self.numbers[name]))

    def extra_loss(self):
        return self.decay / 2 * sum(number.square() for number in self.numbers.values())

    def after_step(self, step, optimizer, before): ...

    def masks(self):
        return {name: self.effective(name) != 0 for name in self.weights}


class DeepR:
    """Takes the network's masks; `drawn` says which positions were drawn, as a random generator did elsewhere."""

    def __init__(self, weights, masks, signs, generator, *, drift, noise):
        self.weights, self.active, self.signs, self.generator = weights, masks, signs, generator
        self.drift, self.noise = drift, noise
        self.drawn = None

    def effective(self, name):
        return self.weights[name] * self.active[name]

    def extra_loss(self):
        return 0

    def after_step(self, step, optimizer, before):
        rate = optimizer.param_groups[0]["lr"]
        gone = {}
        for name, weight in self.weights.items():
            flat, active, signs = weight.view(-1), self.active[name].view(-1), self.signs[name].view(-1)
            gone[name] = []
            positions = [at for at in range(len(flat)) if active[at]]
            for at, xi in zip(positions, torch.randn(len(positions), generator=self.generator).tolist(), strict=True):
                theta = flat[at] * signs[at]
                theta = theta - rate * self.drift + signs[at] * rate * self.noise * xi
                flat[at] = theta * signs[at]
                if theta < 0:
                    gone[name].append(at)
                    flat[at], active[at] = 0, False
            flat[~active] = 0
        for name, weight in self.weights.items():
            old = self.active[name].clone()
            new = self.drawn(name, old, len(gone[name]))
            assert not old.view(-1)[new].any()
            self.active[name].view(-1)[new] = True
            if gone[name]:
                restart(optimizer.state[weight], old, self.active[name])

    def masks(self):
        return self.active


def train_step(model, rule, optimizer, step, inputs, loss):
    """Take the step of a number on a loss, a function of the model's outputs."""
    optimizer.zero_grad()
    effective = {name: rule.effective(name) for name in rule.weights}
    (loss(functional_call(model, effective, (inputs,))) + rule.extra_loss()).backward()
    before = {name: weight.detach().clone() for name, weight in rule.weights.items()}
    optimizer.step()
    with torch.no_grad():
        rule.after_step(step, optimizer, before)
