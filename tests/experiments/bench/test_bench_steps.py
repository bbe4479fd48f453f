"""Whole training steps: what is counted, compared and estimated is right, and the command goes on where it was."""

import json
import re
import sys
import time
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from runs import command, refused, tiny
from torch import nn

import regrow
from regrow.experiments import data
from regrow.experiments.bench.common.machine import describe
from regrow.experiments.bench.steps import check as step_check
from regrow.experiments.bench.steps import contenders
from regrow.experiments.bench.steps import measure as training_steps
from regrow.experiments.bench.steps import training as stepping
from regrow.experiments.bench.steps.check import check
from regrow.experiments.bench.steps.compile import CompileError, compile_training
from regrow.experiments.bench.steps.measure import measure
from regrow.experiments.bench.steps.peer_networks import PEERS
from regrow.experiments.bench.steps.report import FILE, Report, Settings, step_configs
from regrow.experiments.bench.steps.state import state_of
from regrow.experiments.bench.steps.tables import markdown, sentence, speed_points, tables
from regrow.experiments.bench.steps.training import (
    dense_model,
    dense_training,
    make_batches,
    sparse_model,
    sparse_training,
    steps_per_epoch,
    update_interval,
)
from regrow.experiments.bench.steps.update_cost import UpdateCost, cost_per_step, looking_steps, settle
from regrow.experiments.errors import WrongResultError
from regrow.experiments.train.config import override
from regrow.experiments.train.presets import preset

CONFIG = tiny(density=0.3, batch_size=16, growth="window:3")
QUICK = Settings(backend="cpu", growth="window:3", batch=16, rounds=2, compile_seconds=0, profiled=1, peaks=False)
OPTIONS = ("--batch", 16, "--rounds", 2, "--compile-seconds", 0, "--backend", "cpu", "--no-peaks")


@pytest.fixture(scope="module")
def row():
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    return measure(config, QUICK)


def networks(config=CONFIG, backend="cpu"):
    batches, dense = make_batches(config), dense_model(config)
    return batches, dense, sparse_model(config, dense, batches, backend)


# Steps, updates, state


def test_steps_of_an_epoch_are_those_of_the_data():
    base = tiny(batch_size=32)
    loaded = data.load(
        "digits", root=None, batch_size=32, valid_samples=base.valid_samples, augment="none", image_size=None, seed=0,
        device=torch.device("cpu"), workers=0,
    )  # fmt: skip
    assert steps_per_epoch(base) == len(loaded.train)


def test_the_interval_is_that_of_the_recipe_on_average():
    recipe = regrow.sparse_momentum(every=10, steps=100)
    updates = sum(recipe.update_at(step) for step in range(1, 101))
    assert update_interval(recipe, 100) == 100 / updates
    assert update_interval(regrow.static(), 100) is None


def test_looking_counts_where_it_is_not_at_every_step():
    window = replace(regrow.sparse_momentum(every=10, steps=100), growth=regrow.growth.window(22))
    assert looking_steps(window, 100.0) == 22
    assert looking_steps(window, 10.0) == 10
    exact = regrow.sparse_momentum(every=10, steps=100, growth=regrow.growth.exact())
    assert looking_steps(exact, 10.0) == 0
    assert looking_steps(regrow.set(every=10, steps=100), 10.0) == 0
    assert looking_steps(replace(regrow.rigl(every=10, steps=100), growth=regrow.growth.window(22)), 10.0) == 1


def test_the_mean_step_pays_for_updates_and_looking():
    assert cost_per_step(2.0, 5.0, 30.0, every=10, looking_steps=4) == (6 * 2 + 4 * 5 + 30) / 10


def test_the_topology_is_updated_when_it_is_told_to():
    batches, _, sparse = networks()
    training = sparse_training(CONFIG, sparse, batches)
    before = regrow.masks(sparse)
    training.updates.at = 3
    for _ in range(2):
        training.step()
    assert all(torch.equal(mask, before[name]) for name, mask in regrow.masks(sparse).items())
    training.step()
    assert any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(sparse).items())


