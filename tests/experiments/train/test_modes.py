"""Rules by name in the place of a method's own: each over any method, runs told apart by their names."""

from itertools import product

import pytest
import torch
from runs import command, refused, tiny

import regrow
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.methods import METHODS, make_recipe, run_name
from regrow.experiments.train.modes import GROW, MODES, PRUNE, REDISTRIBUTE
from regrow.experiments.train.run import Run

SETTINGS = {
    "prune": (None, *PRUNE),
    "grow": (None, *GROW),
    "redistribute": ("method", *REDISTRIBUTE),
    "prune_rate_decay": (None, "constant", "cosine", "linear"),
}


def recipe(**settings):
    return make_recipe(override(tiny(), settings), 10)


@pytest.mark.parametrize("setting", MODES)
def test_the_settings_take_every_mode_and_no_other(setting):
    for mode in MODES[setting]:
        override(tiny(), {setting: mode})
    with pytest.raises(UserError, match=setting):
        override(tiny(), {setting: "magic"})


def test_modes_are_listed_with_what_they_do():
    text = command("methods").stdout
    for modes in MODES.values():
        for name, mode in modes.items():
            assert name in text
            assert mode.about.split(",")[0] in text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("setting", "mode"), [(s, m) for s in MODES for m in MODES[s]])
def test_a_mode_takes_the_place_of_a_rule_of_any_method(method, setting, mode):
    own, changed = recipe(method=method), recipe(method=method, **{setting: mode})
    assert changed.update_at(10) == own.update_at(10)
    assert changed.fraction(0) == own.fraction(0)
    if mode in ("momentum", "momentum-neuron", "global-momentum", "compute"):
        assert "momentum" in changed.needs
    if setting == "grow":
        assert ("momentum" in changed.needs_of_absent) == ("momentum" in mode)
        assert ("gradient" in changed.needs_of_absent) == (mode == "gradient")


def test_runs_of_different_modes_have_different_names():
    names = set()
    for values in product(*SETTINGS.values()):
        settings = dict(zip(SETTINGS, values, strict=True))
        if settings["grow"] == "global-momentum" and settings["redistribute"] != "method":
            continue
        names.add(run_name(override(tiny(), settings)))
    everything = 4 * 6 * 7 * 4
    assert len(names) == everything - 4 * 6 * 4
    assert run_name(tiny()) == "sparse-momentum-0.1-seed0"


@pytest.mark.parametrize(
    ("decay", "fractions"),
    [("constant", [0.4, 0.4, 0.4]), ("cosine", [0.4, 0.2025, 0.005]), ("linear", [0.4, 0.2, 0.0])],
)
def test_prune_rates_fall_as_the_authors_have_them(decay, fractions):
    found = recipe(prune_rate=0.4, prune_rate_decay=decay)
    assert [found.fraction(step) for step in (0, 10, 20)] == pytest.approx(fractions)


def test_growth_over_all_layers_leaves_nothing_to_redistribute(tmp_path):
    settings = ("--set", "grow=global-momentum", "--set", "redistribute=nonzeros")
    refused(command("train", "digits-mlp", "--out", tmp_path, *settings), "leave redistribute out")


def train(**settings):
    run = Run(override(tiny(), {"update_every": 0.3, **settings}))
    before = regrow.masks(run.model)
    for images, labels in run.data.train.epoch():
        run.train_step(images, labels)
    return run, before


@pytest.mark.parametrize("method", ["set", "rigl", "sparse-momentum"])
@pytest.mark.parametrize("backend", ["masked", "cpu"])
@pytest.mark.parametrize(
    "modes",
    [
        {"prune": "global-magnitude", "grow": "momentum-neuron", "redistribute": "none"},
        {"prune": "set", "grow": "global-momentum"},
        {"prune": "magnitude", "grow": "gradient", "redistribute": "nonzeros"},
        {"grow": "random", "redistribute": "compute"},
    ],
    ids=str,
)
def test_modes_train_together_and_keep_the_number_of_weights(method, backend, modes):
    run, before = train(method=method, backend=backend, **modes)
    after = regrow.masks(run.model)
    assert sum(int(mask.sum()) for mask in after.values()) == sum(int(mask.sum()) for mask in before.values())
    assert any(not torch.equal(mask, before[name]) for name, mask in after.items())


@pytest.mark.parametrize("mode", ["none", "nonzeros", "magnitude", "momentum"])
def test_the_mode_decides_where_weights_go(mode):
    """With weights at one density and a common rate, shares by size or number change no layer; means do."""
    settings = {"prune": "magnitude", "method": "set", "distribution": "uniform", "redistribute": mode}
    run, before = train(**settings)
    moved = {name: int(mask.sum()) - int(before[name].sum()) for name, mask in regrow.masks(run.model).items()}
    assert (max(map(abs, moved.values())) <= 3) is (mode in ("none", "nonzeros"))


def test_the_bound_on_compute_holds_for_a_mode_too():
    for settings in ({"redistribute": "compute"}, {"redistribute": "momentum", "compute": 1.0}):
        assert "cost" in recipe(method="set", **settings).needs
    assert "cost" not in recipe(method="sparse-momentum", redistribute="momentum").needs
    assert TrainConfig.model_fields["redistribute"].default == "method"
