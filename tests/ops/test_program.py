"""Programs that were exported or traced take the state of their own positions, and refuse any other."""

import copy
import io

import pytest
import torch
from torch import nn

import regrow
from regrow.ops.program import checksum, values_at

NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4)), (4, 9)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.Tanh()), (2, 4, 7)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1)),
        (2, 4, 6, 6),
    ),
}


def exported(network, x):
    return torch.export.export(network, (x,)).module()


def exported_strictly(network, x):
    return torch.export.export(network, (x,), strict=True).module()


def from_a_file(network, x):
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (x,)), file)
    file.seek(0)
    return torch.export.load(file).module()


def traced(network, x):
    return torch.jit.trace(network, (x,))


CASES = [
    pytest.param("conv2d", exported_strictly, torch.float32, marks=pytest.mark.slow),
    *(("conv2d", make, torch.float32) for make in (from_a_file, traced)),
    ("conv2d", exported, torch.float64),  # the reference computes, whose positions are constants too
    ("conv1d", exported, torch.float32),
    ("linear", exported, torch.float32),
    ("linear", traced, torch.float64),
]


@pytest.mark.parametrize(("name", "make", "dtype"), CASES, ids=lambda part: getattr(part, "__name__", str(part)))
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_the_state_of_another_model_is_refused(name, make, dtype):
    build, shape = NETWORKS[name]
    own, other = (regrow.sparsify(build(), 0.5, backend="cpu", seed=seed).eval().to(dtype) for seed in (0, 1))
    x = torch.randn(shape, dtype=dtype)
    expected = own(x)
    program = make(own, x)
    torch.testing.assert_close(program(x), expected)
    state = copy.deepcopy(program.state_dict())
    program.load_state_dict({key: other.state_dict()[key] for key in state})
    with pytest.raises((ValueError, RuntimeError), match="export that again"):
        program(x)
    program.load_state_dict(state)
    torch.testing.assert_close(program(x), expected)
    for values in program.state_dict().values():
        if values.is_floating_point():
            values.zero_()  # other values at the same positions are served
    assert not program(x).any()


def test_a_program_trains():
    network = regrow.sparsify(nn.Sequential(nn.Linear(9, 5)), 0.5, backend="cpu")
    x = torch.randn(4, 9)
    network(x).square().sum().backward()
    program = exported(copy.deepcopy(network), x)
    program(x).square().sum().backward()
    for ours, theirs in zip(program.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_operator_keeps_the_rules_of_torch_library():
    positions = torch.tensor([1, 4], dtype=torch.int32)
    values = torch.randn(2, requires_grad=True)
    torch.library.opcheck(values_at, (values, positions, checksum(positions)))