def test_state_is_what_is_held_between_steps():
    batches, dense, sparse = networks()
    weights = sum(weight.numel() for name, weight in dense.named_parameters() if name.endswith("weight"))
    biases = sum(bias.numel() for name, bias in dense.named_parameters() if name.endswith("bias"))
    nonzeros = sum(int(mask.sum()) for mask in regrow.masks(sparse).values())
    masked = sparse_model(CONFIG, dense, batches, "masked")
    trainings = (
        dense_training(CONFIG, dense, batches),
        sparse_training(CONFIG, masked, batches),
        sparse_training(CONFIG, sparse, batches),
    )
    for training in trainings:
        training.step()
    of_dense, of_masked, of_sparse = map(state_of, trainings)
    whole = 4 * (weights + biases)
    assert (of_dense.weights, of_dense.index, of_dense.gradients, of_dense.optimizer) == (whole, 0, whole, whole)
    assert (of_masked.weights, of_masked.index, of_masked.total) == (whole, weights, 3 * whole + weights)
    kept = 4 * (nonzeros + biases)
    assert (of_sparse.weights, of_sparse.gradients, of_sparse.optimizer) == (kept, kept, kept)
    assert of_sparse.index == sum(layer.pattern.nbytes for layer in sparse if isinstance(layer, regrow.SparseLinear))


# Correctness first


def test_a_network_that_computes_something_else_is_not_timed():
    batches, dense, sparse = networks()
    check(dense, sparse, batches, CONFIG)
    with torch.no_grad():
        sparse.fc2.values.mul_(1.2)
    with pytest.raises(WrongResultError, match=r"digits-mlp at 0\.3: the loss is .* in masked storage; not timed"):
        check(dense, sparse, batches, CONFIG)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_decides_nothing_in_a_channel_without_weights(seed):
    config = override(preset("cifar10-vgg-small"), {"batch_size": 8, "seed": seed})
    torch.manual_seed(seed)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(),
        nn.Linear(8 * 30 * 30, 10),
    )  # fmt: skip
    masks = {f"{name}.weight": torch.ones_like(dense[int(name)].weight, dtype=torch.bool) for name in ("0", "3", "5")}
    masks["0.weight"][::2] = False
    check(dense, regrow.sparsify(deepcopy(dense), masks=masks, backend="cpu"), make_batches(config), config)


def test_wrong_gradients_are_seen(monkeypatch):
    batches, dense, sparse = networks()
    sparse.fc2.values.register_hook(lambda gradient: gradient * 1.1)
    # a copy would lose the hook
    monkeypatch.setattr(step_check, "deepcopy", lambda model: model if model is sparse else deepcopy(model))
    with pytest.raises(WrongResultError, match=r"the gradient of fc2\.weight is 0\.1 of its length away"):
        check(dense, sparse, batches, CONFIG)


# Compilation


def test_what_does_not_compile_is_left_out_with_the_reason(monkeypatch):
    batches, dense, _ = networks()

    def fails(model):
        raise RuntimeError("no\ncompiler")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(CompileError, match="no compiler"):
        compile_training(dense_training(CONFIG, dense, batches), CONFIG, batches, 5.0)


def test_compilation_is_bounded(monkeypatch):
    batches, dense, _ = networks()
    monkeypatch.setattr(torch, "compile", lambda model: lambda x: time.sleep(30))
    began = time.perf_counter()
    with pytest.raises(CompileError, match=r"not done after 0\.2 s"):
        compile_training(dense_training(CONFIG, dense, batches), CONFIG, batches, 0.2)
    assert time.perf_counter() - began < 5


def test_the_faster_form_of_dense_stands_beside(monkeypatch):
    def slow(training, config, batches, seconds, *, bfloat16):
        step = training.step
        return replace(training, step=lambda: time.sleep(0.05) or step())

    monkeypatch.setattr(contenders, "compile_training", slow)
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, compile_seconds=1))
    assert found.dense_form == "eager"
    assert set(found.dense_forms) == set(found.bfloat16_forms) == {"eager", "torch.compile"}
    assert found.bfloat16_form == "eager"
    assert found.milliseconds["dense"].median < 50


