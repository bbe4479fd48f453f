"""Multiply-adds of a training, counted step by step, and a bound on them as a setting."""

import json

import pytest
from runs import command, metrics, refused, stop_after, tiny
from torch import nn

import regrow
from regrow.experiments import models
from regrow.experiments.train.loop import train
from regrow.experiments.train.methods import make_recipe, run_name
from regrow.experiments.train.run import Run

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
