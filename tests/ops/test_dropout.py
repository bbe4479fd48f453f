"""Dropout whose mask follows from a seed: what it drops, its gradient, and the modules that stand for `nn.Dropout`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import regrow
from regrow.nn.batch_last import BatchLastDropout, BatchLastNorm2d, FoldedDropout, FoldedReLU
from regrow.ops import batch_last, dropout, is_batch_last
from regrow.ops.dropout import draw_seed
from regrow.ops.dropout.reference import dropout as dropout_reference
from regrow.ops.dropout.reference import kept
from regrow.ops.normalise import normalise

pytest.importorskip("regrow._kernels")

# Batches below, at and beside multiples of every vector.
SHAPES = [(1, 3, 5, 7), (2, 1, 1, 1), (7, 5, 4, 4), (16, 4, 8, 8), (33, 3, 9, 7), (100, 3, 1, 3)]
SEEDS = (0, 1, (1 << 64) - 1, 0x1234567890ABCDEF)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_memory_order(x: Tensor) -> Tensor:
    """Return the places of each channel one after the other, shape (channels, places)."""
    return x.movedim(0, -1).reshape(x.shape[1], -1)


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rate", [1e-12, 0.3, 0.5, 0.99, 1 - 1e-12])
def test_all_instruction_sets_drop_what_the_reference_drops(shape: tuple[int, ...], rate: float) -> None:
    x = drawn(*shape)
    for seed in SEEDS:
        output = dropout(x, rate, seed)
        assert is_batch_last(output)
        torch.testing.assert_close(output, dropout_reference(x, rate, seed), rtol=1e-6, atol=0)
        torch.testing.assert_close(dropout(x.double(), rate, seed).float(), output, rtol=1e-6, atol=0)


def deviation(products: Tensor, variance: float) -> float:
    """Return how many standard deviations a sum of independent products of mean zero lies from zero."""
    return float(products.sum() / (products.numel() * variance) ** 0.5)


@pytest.mark.parametrize("rate", [0.5, 0.3, 0.05])
@pytest.mark.parametrize("seed", [0, 7, 0x9E3779B97F4A7C15])
def test_what_is_kept_is_independent_of_everything(rate: float, seed: int) -> None:
    """Centred indicators: their sums, and sums of their products, are normal numbers if they are independent."""
    channels, count, plane = 4, 64, 64
    shape = (count, channels, plane, plane)

    def centred(seed: int) -> Tensor:
        ones = dropout(batch_last(torch.ones(shape)), rate, seed) != 0
        return in_memory_order(ones).double() - (1 - rate)

    own, variance = centred(seed), rate * (1 - rate)
    found = {"mean": deviation(own, variance)}
    for channel in range(channels):
        found[f"mean of channel {channel}"] = deviation(own[channel], variance)
    for lag in (1, 2, 3, 4, 8, 16, 31, 32, 64, 100, 128, 1024, count * plane, 65536):
        found[f"{lag} places apart"] = deviation(own[:, :-lag] * own[:, lag:], variance**2)
    found["three in a row"] = deviation(own[:, :-2] * own[:, 1:-1] * own[:, 2:], variance**3)
    for other in range(1, channels):
        found[f"{other} channels apart"] = deviation(own[:-other] * own[other:], variance**2)
    for others in (seed ^ 1, seed + 1 & (1 << 64) - 1, seed ^ 1 << 32, seed ^ 1 << 63):
        found[f"seed {others}"] = deviation(own * centred(others), variance**2)
    for size in (16, 128, 4096):
        # Sums of blocks and of what lies a block apart vary as sums of independent numbers do.
        blocks = own.view(-1, size)
        kurtosis = (1 - 6 * variance) / variance
        for name, sums in (("blocks", blocks.sum(1)), ("columns", blocks.sum(0))):
            terms = own.numel() // len(sums)
            spread = (2 + kurtosis / terms) * len(sums)
            found[f"{name} of {size}"] = float((sums.square().sum() / (terms * variance) - len(sums)) / spread**0.5)
    assert {name: value for name, value in found.items() if abs(value) > 4.5} == {}


def test_the_share_is_met_to_good_precision() -> None:
    ones = batch_last(torch.ones(128, 8, 64, 64))
    for rate in (0.5, 0.1, 0.001):
        dropped = sum(int((dropout(ones, rate, seed) == 0).sum()) for seed in range(4))
        total = 4 * ones.numel()
        assert abs(dropped - rate * total) < 4.5 * (rate * (1 - rate) * total) ** 0.5
    assert torch.equal(dropout(ones, 0.0, 3), ones)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_do_not_matter(threads: Callable[[int], None]) -> None:
    x = drawn(20, 7, 9, 9)
    threads(1)
    alone = dropout(x, 0.4, 5), normalise(x, relu=True, rate=0.4, seed=5)[0]
    threads(3)
    together = dropout(x, 0.4, 5), normalise(x, relu=True, rate=0.4, seed=5)[0]
    assert all(map(torch.equal, alone, together))


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_passes_where_elements_were_kept(shape: tuple[int, ...], inplace: bool) -> None:
    x, gradient = batch_last(drawn(*shape)).requires_grad_(), drawn(*shape, seed=1)
    hidden = x * 2
    output = dropout(hidden, 0.3, 11, inplace=inplace)
    assert (output is hidden) is inplace
    mask = kept(x.shape, 0.3, 11)
    torch.testing.assert_close(output, 2 * x * mask / 0.7)
    output.backward(gradient)
    torch.testing.assert_close(x.grad, 2 * gradient * mask / 0.7)


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(7, 5, 4, 4), (16, 4, 8, 8), (33, 3, 9, 7)], ids=str)
def test_a_norm_with_dropout_is_the_norm_and_the_mask(
    shape: tuple[int, ...], residual: bool, relu: bool, training: bool
) -> None:
    channels = shape[1]
    given = {} if training else {"mean": drawn(channels), "variance": drawn(channels, seed=1).square() + 0.5}
    weight = drawn(channels, seed=2) + drawn(channels, seed=2).sign()
    leaves = [drawn(*shape), weight, drawn(channels, seed=3), drawn(*shape, seed=4) if residual else None]
    singles, doubles = (
        [None if leaf is None else leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        for dtype in (torch.float32, torch.float64)
    )

    def ours(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None) -> Tensor:
        return normalise(x, weight, bias, residual=more, relu=relu, rate=0.3, seed=21, **given)[0]

    def pytorchs(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None) -> Tensor:
        statistics = [None if training else given[name].double() for name in ("mean", "variance")]
        output = F.batch_norm(x, *statistics, weight, bias, training=training)
        output = output if more is None else output + more
        return (F.relu(output) if relu else output) * kept(x.shape, 0.3, 21) / 0.7

    actual, expected = ours(*singles), pytorchs(*doubles)
    gradient = drawn(*shape, seed=9)
    found = torch.autograd.grad(actual, [leaf for leaf in singles if leaf is not None], gradient)
    wanted = torch.autograd.grad(expected, [leaf for leaf in doubles if leaf is not None], gradient.double())
    for a, b in zip((actual, *found), (expected, *wanted), strict=True):
        scale = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-5 * scale)


def test_errors_say_what_is_wrong() -> None:
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="at least 0 and less than 1"):
            dropout(drawn(2, 2, 2, 2), rate, 0)
        with pytest.raises(ValueError, match="at least 0 and less than 1"):
            normalise(drawn(2, 2, 2, 2), rate=rate)
    with pytest.raises(ValueError, match="4 dimensions"):
        dropout(drawn(2, 2), 0.5, 0)
    x = drawn(4, 2, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(dropout(x, 0.5, 0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


def test_seeds_come_from_pytorchs_generator() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    seeds = [draw_seed() for _ in range(200)]
    torch.set_rng_state(state)
    assert [draw_seed() for _ in range(200)] == seeds
    assert len(set(seeds)) == 200
    assert 0 <= min(seeds) < 1 << 60
    assert (1 << 63) < max(seeds) < 1 << 64


def sparse(*middle: nn.Module, channels: int = 8) -> nn.Sequential:
    """Return modules between two sparse convolutions."""
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *middle, nn.Conv2d(channels, 4, 1))
    return regrow.sparsify(model, 0.5, backend="cpu")


def kinds(model: nn.Sequential) -> list[type[nn.Module]]:
    return [type(module) for module in model[1:-1]]


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_after_a_norm_is_folded_into_it_and_given_back(inplace: bool) -> None:
    model = sparse(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.3, inplace), nn.Dropout(0.2))
    assert kinds(model) == [BatchLastNorm2d, FoldedReLU, FoldedDropout, BatchLastDropout]
    assert "3" in regrow.summary(model).batch_last
    model[3].p = 0.4
    back = regrow.densify(copy.deepcopy(model))
    assert kinds(back) == [nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Dropout]
    assert repr(back[3]) == repr(nn.Dropout(0.4, inplace))


def test_without_relu_too_and_other_dropout_by_itself() -> None:
    assert kinds(sparse(nn.BatchNorm2d(8), nn.Dropout(0.3))) == [BatchLastNorm2d, FoldedDropout]
    assert kinds(sparse(nn.ReLU(), nn.Dropout(0.3))) == [nn.ReLU, BatchLastDropout]
    dense = nn.Sequential(nn.Dropout(0.1), *sparse(nn.ReLU()), nn.Flatten(), nn.Dropout(0.1))
    assert type(regrow.densify(dense)[0]) is nn.Dropout
    model = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 2))
    model = regrow.sparsify(model, 0.5, backend="cpu")
    assert (type(model[0]), type(model[3])) == (nn.Dropout, nn.Dropout)


def test_what_has_hooks_or_another_part_in_the_model_stays_or_stands_alone() -> None:
    hooked = nn.Dropout(0.3)
    hooked.register_forward_hook(lambda *_: None)
    assert kinds(sparse(nn.BatchNorm2d(8), nn.ReLU(), hooked)) == [BatchLastNorm2d, FoldedReLU, nn.Dropout]

    class Own(nn.Dropout):
        pass

    assert kinds(sparse(nn.BatchNorm2d(8), Own(0.3))) == [BatchLastNorm2d, Own]
    shared = nn.Dropout(0.3)
    both = sparse(nn.BatchNorm2d(8), shared, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), shared)
    assert kinds(both)[1] is kinds(both)[5] is FoldedDropout
    assert both[2] is both[6]
    one = sparse(nn.BatchNorm2d(8), shared, nn.Conv2d(8, 8, 1), shared)
    assert kinds(one)[1] is kinds(one)[3] is BatchLastDropout
    assert one[1]._dropout == (None,)


FOLDED = {
    "folded": [nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)],
    "alone": [nn.BatchNorm2d(8), nn.Tanh(), nn.Dropout(0.3)],
}
each_form = pytest.mark.parametrize("middle", FOLDED.values(), ids=FOLDED.keys())


@each_form
def test_shares_and_modes_mean_what_they_mean_in_pytorch(middle: list[nn.Module]) -> None:
    model = sparse(*copy.deepcopy(middle))
    inner, own = model[:4], model[3]
    x = drawn(32, 3, 9, 9)
    own.p = 0.0
    plain = inner(x)
    own.p = 0.3
    output = inner(x)
    mask = output != 0
    torch.testing.assert_close(output[mask], plain[mask] / 0.7, rtol=1e-5, atol=1e-6)
    assert abs(float((~mask & (plain != 0)).sum() / (plain != 0).sum()) - 0.3) < 0.02
    own.p = 1.0
    assert not inner(x).any()
    own.p = 0.3
    model.eval()
    evaluated = inner(x)
    torch.testing.assert_close(evaluated, inner(x))
    # As for estimates of uncertainty: dropout alone trains.
    own.train()
    some = inner(x)
    mask = some != 0
    assert not mask.all()
    torch.testing.assert_close(some[mask], evaluated[mask] / 0.7)
    own.p = 2.0
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        inner(x)


@each_form
@pytest.mark.parametrize("way", ["served", "double", "one sample", "compiled"])
def test_gradients_pass_what_was_kept(middle: list[nn.Module], way: str) -> None:
    model = sparse(*copy.deepcopy(middle))[1:4]
    model[0].eval()
    x = drawn(1 if way == "one sample" else 16, 8, 5, 5)
    x = (x.double() if way == "double" else x).requires_grad_()
    model = model.double() if way == "double" else model
    torch._dynamo.reset()
    call = torch.compile(model, fullgraph=True, backend="aot_eager") if way == "compiled" else model
    output = call(x)
    (found,) = torch.autograd.grad(output.sum(), x)
    model.eval()
    plain = model(x)
    (without,) = torch.autograd.grad((plain * (output.detach() != 0) / 0.7).sum(), x)
    torch.testing.assert_close(found, without, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@each_form
def test_random_states_checkpoints_copies_and_pickles_repeat_it(middle: list[nn.Module]) -> None:
    model = sparse(*copy.deepcopy(middle))
    x = drawn(16, 3, 5, 5).requires_grad_()

    def run(model: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        output = model(x)
        return output, torch.autograd.grad(output.square().sum(), x)[0]

    expected = run(model)
    others = [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in (*others, lambda x: checkpoint(model, x, use_reentrant=False)):
        assert all(map(torch.equal, run(other), expected))
    assert others[1][3] is not model[3]
    others[1][3].p = 0.0
    assert not torch.equal(run(others[1])[0], expected[0])
    assert torch.equal(run(model)[0], expected[0])


def test_inplace_is_in_place() -> None:
    model = sparse(nn.Dropout(0.5, inplace=True))
    assert kinds(model) == [BatchLastDropout]
    hidden = model[0](drawn(8, 3, 4, 4))
    before = hidden.detach().clone()
    output = model[1](hidden)
    assert output is hidden
    mask = output != 0
    torch.testing.assert_close(output, before * mask / 0.5)
    output.sum().backward()
    other = drawn(8, 8, 4, 4)
    assert model[1](other) is other
    assert 0 < int((other == 0).sum()) < other.numel()