def test_what_is_left_out_is_told(monkeypatch):
    def fails(training, config, batches, seconds, *, bfloat16):
        raise CompileError(f"no compiler for {'half' if bfloat16 else 'full'}")

    monkeypatch.setattr(contenders, "compile_training", fails)
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, compile_seconds=1))
    assert found.left_out == {
        "dense compiled": "no compiler for full",
        "bfloat16 compiled": "no compiler for half",
    }
    page = markdown([Report(describe(), QUICK, [found])], "regrow")
    assert "- digits-mlp at 0.3, dense compiled: no compiler for full." in page


def test_compiled_training_is_that_of_its_precision(monkeypatch):
    batches, dense, _ = networks()
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model: lambda x: seen.append(autocast()) or model(x))
    for bfloat16 in (False, True):
        compile_training(dense_training(CONFIG, dense, batches), CONFIG, batches, 60.0, bfloat16=bfloat16)
    assert seen == [False, False, True, True]


def autocast():
    return torch.is_autocast_enabled("cpu")


# The measurement


def test_a_row_holds_all_that_is_told(row):
    assert set(row.milliseconds) == {"sparse", "dense", "bfloat16"}
    assert set(row.ratio) == {"dense", "bfloat16"}
    assert {layer.storage for layer in row.layers} == {"sparse"}
    assert (row.method, row.updates_before) == ("sparse-momentum", 1)
    assert len({layer.density for layer in row.layers}) > 1  # moved by the update; they began with the same
    assert 0 <= row.updates.share < 1
    assert row.sparse_step == pytest.approx(row.milliseconds["sparse"].median / (1 - row.updates.share))
    assert row.state["sparse"].weights < row.state["dense"].weights
    assert row.estimated.sparse_convolution > 1 / 0.3
    assert set(row.breakdown) == {"sparse", "dense eager"}
    assert (row.dense_form, row.bfloat16_form, row.peak) == ("eager", "eager", {})


@pytest.mark.parametrize(("backend", "why"), [("auto", "density|below|side"), ("measured", "ms dense")])
def test_what_auto_chose_is_told(backend, why):
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, backend=backend))
    chosen = tables([found])[-1]
    assert [cells[0] for cells in chosen.rows] == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert all(re.search(why, cells[-1]) for cells in chosen.rows)


def test_everything_stored_sparsely_is_timed_beside():
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, backend="auto", all_sparse=True))
    assert found.beside["cpu, window:22"].ratio.median > 0


def test_units_are_timed_beside_with_their_own_updates(tmp_path):
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, blocks=((4, 1), (2, 1))))
    assert list(found.milliseconds) == ["dense", "sparse", "block 4x1", "block 2x1", "bfloat16"]
    assert set(found.ratio) == {"dense", "bfloat16"}
    for name, each in found.beside.items():
        without = found.milliseconds[name].median
        assert each.sparse_step == pytest.approx(without / (1 - each.updates.share))
        assert each.updates.looking_steps == 3
        assert [layer.storage for layer in each.layers] == ["sparse"] * 3
        assert found.state[name].total < found.state["dense"].total
        assert sum(found.breakdown[name].values()) > 0
    ratio = found.beside["block 4x1"].ratio
    shown = tables([found])[0]
    cells = dict(zip(shown.columns, shown.rows[0], strict=True))
    assert cells["dense / block 4x1"] == ratio.text("{:.2f}".format, unit="x")
    assert "block 2x1 ms" in cells
    assert f"dense / block 4x1 {cells['dense / block 4x1']}" in sentence(found)
    points = speed_points([found])
    assert list(points) == ["dense float32", "dense bfloat16"]
    assert [list(lines) for lines in points.values()] == [
        ["single weights float32", "block 4x1 float32", "block 2x1 float32"]
    ] * 2
    assert points["dense float32"]["block 4x1 float32"] == [(0.3, ratio.median, ratio.low, ratio.high)]
    half = found.beside["block 4x1"].over_bfloat16
    assert points["dense bfloat16"]["block 4x1 float32"] == [(0.3, half.median, half.low, half.high)]
    assert cells["bfloat16 / block 4x1"] == half.text("{:.2f}".format, unit="x")
    assert all(len(cells) == len(table.columns) for table in tables([found]) for cells in table.rows)
    FILE.save(Report(describe(), replace(QUICK, blocks=((4, 1), (2, 1))), [found]), tmp_path / "steps.json")
    assert FILE.load(tmp_path / "steps.json").rows == [found]


