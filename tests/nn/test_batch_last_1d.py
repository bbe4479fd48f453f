"""Networks of one dimension whose norms and pools follow the layout of sparse convolutions, and ordinary ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.nn.batch_last import BatchLast, BatchLastNorm1d, FoldedReLU
from regrow.nn.batch_last_1d import BatchLastAdaptiveAvgPool1d, BatchLastAvgPool1d, BatchLastMaxPool1d
from regrow.ops import is_batch_last

pytest.importorskip("regrow._kernels")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def speech(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 8, 9, stride=2), nn.BatchNorm1d(8), activation(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), activation(), nn.AvgPool1d(3, 2, 1),
        nn.Conv1d(8, 16, 3), nn.BatchNorm1d(16), activation(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 4),
    )  # fmt: skip


def exchanged(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, BatchLast)}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
def test_a_network_of_one_dimension_trains_and_evaluates_as_the_ordinary_one(activation: type[nn.Module]) -> None:
    ordinary = regrow.sparsify(speech(activation), 0.5, backend="cpu", batch_last=False)
    follows = regrow.sparsify(speech(activation), 0.5, backend="cpu")
    assert set(exchanged(follows)) >= {"1", "3", "5", "7", "9", "11"}
    assert "14" not in exchanged(follows)
    assert ordinary.state_dict().keys() == follows.state_dict().keys()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (ordinary, follows)]
    for step in range(4):
        for model, optimizer in zip((ordinary, follows), optimizers, strict=True):
            optimizer.zero_grad()
            model(drawn(6, 2, 80, seed=step)).square().sum().backward()
            optimizer.step()
        for ours, theirs in zip(follows.parameters(), ordinary.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(follows.state_dict(), ordinary.state_dict(), rtol=1e-3, atol=1e-4)
    x = drawn(6, 2, 80, seed=9)
    torch.testing.assert_close(follows.eval()(x), ordinary.eval()(x), rtol=1e-3, atol=1e-4)


def test_everything_between_two_convolutions_has_the_batch_innermost() -> None:
    model = regrow.sparsify(speech(nn.GELU), 0.5, backend="cpu")
    seen: dict[int, bool] = {}
    for number, module in enumerate(model[:11]):
        module.register_forward_hook(lambda _, __, output, at=number: seen.update({at: is_batch_last(output)}))
    model(drawn(6, 2, 80))
    assert all(seen.values())


def test_relu_is_folded_and_densify_gives_all_back() -> None:
    plain = speech()
    model = regrow.sparsify(copy.deepcopy(plain), 0.5, backend="cpu")
    assert exchanged(model) == {
        "1": BatchLastNorm1d, "2": FoldedReLU, "3": BatchLastMaxPool1d, "5": BatchLastNorm1d, "6": FoldedReLU,
        "7": BatchLastAvgPool1d, "9": BatchLastNorm1d, "10": FoldedReLU, "11": BatchLastAdaptiveAvgPool1d,
    }  # fmt: skip
    assert [type(module) for module in regrow.densify(model)] == [type(module) for module in plain]


@pytest.mark.parametrize("shape", [(6, 3, 7), (6, 3)])
def test_a_norm_takes_what_pytorchs_takes(shape: tuple[int, ...]) -> None:
    ordinary = nn.BatchNorm1d(3)
    norm = BatchLastNorm1d(copy.deepcopy(ordinary))
    torch.testing.assert_close(norm(drawn(*shape)), ordinary(drawn(*shape)))
    torch.testing.assert_close(norm.state_dict(), ordinary.state_dict())
    with pytest.raises(ValueError, match="2D or 3D"):
        norm(drawn(2, 3, 4, 5))


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool1d(3), nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2), nn.AvgPool1d(4, 2, 1, count_include_pad=False),
     nn.AvgPool1d(4, 3, 2), nn.AdaptiveAvgPool1d(1)],
)  # fmt: skip
def test_pools_give_what_pytorchs_give_with_and_without_a_batch(pool: nn.Module) -> None:
    model = regrow.sparsify(nn.Sequential(nn.Conv1d(2, 4, 3), pool, nn.Conv1d(4, 2, 1)), 0.5, backend="cpu")
    ours = model[1]
    assert isinstance(ours, BatchLast)
    for shape in ((5, 4, 13), (4, 13)):
        inputs = [drawn(*shape).requires_grad_() for _ in range(2)]
        outputs = [module(x) for module, x in zip((ours, pool), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.backward(drawn(*output.shape, seed=3))
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool1d(2, dilation=2), nn.MaxPool1d(2, ceil_mode=True), nn.AvgPool1d(2, ceil_mode=True),
     nn.AdaptiveAvgPool1d(2)],
)  # fmt: skip
def test_pools_with_other_settings_stay(pool: nn.Module) -> None:
    model = regrow.sparsify(nn.Sequential(nn.Conv1d(2, 4, 3), pool, nn.Conv1d(4, 2, 1)), 0.5, backend="cpu")
    assert type(model[1]) is type(pool)


def test_dropout_between_convolutions_follows() -> None:
    layers = [nn.Conv1d(2, 64, 3), nn.GELU(), nn.Dropout(0.5), nn.Conv1d(64, 2, 1)]
    model = regrow.sparsify(nn.Sequential(*layers), 0.5, backend="cpu")
    assert "2" in exchanged(model)
    x = drawn(8, 64, 20)
    dropped = model[2](x)
    assert dropped.shape == x.shape
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * x[kept])
