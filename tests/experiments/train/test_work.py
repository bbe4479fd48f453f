"""Multiply-adds of a training, counted step by step, and a bound on them as a setting."""

import json

import pytest
import torch
from runs import command, metrics, refused, stop_after, tiny
from torch import nn

import regrow
from regrow.experiments import models
from regrow.experiments.train.loop import train
from regrow.experiments.train.methods import make_recipe, run_name
from regrow.experiments.train.run import Run
from regrow.experiments.train.work import Work, layer_costs
from regrow.storage import sparse_weights

NETWORK = {"model": "narrowing", "model_options": {}, "density": 0.3, "update_every": 0.3, "backend": "masked"}


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """Make a network known whose first weights are used at sixteen times as many positions as the next."""
    monkeypatch.setitem(models.MODELS, "narrowing", narrowing)


def narrowing(*, image_shape, classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


def each_step(run):
    """Train an epoch; return the multiply-adds of each step by the summary of the model before it."""
    counted = []
    for images, labels in run.data.train.epoch():
        counted.append(len(labels) * run.summary().flops // 2)
        run.train_step(images, labels)
    return counted


@pytest.mark.parametrize("settings", [{}, {"compute": 1.0}, {"method": "rigl"}, {"method": "dense"}], ids=str)
def test_every_step_counts_what_there_was_before_it(settings):
    network = {**NETWORK, "density": 1.0} if settings.get("method") == "dense" else NETWORK
    run = Run(tiny(**network, train_samples=600, **settings))
    dense = Run(tiny(**{**network, "density": 1.0, "method": "dense"})).summary().flops // 2
    before = run.summary().flops // 2
    counted = [each_step(run), each_step(run)]
    row = run.finish_epoch()
    assert row["multiply_adds"] == run.summary().flops // 2
    assert row["multiply_adds_dense"] == dense
    assert row["multiply_adds_train"] == 3 * sum(map(sum, counted))
    assert row["multiply_adds_train_dense"] == 3 * 2 * 600 * dense
    assert (row["multiply_adds"] == before) is (settings.get("method") is not None)


def test_a_bound_holds_and_is_written_down(tmp_path):
    free, bounded = (tiny(**NETWORK, **more) for more in ({}, {"compute": 1.1}))
    results = [train(config, tmp_path / run_name(config)) for config in (free, bounded)]
    assert [result["compute"] for result in results] == [None, 1.1]
    ratios = [metrics(tmp_path / run_name(config))[-1]["multiply_adds"] for config in (free, bounded)]
    uniform = 0.3 * metrics(tmp_path / run_name(free))[-1]["multiply_adds_dense"]
    assert ratios[0] > 1.2 * uniform
    assert ratios[1] <= 1.1 * uniform + 1
    assert run_name(bounded) == "sparse-momentum-compute1.1-0.3-seed0"


@pytest.mark.parametrize("settings", [{"compute": 1.1}, {"method": "dense", "density": 1.0}], ids=str)
def test_counts_and_costs_survive_a_stop(tmp_path, settings):
    config = tiny(**{**NETWORK, **settings})
    train(config, tmp_path / "whole")
    stop_after(config, tmp_path / "stopped", 15, 15)
    train(config, tmp_path / "stopped", resume=True)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    results = [json.loads((tmp_path / out / "result.json").read_text()) for out in ("whole", "stopped")]
    assert results[0]["multiply_adds_train"] == results[1]["multiply_adds_train"]


@pytest.mark.parametrize(
    "settings", [{"method": "rigl"}, {"redistribute": "keep"}, {"method": "sparse-momentum"}], ids=str
)
def test_every_method_can_be_bounded(settings):
    recipe = make_recipe(tiny(compute=2, **settings), 10)
    assert "cost" in recipe.needs
    assert "cost" not in make_recipe(tiny(**settings), 10).needs


def test_a_recipe_of_ones_own_takes_the_bound_or_is_put_within(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import regrow\n"
        "def takes(every, steps, compute=None):\n"
        "    assert compute == 3\n"
        "    return regrow.set(every, steps)\n"
        "recipe = regrow.set(9, 99)\n"
    )
    assert "cost" not in make_recipe(tiny(compute=3, method=f"{path}:takes"), 10).needs
    assert "cost" in make_recipe(tiny(compute=3, method=f"{path}:recipe"), 10).needs


def test_a_bound_that_is_none_is_refused(tmp_path):
    for value in ("0", "-1", "much"):
        result = command("train", "digits-mlp", "--out", tmp_path / "out", "--set", f"compute={value}")
        refused(result, "compute")


def test_the_card_names_the_bound():
    assert "redistribute.within" in regrow.sparse_momentum.__doc__


# FLOPs as RigL's paper counts them


class Twice(nn.Module):
    """A network that calls its hidden layer twice."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.hidden(self.hidden(x)))


@pytest.mark.parametrize(
    ("network", "shape", "by_hand"),
    [
        (nn.Sequential(nn.Linear(6, 4)), (6,), {"0.weight": (1, 24)}),
        # a linear layer on each of five rows
        (nn.Sequential(nn.Linear(6, 4)), (5, 6), {"0.weight": (5, 24)}),
        # (9 - 3) / 2 + 1 = 4 rows and columns
        (nn.Sequential(nn.Conv2d(2, 8, 3, stride=2)), (2, 9, 9), {"0.weight": (16, 8 * 2 * 9)}),
        # the kernel spans 5 of 9 columns
        (nn.Sequential(nn.Conv2d(2, 8, 3, dilation=2)), (2, 9, 9), {"0.weight": (25, 8 * 2 * 9)}),
        # each output sees half of the inputs
        (nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2)), (4, 9, 9), {"0.weight": (81, 8 * 2 * 9)}),
        (nn.Sequential(nn.Conv1d(4, 4, 3, groups=4)), (4, 9), {"0.weight": (7, 4 * 3)}),
        (Twice(), (6,), {"hidden.weight": (2, 36), "out.weight": (1, 12)}),
    ],
    ids=["linear", "rows", "strided", "dilated", "grouped", "depthwise", "twice"],
)
def test_costs_are_those_counted_by_hand(network, shape, by_hand):
    before = [name for name, _ in network.named_buffers()]
    assert layer_costs(network, torch.zeros(1, *shape)) == by_hand
    assert [name for name, _ in network.named_buffers()] == before


def test_flops_are_those_counted_by_hand():
    costs = {"first": (10.0, 100), "second": (1.0, 50)}
    work = Work(costs, ["second"], {})
    work.look({"second": Some(20)})
    work.add(8, {})
    work.add(8, {"second": None})
    work.look({"second": Some(30)})
    work.add(4, {"second": 7})
    assert work.flops_by_layer() == {
        "first": {
            "inference": 2 * 1000, "inference_dense": 2 * 1000,
            "train": 2 * 3 * 20 * 1000, "train_dense": 2 * 3 * 20 * 1000, "train_looking": 0,
        },
        "second": {
            "inference": 2 * 30, "inference_dense": 2 * 50,
            "train": 2 * (3 * (16 * 20 + 4 * 30) + 8 * 30 + 4 * 7), "train_dense": 2 * 3 * 20 * 50,
            "train_looking": 2 * (8 * 30 + 4 * 7),
        },
    }  # fmt: skip
    assert work.flops()["flops_train"] == work.row()["flops_train"] == 120_000 + 2 * (3 * 440 + 268)
    assert work.row()["multiply_adds_train"] == 3 * 440  # without the first, which is kept dense, and without looking


class Some:
    """A weight with so many nonzeros."""

    def __init__(self, count):
        self.count = count

    def nonzeros(self):
        return self.count


LINEAR = {"model": "mlp", "model_options": {"hidden": [30]}, "density": 0.1, "backend": "cpu", "train_samples": 640}
NONZEROS, DENSE = 222, 64 * 30 + 30 * 10  # every weight is used once a sample


@pytest.mark.parametrize(
    ("settings", "looking"),
    [
        # updates are due after steps 5, 10 and 15, and carried out by the next ones
        ({"method": "static"}, 0),
        ({"method": "set"}, 0),
        ({"method": "rigl", "distribution": "uniform"}, 2 * 128 * (DENSE - NONZEROS)),  # it ends at three quarters
        ({"growth": "window:2"}, 3 * 2 * 128 * (DENSE - NONZEROS)),
        ({"growth": "exact"}, 20 * 128 * (DENSE - NONZEROS)),
        ({"growth": "candidates:2:3", "redistribute": "keep"}, 3 * 2 * 128 * 3 * NONZEROS),
        ({"backend": "masked"}, 20 * 128 * (DENSE - NONZEROS)),  # momentum of all weights at all times
    ],
    ids=str,
)
def test_looking_at_absent_weights_counts(tmp_path, settings, looking):
    config = tiny(**{**LINEAR, "epochs": 4, "update_every": 1.0, **settings})
    result = train(config, tmp_path)
    assert result["steps"] == 20
    assert result["flops_train_looking"] == 2 * looking
    assert result["flops_train"] == 2 * (3 * 20 * 128 * NONZEROS + looking)
    assert result["flops_train_dense"] == 2 * 3 * 20 * 128 * DENSE
    assert (result["flops_inference"], result["flops_inference_dense"]) == (2 * NONZEROS, 2 * DENSE)
    layers = result["flops_by_layer"]
    assert list(layers) == ["fc1.weight", "fc2.weight"]
    assert sum(layer["train"] for layer in layers.values()) == result["flops_train"]
    assert layers["fc2.weight"]["inference"] == 2 * result["nonzeros_by_layer"]["fc2.weight"]
    assert metrics(tmp_path)[-1]["flops_train"] == result["flops_train"]


def test_layers_that_are_kept_dense_count_as_dense(tmp_path):
    result = train(tiny(**NETWORK, keep_dense=("first",), epochs=1), tmp_path)
    first, *others = result["flops_by_layer"].values()
    assert first["inference"] == first["inference_dense"] == 2 * 64 * 16 * 9
    assert first["train"] == first["train_dense"]
    assert all(layer["inference"] < layer["inference_dense"] for layer in others)
    dense = train(tiny(**{**NETWORK, "density": 1.0}, method="dense", keep_dense=("first",), epochs=1), tmp_path / "d")
    assert dense["flops_train"] == dense["flops_train_dense"] == result["flops_train_dense"]


def test_what_looks_is_known_of_each_weight():
    model = regrow.sparsify(nn.Sequential(nn.Linear(40, 20)), 0.1, backend="cpu", block=(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recipe = regrow.sparse_momentum(every=3, steps=30, growth=regrow.growth.candidates(1, per_nonzero=2))
    topology = regrow.TopologyUpdater(model, optimizer, recipe)
    seen = []
    for _ in range(8):
        seen.append(topology.looks_at())
        model(torch.randn(8, 40)).square().sum().backward()
        assert seen[-1].get("0.weight", 0) + 80 == sum(p.grad.numel() for p in model.parameters() if p.dim() == 1) - 20
        optimizer.step()
        optimizer.zero_grad()
    assert [bool(each) for each in seen] == [False, False, False, True, False, False, True, False]
    assert seen[3] == {"0.weight": 160}
    assert sparse_weights(model)["0.weight"].nonzeros() == 80