def test_the_ratio_of_units_pays_for_their_updates(monkeypatch):
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    # as if updates took half of the time of units, and nothing of that of single weights
    shares = iter((0.0, 0.5))
    monkeypatch.setattr(training_steps, "update_cost", lambda *_: UpdateCost(10.0, 3, 1.0, 1.0, next(shares)))
    monkeypatch.setattr(training_steps, "take_turns", lambda steps, *_: {name: [2.0, 2.0] for name in steps})
    found = measure(config, replace(QUICK, blocks=((4, 1),)))
    assert (found.ratio["dense"].median, found.beside["block 4x1"].ratio.median) == (1.0, 0.5)


def test_whole_units_exist_from_the_start_and_after_updates():
    config = override(CONFIG, {"block": "4x1"})
    batches, _, sparse = networks(config)
    training = sparse_training(config, sparse, batches)
    settle(training, config, 1)
    for name, mask in regrow.masks(sparse).items():
        rows = 2 if name == "fc3.weight" else 4  # ten outputs
        blocks = mask.view(-1, rows, mask.shape[1])
        assert torch.equal(blocks.any(1), blocks.all(1))


def test_wrong_units_are_not_timed(monkeypatch):
    made = stepping.sparse_model

    def wrong(config, *arguments, **precision):
        network = made(config, *arguments, **precision)
        if config.block:
            with torch.no_grad():
                network.fc2.values.mul_(1.2)
        return network

    monkeypatch.setattr(contenders, "sparse_model", wrong)
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    with pytest.raises(WrongResultError, match=r"digits-mlp at 0\.3, block 4x1: the loss is"):
        measure(config, replace(QUICK, blocks=((4, 1),)))


def test_sparse_bfloat16_is_timed_beside_dense_bfloat16():
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, blocks=((4, 1),), sparse_bfloat16=True))
    assert list(found.beside) == ["block 4x1", "sparse bfloat16", "block 4x1 bfloat16"]
    assert [layer.storage for layer in found.beside["sparse bfloat16"].layers] == ["sparse"] * 3
    shown = tables([found])[0]
    cells = dict(zip(shown.columns, shown.rows[0], strict=True))
    for name in ("sparse bfloat16", "block 4x1 bfloat16"):
        ratio = found.beside[name].over_bfloat16
        assert cells[f"bfloat16 / {name}"] == ratio.text("{:.2f}".format, unit="x")
        assert ratio.median > 0
    without = measure(config, replace(QUICK, bfloat16=False, sparse_bfloat16=True))
    assert without.beside["sparse bfloat16"].over_bfloat16 is None


def test_peaks_bear_the_name_of_their_contender(monkeypatch):
    asked = []

    def peaks(config, kinds, backend):
        asked.append((config.block, kinds, backend))
        return {**dict.fromkeys(kinds, 1), "sparse, update": 2}, {"sparse": "it cannot"} if config.block else {}

    monkeypatch.setattr(training_steps, "peaks", peaks)
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, blocks=((4, 1),), peaks=True, bfloat16=False))
    assert asked == [(None, ("sparse", "dense"), "cpu"), ("4x1", ("sparse",), "cpu")]
    assert found.peak == {"sparse": 1, "dense": 1, "sparse, update": 2, "block 4x1": 1, "block 4x1, update": 2}
    assert found.left_out == {"peak memory, block 4x1": "it cannot"}
    found = measure(config, replace(QUICK, peaks=True, bfloat16=False, sparse_bfloat16=True))
    assert asked[2:] == [(None, ("sparse", "dense"), "cpu"), (None, ("sparse bfloat16",), "cpu")]
    assert {"sparse", "sparse bfloat16"} <= set(found.peak)


