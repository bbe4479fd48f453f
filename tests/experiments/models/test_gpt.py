"""The transformer on text, its data set, and training on it."""

import hashlib
import json
import math
from dataclasses import replace

import pytest
import torch
from runs import command

from regrow.experiments import data
from regrow.experiments.bench.steps.measure import measure
from regrow.experiments.bench.steps.report import Settings, step_configs
from regrow.experiments.bench.steps.training import make_batches
from regrow.experiments.data import registry
from regrow.experiments.errors import UserError
from regrow.experiments.models import build
from regrow.experiments.train.config import override
from regrow.experiments.train.presets import preset

TEXT = "to be or not to be, that is the question: " * 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of data sets with another, shorter text."""
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(TEXT)
    digests = {"input.txt": hashlib.sha256(TEXT.encode()).hexdigest()}
    changed = replace(registry.get("tinyshakespeare"), digests=digests, classes=len(set(TEXT)))
    monkeypatch.setitem(registry.DATASETS, "tinyshakespeare", changed)
    return tmp_path


def test_pieces_are_followed_by_the_next_characters(folder):
    loaded = data.load("tinyshakespeare", root=folder, batch_size=4, valid_samples=5, image_size=16)
    assert (loaded.classes, loaded.image_shape) == (len(set(TEXT)), (1, 1, 16))
    characters, following = next(loaded.test.epoch())
    assert (characters.dtype, following.dtype) == (torch.float32, torch.int64)
    known = sorted(set(TEXT))
    read = "".join(known[int(number)] for number in characters.flatten())
    assert read == TEXT[len(TEXT) * 9 // 10 :][: len(read)]
    assert torch.equal(following[:, :-1], characters[:, 0, 0, 1:].long())
    assert loaded.train.samples == (len(TEXT) * 9 // 10 - 1) // 16 - 5


def test_another_text_is_refused(folder):
    (folder / "tinyshakespeare" / "input.txt").write_text("to be")
    with pytest.raises(UserError, match="digest"):
        data.load("tinyshakespeare", root=folder, batch_size=4, valid_samples=5)
    with pytest.raises(UserError, match="augment"):
        data.load("tinyshakespeare", root=folder, batch_size=4, valid_samples=5, augment="crop-flip")


def test_the_network_has_logits_for_every_character():
    model = build("gpt", image_shape=(1, 1, 8), classes=5, units=16, blocks=1, heads=2)
    assert model(torch.randint(5, (3, 1, 1, 8)).float()).shape == (3, 5, 8)
    narrow = build("gpt", image_shape=(1, 1, 8), classes=5, units=16, blocks=1, heads=2, width=0.3)
    assert narrow.embedding.embedding_dim == 4  # a multiple of the heads
    with pytest.raises(UserError, match="3 heads do not divide 16 units"):
        build("gpt", image_shape=(1, 1, 8), classes=5, units=16, heads=3)


def test_batches_of_the_bench_are_characters():
    batches = make_batches(preset("shakespeare-gpt"))
    assert batches.images[0].shape == (32, 1, 1, 64)
    assert batches.labels[0].shape == (32, 64)
    assert torch.equal(batches.images[0], batches.images[0].round())


@pytest.mark.slow
def test_the_bench_checks_and_times_its_steps():
    quick = Settings(backend="cpu", growth="window:3", batch=4, rounds=2, compile_seconds=0, profiled=1, peaks=False)
    (config,) = step_configs(["shakespeare-gpt"], [0.2], quick)
    row = measure(override(config, {"model_options": {"units": 16, "blocks": 1}, "image_size": 8}), quick)
    assert [layer.name for layer in row.layers][-1] == "head.weight"
    assert row.ratio["dense"].median > 0


@pytest.mark.parametrize("backend", ["cpu", pytest.param("masked", marks=pytest.mark.slow)])
def test_a_run_learns_the_text(folder, tmp_path, backend):
    options = {"model_options": "{units: 32, blocks: 1}", "valid_samples": 20, "image_size": 16, "learning_rate": 0.01}
    settings = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / backend
    done = command(
        *("train", "shakespeare-gpt", "--data", folder, "--out", out, "--epochs", 4, "--backend", backend, *settings)
    )
    assert done.exit_code == 0, done.output
    result = json.loads((out / "result.json").read_text())
    assert result["backend"] == backend
    assert result["density_actual"] == pytest.approx(0.1, abs=1e-3)
    assert result["test_loss"] < 0.7 * math.log(len(set(TEXT)))
    assert 0 < result["test_accuracy"] < 1
