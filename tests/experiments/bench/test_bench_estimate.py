"""What stands beside the measurement of steps: the paper's estimate, and the kinds of operation."""

from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
from runs import tiny
from torch import nn

import regrow
from regrow.experiments.bench.steps.breakdown import by_kind, kind_of, profile
from regrow.experiments.bench.steps.estimate import Estimated, LayerWork, estimate, input_shares, observe, weight_shares
from regrow.experiments.bench.steps.training import dense_model, make_batches, sparse_model, sparse_training

CONFIG = tiny(density=0.3, batch_size=16, growth="window:3")


# The estimate


def test_estimates_weigh_layers_by_their_dense_time():
    layers = [LayerWork(6.0, 0.1, 0.5, 0.5, 0.0), LayerWork(2.0, 0.5, 0.0, 1.0, 0.5)]
    assert estimate(layers) == Estimated(8 / (3.0 + 1.0), 8 / (0.3 + 1.0))


def test_what_computes_nothing_has_no_speed_up():
    assert estimate([LayerWork(6.0, 0.0, 1.0, 0.5, 0.0)]) == Estimated(None, None)


def test_empty_channels_are_those_no_weight_reads_and_those_all_zero_in_a_sample():
    mask = torch.zeros(4, 5, 3, 3, dtype=torch.bool)
    mask[2, 1, 0, 2] = mask[3, 1, 1, 1] = mask[0, 4, 0, 0] = True
    assert weight_shares(mask) == pytest.approx((3 / 180, 3 / 5))
    x = torch.zeros(2, 3, 2, 2)
    x[0, 1, 0, 0] = x[1, 1, 1, 1] = x[1, 2, 0, 1] = 1.0
    assert input_shares(x) == pytest.approx((3 / 24, 3 / 6))


def test_observed_are_convolutions_and_linear_layers_only_where_there_are_none():
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 5))
    images = torch.rand(2, 3, 8, 8) + 0.1
    sparse = regrow.sparsify(deepcopy(convolutions), 0.5, backend="cpu")
    first, second = observe(convolutions, sparse, images)
    assert first.input_density == 1
    assert 0 < second.input_density < 1
    assert first.weight_density == pytest.approx(0.5, abs=0.01)
    assert first.milliseconds > 0
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert len(observe(linear, regrow.sparsify(deepcopy(linear), 0.5), images)) == 1


# Kinds of operation


@dataclass
class Event:
    name: str
    self_cpu_time_total: float
    cpu_children: list = field(default_factory=list)


def test_an_operation_counts_for_the_outermost_kind_and_the_rest_is_what_remains():
    copy = Event("aten::copy_", 3.0)
    roots = [
        Event("autograd::engine: NativeBatchNormBackward0", 1.0, [Event("aten::relu", 2.0)]),
        Event("anything", 5.0, [Event("_Convolution", 1.0, [copy]), Event("aten::add", 7.0)]),
    ]
    found = by_kind(roots, 30.0)
    assert {kind: time for kind, time in found.items() if time} == {
        "normalisation": 3.0,
        "convolution and linear": 4.0,
        "rest": 23.0,
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution and linear"),
        ("aten::addmm", "convolution and linear"),
        ("AddmmBackward0", "convolution and linear"),
        ("_ConvolutionBackward", "convolution and linear"),
        ("aten::native_batch_norm", "normalisation"),
        ("MaxPool2DWithIndicesBackward0", "pooling"),
        ("aten::adaptive_avg_pool2d", "pooling"),
        ("aten::threshold_backward", "activation"),
        ("aten::dropout", "activation"),
        ("_DropoutBackward", "activation"),
        ("_NormalisationBackward", "normalisation"),
        ("_MaxPool", "pooling"),
        ("Optimizer.step#SGD.step", "optimizer"),
        ("aten::add_", None),
        ("aten::cross_entropy_loss", None),
    ],
)
def test_operations_have_their_kind(name, kind):
    assert kind_of(name) == kind


def test_the_kinds_of_real_steps_are_seen():
    batches = make_batches(CONFIG)
    sparse = sparse_model(CONFIG, dense_model(CONFIG), batches, "cpu")
    training = sparse_training(CONFIG, sparse, batches)
    training.step()
    found = profile(training.step, 2)
    assert min(found[kind] for kind in ("convolution and linear", "activation", "optimizer", "rest")) > 0
    assert found["normalisation"] == found["pooling"] == 0
