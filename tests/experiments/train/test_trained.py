"""Networks of runs are evaluated and written to files, and what is written computes the same."""

import json
import signal

import onnxruntime
import pytest
import torch
from runs import command, refused, stop_after, tiny
from torch import nn

import regrow
from regrow.experiments.data import load
from regrow.experiments.train.loop import train
from regrow.experiments.train.network import build_network
from regrow.experiments.train.trained import read_trained

MORE = [pytest.param(method, marks=pytest.mark.slow) for method in ("dense", "set")]
SHAPE, CLASSES = (1, 8, 8), 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(tiny(density=0.2, backend="cpu"), folder)
    return folder


def said(result):
    """Return accuracy and loss as `regrow eval` says them."""
    assert result.exit_code == 0, result.output
    words = result.stdout.split()
    return float(words[2].rstrip("%")) / 100, float(words[5])


def test_a_run_is_evaluated_as_at_its_end(run):
    expected = json.loads((run / "result.json").read_text())
    accuracy, loss = said(command("eval", run))
    assert accuracy == pytest.approx(expected["test_accuracy"], abs=5e-5)
    assert loss == pytest.approx(expected["test_loss"], abs=5e-5)
    assert f"{expected['nnz']:,} weights (20.00%)" in command("eval", run).stdout


@pytest.mark.parametrize("method", ["small-dense", "top-kast", *MORE])
def test_so_is_a_run_of_another_method(method, tmp_path):
    expected = train(tiny(method=method, label_smoothing=0.1), tmp_path)
    accuracy, loss = said(command("eval", tmp_path))
    assert accuracy == pytest.approx(expected["test_accuracy"], abs=5e-5)
    assert loss == pytest.approx(expected["test_loss"], abs=5e-5)


def test_a_run_that_was_stopped_is_evaluated_at_its_checkpoint(tmp_path):
    stop_after(tiny(), tmp_path, 13, signal.SIGTERM)
    said(command("eval", tmp_path))


def test_a_file_is_evaluated_as_its_run(run, tmp_path):
    result = command("export", run, "--out", tmp_path / "deeper" / "model.safetensors")
    assert result.exit_code == 0, result.output
    file = tmp_path / "deeper" / "model.safetensors"
    assert f"{file.stat().st_size:,} bytes" in result.stdout
    assert said(command("eval", file)) == said(command("eval", run))
    assert file.stat().st_size < 0.25 * 4 * (64 * 300 + 300 * 100 + 100 * 10)


def test_a_dense_state_loads_into_the_ordinary_network(run, tmp_path):
    assert command("export", run, "--format", "dense", "--out", tmp_path / "model.pt").exit_code == 0
    network, _ = build_network(tiny(), SHAPE, CLASSES)
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(network.eval()(x), read_trained(run).model.eval()(x))


def test_a_program_answers_as_the_run(run, tmp_path):
    assert command("export", run, "--format", "onnx", "--out", tmp_path / "model.onnx").exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images, labels = next(load("digits", batch_size=128, valid_samples=0).test.epoch())
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = json.loads((run / "result.json").read_text())["test_accuracy"]
    assert (logits.argmax(1) == labels.numpy()).mean() == pytest.approx(expected)


def test_a_recipe_file_that_a_run_names_is_not_run(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text("import regrow\ndef recipe(every, steps):\n    return regrow.set(every, steps)\n")
    train(tiny(method=f"{recipe}:recipe"), tmp_path / "run")
    recipe.write_text("raise SystemExit('was run')")
    said(command("eval", tmp_path / "run"))


def test_what_is_no_trained_network_is_refused(run, tmp_path):
    refused(command("eval", tmp_path / "absent"), "there is no", "regrow export")
    refused(command("eval", tmp_path), "holds no run")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text(tiny().to_yaml())
    refused(command("eval", tmp_path / "new"), "holds no checkpoint yet", "--resume")
    (tmp_path / "text").write_text("no model")
    refused(command("eval", tmp_path / "text"), "damaged")
    regrow.save(regrow.sparsify(nn.Linear(4, 4), 0.5), tmp_path / "mine")
    refused(command("eval", tmp_path / "mine"), "does not say what network it holds", "regrow.load")
    regrow.save(nn.Linear(4, 4), tmp_path / "mine", notes={"config": {"a": 1}, "image_shape": [1, 8, 8], "classes": 3})
    refused(command("eval", tmp_path / "mine"), "mine")
    (tmp_path / "folder").mkdir()
    refused(command("export", run, "--out", tmp_path / "folder"), "cannot write", status=1)
    refused(command("export", run, "--format", "onnx", "--out", tmp_path / "text" / "x"), "cannot write", status=1)


def test_a_library_that_is_missing_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr("regrow.files.onnx.find_spec", lambda name: None)
    result = command("export", run, "--format", "onnx", "--out", tmp_path / "model.onnx")
    refused(result, "pip install 'regrow[onnx]'")
