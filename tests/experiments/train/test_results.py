"""What a run leaves behind: result.json by its contract, a line of metrics an epoch, and settings that say it all."""

import json
import math
from importlib.metadata import version

import pytest
import torch
import yaml
from runs import command, metrics, tiny

import regrow
from regrow.experiments.train.checkpoint import list_checkpoints, load_checkpoint
from regrow.experiments.train.config import read_config
from regrow.experiments.train.loop import train
from regrow.experiments.train.presets import preset

CONTRACT = {
    "preset": str,
    "method": str,
    "backend": str,
    "density": float,
    "density_actual": float,
    "nnz": int,
    "parameters": int,
    "epochs": int,
    "steps": int,
    "seed": int,
    "train_loss": float,
    "valid_accuracy": float,
    "test_accuracy": float,
    "seconds_train": float,
    "seconds_per_step": float,
    "peak_memory_bytes": int,
    "model_bytes": int,
    "explored": float,
    "multiply_adds_train": int,
    "multiply_adds_train_dense": int,
    "flops_per_step": int,
    "flops_inference": int,
    "flops_inference_dense": int,
    "flops_train": int,
    "flops_train_dense": int,
    "flops_train_looking": int,
    "flops_by_layer": dict,
    "nonzeros_by_layer": dict,
    "weights_by_layer": dict,
    "versions": dict,
}
LAYERS = {"fc1.weight": 64 * 300, "fc2.weight": 300 * 100, "fc3.weight": 100 * 10}
BIASES = 300 + 100 + 10


@pytest.fixture(scope="module", params=["dense", "static", "set", "rigl", "sparse-momentum"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    options = ("--method", request.param, "--epochs", 3, "--seed", 4, "--set", "batch_size=128")
    result = command("train", "digits-mlp", "--out", out, *options)
    assert result.exit_code == 0
    return request.param, out, result, json.loads((out / "result.json").read_text())


def test_the_contract_of_the_result(run):
    _, _, _, result = run
    assert set(result) >= set(CONTRACT)
    wrong = {name: result[name] for name, kind in CONTRACT.items() if type(result[name]) is not kind}
    assert not wrong


def test_the_result_is_consistent(run):
    method, out, _, result = run
    weights, density = sum(LAYERS.values()), 1.0 if method == "dense" else 0.1
    assert (result["preset"], result["method"], result["seed"]) == ("digits-mlp", method, 4)
    assert result["backend"] == ("dense" if method == "dense" else "cpu+masked")
    assert (result["epochs"], result["steps"]) == (3, 3 * math.ceil(1237 / 128))
    assert result["parameters"] == weights + BIASES
    assert result["nnz"] == sum(result["nonzeros_by_layer"].values()) == round(density * weights)
    assert result["nonzeros_by_layer"].keys() == LAYERS.keys()
    assert result["weights_by_layer"] == LAYERS
    assert result["density"] == density
    assert result["density_actual"] == result["nnz"] / weights
    assert result["seconds_per_step"] == pytest.approx(result["seconds_train"] / result["steps"])
    assert 0 < result["seconds_train"] < 600
    assert result["peak_memory_bytes"] > result["model_bytes"] >= 4 * (result["nnz"] + BIASES)
    assert result["flops_per_step"] == 3 * 2 * result["nnz"] * 128
    assert result["compute"] is None
    # every weight is used once a sample; the number of weights never changes
    assert result["multiply_adds_train"] == 3 * 3 * 1237 * result["nnz"]
    assert result["multiply_adds_train_dense"] == 3 * 3 * 1237 * weights
    assert result["versions"]["torch"] == version("torch")
    assert result["versions"]["regrow"] == regrow.__version__
    last = metrics(out)[-1]
    assert [result[name] for name in ("train_loss", "valid_accuracy")] == [
        last[name] for name in ("train_loss", "valid_accuracy")
    ]


def test_the_checkpoint_holds_the_network_of_the_result(run):
    method, out, _, result = run
    weights = load_checkpoint(list_checkpoints(out / "checkpoints")[-1])["model"]
    for name, nonzeros in result["nonzeros_by_layer"].items():
        values = weights.get(f"{name.removesuffix('.weight')}.values")
        if values is not None:
            assert values.shape == weights[f"{name.removesuffix('.weight')}.index"].shape == (nonzeros,)
            continue
        mask = torch.ones(()) if method == "dense" else weights[f"{name}_mask"]
        assert mask.expand_as(weights[name]).sum() == nonzeros
        assert not weights[name][mask.expand_as(weights[name]) == 0].any()


def test_a_line_of_metrics_for_every_epoch(run):
    _, out, _, result = run
    rows = metrics(out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [10, 20, 30]
    for row in rows:
        assert row["density"] == result["density_actual"]
        assert all(0 <= row[name] <= 1 for name in ("train_accuracy", "valid_accuracy", "prune_rate"))
        assert math.isfinite(row["train_loss"] + row["valid_loss"] + row["learning_rate"])


def test_a_line_an_epoch_and_the_sentence_at_the_end_and_nothing_else(run):
    _, out, output, result = run
    assert [line.split()[:2] for line in output.stderr.splitlines()] == [["epoch", f"{epoch}/3"] for epoch in (1, 2, 3)]
    assert output.stdout.count("\n") == 1
    assert f"test accuracy {result['test_accuracy']:.2%}" in output.stdout
    assert str(out / "result.json") in output.stdout


def test_the_settings_are_whole(run):
    method, out, _, result = run
    config = read_config(out / "config.yaml")
    assert (config.method, config.density, config.epochs) == (method, result["density"], 3)
    assert yaml.safe_load((out / "config.yaml").read_text())["batch_size"] == 128


def test_the_settings_make_the_same_run_again(run, tmp_path):
    _, out, _, result = run
    again = train(read_config(out / "config.yaml"), tmp_path)
    assert again["test_accuracy"] == result["test_accuracy"]
    assert metrics(tmp_path) == metrics(out)


@pytest.mark.parametrize("backend", ["masked", "cpu"])
def test_the_backend_and_the_growth_that_were_asked_for(tmp_path, backend):
    options = ("--backend", backend, "--epochs", 3, "--set", "growth=candidates:5:2", "--set", "batch_size=128")
    assert command("train", "digits-mlp", "--out", tmp_path, *options).exit_code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["backend"], result["nnz"]) == (backend, 5020)
    assert result["growth"] == "Growth(steps=5, per_nonzero=2.0)"
    weights = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1])["model"]
    for name, nonzeros in result["nonzeros_by_layer"].items():
        layer = name.removesuffix(".weight")
        stored = weights[f"{layer}.values" if backend == "cpu" else f"{name}_mask"]
        assert stored.numel() == (nonzeros if backend == "cpu" else LAYERS[name])


