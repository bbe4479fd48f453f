"""What may be written in place: outputs of layers by users, gradients by autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import graph

import regrow
from regrow.ops import layout

pytest.importorskip("regrow._kernels")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["small", "pooled"])
def _memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pooled":
        monkeypatch.setattr(layout, "_POOLED_BYTES", 1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(4, 4, 3, padding=1), (8, 4, 5, 5)),
    "line": (lambda: nn.Conv1d(4, 4, 3, padding=1), (8, 4, 5)),
    "linear": (lambda: nn.Linear(4, 4), (8, 4)),
    "sequence": (lambda: nn.Linear(4, 4), (8, 3, 4)),
    "norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), (8, 4, 5, 5)),
    "max pool": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(3, 1, 1)), (8, 4, 5, 5)),
    "mean pool": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1, 1)), (8, 4, 5, 5)),
    "dropout": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.3)), (8, 4, 5, 5)),
}


@pytest.mark.usefixtures("_memory")
@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_outputs_may_be_written_in_place(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = regrow.sparsify(nn.Sequential(build()), 0.5, backend="cpu")
    other = copy.deepcopy(model)
    shortcut = drawn(*shape, seed=1)
    gradients = []
    for module, in_place in ((model, True), (other, False)):
        torch.manual_seed(1)
        x = drawn(*shape).requires_grad_()
        output = module(x)
        if in_place:
            output += shortcut
            nn.functional.relu(output, inplace=True)
        else:
            output = torch.relu(output + shortcut)
        output.square().sum().backward()
        gradients.append([output, x.grad, *(parameter.grad for parameter in module.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("_memory")
def test_autograd_adds_gradients_in_place() -> None:
    """The sum of the gradients of two layers' shared input takes no memory of its own."""
    pair = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)])
    pair = regrow.sparsify(pair, 0.5, backend="cpu")
    x = drawn(8, 4, 5, 5).requires_grad_()
    hidden = x * 1
    made, arrived = [], []
    node = hidden.grad_fn
    assert isinstance(node, graph.Node)
    node.register_prehook(lambda gradients: arrived.append(gradients[0].data_ptr()))
    outputs = [layer(hidden) for layer in pair]
    for output in outputs:
        output.grad_fn.register_hook(lambda given, _: made.append(given[0].data_ptr()))
    sum(output.square().sum() for output in outputs).backward()
    assert len(made) == 2
    assert arrived[0] in made


def test_a_block_as_in_torchvision_trains_the_same() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            identity = x
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += identity
            return self.relu(out)

    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(Block()), 0.5, backend="cpu")
    masked = regrow.sparsify(regrow.densify(copy.deepcopy(model)), masks=regrow.masks(model), backend="masked")
    x = drawn(16, 3, 8, 8)
    outputs = [each(x) for each in (model, masked)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.square().mean().backward()
    ours, theirs = (dict(each[0].bn1.named_parameters()) for each in (model, masked))
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)