def test_bfloat16_can_be_left_out():
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, bfloat16=False))
    assert set(found.milliseconds) == {"dense", "sparse"}
    assert set(found.ratio) == {"dense"}
    assert (found.bfloat16_form, found.bfloat16_forms) == ("", {})
    assert not [name for name in tables([found])[0].columns if "bfloat16" in name]


def test_where_everything_is_masked_growth_reads_all():
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, backend="masked"))
    assert found.growth == "exact"
    assert found.updates.looking_steps == 0


def test_presets_come_with_their_densities():
    configs = step_configs([], [], Settings(batch=64))
    assert [(each.preset.removeprefix("cifar10-"), each.density) for each in configs] == [
        ("vgg16-d", 0.05), ("vgg16-like", 0.05), ("wrn-22-8", 0.05), ("wrn-16-10", 0.05), ("wrn-28-2", 0.1),
        ("mlp", 0.02),
    ]  # fmt: skip
    assert {each.batch_size for each in configs} == {64}
    assert {each.growth for each in configs} == {None}
    (mine,) = step_configs(["digits-mlp"], [], Settings())
    assert mine.density == preset("digits-mlp").density


def test_the_target_table_has_the_network_of_the_mlp():
    (config,) = step_configs(["cifar10-mlp"], [], Settings())
    widths = [layer.in_features for layer in dense_model(config) if isinstance(layer, nn.Linear)]
    assert (widths, config.density) == ([3072, 4096, 4096], 0.02)


def test_a_library_that_cannot_is_left_out_with_the_reason(monkeypatch):
    def cannot(*_):
        raise ValueError("it\ncannot")

    monkeypatch.setitem(PEERS, "other", cannot)
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    assert measure(config, replace(QUICK, peers=("other",))).left_out == {"other": "it cannot"}


def test_a_library_that_fails_in_training_does_not_take_the_others_along(monkeypatch):
    def fails_in_its_step(config, model, masks, batches):
        training = dense_training(config, deepcopy(model), batches)

        def step():
            raise RuntimeError("a view is changed in place")

        return replace(training, step=step)

    monkeypatch.setitem(PEERS, "other", fails_in_its_step)
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    row = measure(config, replace(QUICK, peers=("other",)))
    assert row.left_out == {"other": "a view is changed in place"}
    assert set(row.ratio) == {"dense", "bfloat16"}


def test_a_library_that_is_not_there_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparseprop.modules", None)
    with pytest.raises(ImportError, match="pip install --no-build-isolation sparseprop"):
        PEERS["sparseprop"](CONFIG, None, {}, None)


def test_another_library_takes_the_same_steps():
    pytest.importorskip("sparseprop")
    (config,) = step_configs(["digits-mlp"], [0.3], QUICK)
    found = measure(config, replace(QUICK, peers=("sparseprop",)))
    assert found.left_out == {}
    assert found.ratio["sparseprop"].median > 0


def test_another_library_takes_steps_of_a_network_with_residual_sums():
    pytest.importorskip("sparseprop")
    (config,) = step_configs(["cifar10-wrn-16-4"], [0.1], replace(QUICK, batch=4))
    config = override(config, {"model_options": {"width": 0.25}})
    batches, model = make_batches(config), dense_model(config)
    masks = regrow.masks(regrow.sparsify(deepcopy(model), 0.1, backend="masked"))
    assert float(PEERS["sparseprop"](config, model, masks, batches).step()) > 0