def test_both_backends_give_the_same_network(tmp_path):
    results = {}
    for backend in ("masked", "cpu"):
        results[backend] = train(tiny(backend=backend, growth="window:5", learning_rate=0.01), tmp_path / backend)
    assert results["masked"]["nonzeros_by_layer"] == results["cpu"]["nonzeros_by_layer"]
    assert results["masked"]["test_loss"] == pytest.approx(results["cpu"]["test_loss"], rel=1e-3)


def test_the_methods_learn(tmp_path):
    result = train(preset("digits-mlp").model_copy(update={"epochs": 8}), tmp_path)
    assert result["test_accuracy"] > 0.85
    assert result["nnz"] == 5020


def test_a_density_of_one_is_every_weight(tmp_path):
    result = train(tiny(method="set", density=1.0), tmp_path)
    assert result["nonzeros_by_layer"] == LAYERS


def test_the_default_folder_tells_runs_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--density", "0.2"], ["--seed", "1"], ["--method", "dense"]):
        assert command("train", "digits-mlp", "--epochs", "1", *options).exit_code == 0
    names = ["dense-seed0", "sparse-momentum-0.1-seed0", "sparse-momentum-0.1-seed1", "sparse-momentum-0.2-seed0"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"digits-mlp-{name}" for name in names]


def test_a_path_is_shown_as_it_is(tmp_path):
    result = command("train", "digits-mlp", "--epochs", "1", "--out", tmp_path / "[red] a run")
    assert "[red] a run/result.json" in result.stdout


def test_tensorboard_on_request(tmp_path):
    pytest.importorskip("tensorboard")
    result = command("train", "digits-mlp", "--epochs", "1", "--out", tmp_path, "--set", "tensorboard=true")
    assert result.exit_code == 0
    assert list((tmp_path / "tensorboard").glob("events.*"))
