"""What a training loop does to gradients counts for absent weights as it does on masked storage."""

import pytest
import torch
from agreement import assert_storages_agree, each_main_optimizer, run
from torch import nn

from cases import method, model
from regrow.growth import exact


class _Transformed:
    """What a loop may do to gradients between backward and step. Masked storage does it to dense gradients."""

    @staticmethod
    def clipped_by_value(one, seed):
        one.optimizer.zero_grad()
        one.loss(seed).backward()
        nn.utils.clip_grad_value_(one.model.parameters(), 0.01)
        one.optimizer.step()

    @staticmethod
    def clipped_by_norm(one, seed):
        one.optimizer.zero_grad()
        one.loss(seed).backward()
        nn.utils.clip_grad_norm_(one.model.parameters(), 0.05)
        one.optimizer.step()

    @staticmethod
    def with_noise(one, seed):
        one.optimizer.zero_grad()
        one.loss(seed).backward()
        generator = torch.Generator().manual_seed(seed)
        for parameter in one.model.parameters():
            noise = torch.randn(parameter.numel(), generator=generator, dtype=parameter.dtype)
            parameter.grad.add_(noise.view_as(parameter), alpha=1e-3)
        one.optimizer.step()

    @staticmethod
    def largest_cleared(one, seed):
        one.optimizer.zero_grad()
        one.loss(seed).backward()
        for parameter in one.model.parameters():
            parameter.grad.view(-1)[parameter.grad.abs().argmax()] = 0
        one.optimizer.step()

    @staticmethod
    def between_micro_batches(one, seed):
        one.optimizer.zero_grad()
        for part in range(3):
            one.loss(seed + 100 * part).backward()
            torch._foreach_mul_([parameter.grad for parameter in one.model.parameters()], 0.5)
        one.optimizer.step()

    @staticmethod
    def unscaled_and_clipped(one, seed):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        one.optimizer.zero_grad()
        scaler.scale(one.loss(seed)).backward()
        scaler.unscale_(one.optimizer)
        nn.utils.clip_grad_value_(one.model.parameters(), 0.01)
        scaler.step(one.optimizer)

    @staticmethod
    def named_inputs(one, seed):
        one.optimizer.zero_grad()
        one.loss(seed).backward(inputs=list(one.model.parameters()))
        one.optimizer.step()

    @staticmethod
    def set_by_hand(one, seed):
        parameters = list(one.model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(one.loss(seed), parameters), strict=True):
            parameter.grad = gradient
        one.optimizer.step()

    @staticmethod
    def clamped_in_a_closure(one, seed):
        def closure():
            one.optimizer.zero_grad()
            loss = one.loss(seed)
            loss.backward()
            for parameter in one.model.parameters():
                parameter.grad.clamp_(-0.005, 0.02)
            return loss

        one.optimizer.step(closure)


TRANSFORMED = [getattr(_Transformed, name) for name in vars(_Transformed) if not name.startswith("_")]


@pytest.mark.parametrize("loop", TRANSFORMED, ids=lambda loop: loop.__name__)
@pytest.mark.parametrize("name", ["sparse-momentum", "rigl"])
@each_main_optimizer
def test_what_a_loop_does_to_gradients_it_does_to_those_of_absent_weights(loop, name, optimization):
    def make(storage):
        one = run(exact(), storage, method(name), model("conv2d"), optimization)
        one.step = lambda seed: loop(one, seed)
        return one

    assert assert_storages_agree(make, 1e-9) == {"rigl": 2}.get(name, 3)


def test_hooks_on_parameters_see_absent_weights_too():
    def make(storage):
        one = run(exact(), storage, model=model("conv2d"))
        for parameter in one.model.parameters():
            parameter.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
        return one

    assert_storages_agree(make, 1e-9)