def test_tables_and_points_are_of_the_rows(row):
    whole = replace(row, peak={"sparse": 1 << 20, "dense": 4 << 20})
    assert len(tables([row])) == 5
    assert all(len(cells) == len(table.columns) for table in tables([whole]) for cells in table.rows)
    assert [cells[1:] for cells in tables([whole])[-1].rows] == [("1", "25.0%"), ("4", "100.0%")]
    compiled = replace(row, dense_forms={"eager": 2.0, "torch.compile": 3.0}, bfloat16_forms={"eager": 4.0})
    assert tables([compiled])[1].rows == (("digits-mlp", "0.3", "2.00", "3.00", "4.00", "-"),)
    ratio = row.ratio["dense"]
    alone = replace(row, ratio={"dense": ratio})
    assert speed_points([alone]) == {"dense float32": {"digits-mlp": [(0.3, ratio.median, ratio.low, ratio.high)]}}
    others = speed_points([row, replace(row, growth="other")])
    assert {panel: list(lines) for panel, lines in others.items()} == {
        "dense float32": ["window:3", "other"], "dense bfloat16": ["window:3", "other"]
    }  # fmt: skip


def test_measurements_in_several_files_are_shown_as_one(row, tmp_path):
    paths = [tmp_path / "first.json", tmp_path / "second.json", tmp_path / "elsewhere.json"]
    here, there = describe(), replace(describe(), processor="another")
    for path, machine, density in zip(paths, (here, here, there), (0.3, 0.5, 0.7), strict=True):
        FILE.save(Report(machine, QUICK, [replace(row, density=density)]), path)
    page, plot = tmp_path / "page.md", tmp_path / "plot.png"
    done = command("bench", "show", *paths[:2], "--markdown", page, "--plot", plot)
    assert done.exit_code == 0, done.output
    first = page.read_text().split("###")[1]
    assert [line.split("|")[2].strip() for line in first.splitlines() if line.startswith("| digits")] == ["0.3", "0.5"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.with_stem("plot-dark").read_bytes().startswith(b"\x89PNG")
    refused(command("bench", "show", *paths), "elsewhere.json was measured with another", "one by one")
    refused(command("bench", "show", tmp_path / "none.json"), "is no measurement of")


def test_the_command_measures_writes_and_goes_on(tmp_path, monkeypatch):
    out, page, plot = tmp_path / "steps.json", tmp_path / "steps.md", tmp_path / "steps.png"
    call = ("bench", "train", "digits-mlp", *OPTIONS, "--out", out, "--markdown", page, "--plot", plot)
    done = command(*call, "--densities", 0.3)
    assert done.exit_code == 0, done.output
    assert [each["density"] for each in json.loads(out.read_text())["rows"]] == [0.3]
    assert "| digits-mlp |" in page.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")
    (before,) = FILE.load(out).rows
    again = command(*call, "--densities", "0.3,0.5")
    assert again.exit_code == 0, again.output
    assert FILE.load(out).rows[0] == before
    assert [each.density for each in FILE.load(out).rows] == [0.3, 0.5]
    monkeypatch.setattr(training_steps, "measure", None)
    assert command(*call, "--densities", "0.3,0.5").exit_code == 0
    for others in (("--batch", 8), ("--blocks", "4x1"), ("--no-bfloat16",)):
        assert "another --out" in command(*call, *others).stderr


def test_mistakes_are_one_line():
    refused(command("bench", "train", "cifar10-vgg"), "there is no preset 'cifar10-vgg'")
    refused(command("bench", "train", "digits-mlp", "--densities", "2"), "densities must lie in (0, 1]")
    refused(command("bench", "train", "digits-mlp", "--method", "dense"), "name a sparse --method")
    for blocks in ("4", "4x0", "4x1,", "4x1;8x1"):
        refused(command("bench", "train", "digits-mlp", "--blocks", blocks), "--blocks", "outputs x inputs")
    done = command("bench", "train", "digits-mlp", "--backend", "magic", "--compile-seconds", 0)
    assert done.exit_code == 2
    assert "there is no backend 'magic'" in done.stderr


def test_batches_are_the_presets_shape():
    batches = make_batches(replace_image(preset("cifar10-vgg16-d"), 8))
    assert batches.images[0].shape == (8, 3, 32, 32)
    assert batches.images[0].is_contiguous(memory_format=torch.channels_last)
    assert stepping.classes(preset("imagenet-resnet50")) == 1000


def replace_image(config, size):
    return config.model_copy(update={"batch_size": size})
