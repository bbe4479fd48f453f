"""ImageNet's path on real photographs, scaled down: decoded by workers, cropped, trained on, timed."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from runs import command, refused

from regrow.experiments import data
from regrow.experiments.data import cache
from regrow.experiments.train.presets import preset

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from made import make_parquet

REAL = Path(os.environ.get("REGROW_DATA", "/nonexistent")) / "imagenette"
SMALL = ("--set", "model_options={width: 0.125}", "--set", "image_size=32", "--set", "device=cpu")


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    make_parquet(tmp_path / "imagenette", "image", size=40, form="JPEG", names=("train", "validation"), rows=(20, 10))
    return tmp_path


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_the_recipe_is_that_of_imagenet_scaled_down(model):
    small, large = preset(f"imagenette-{model}"), preset("imagenet-resnet50")
    differs = {name for name in type(small).model_fields if getattr(small, name) != getattr(large, name)}
    scaled = {"preset", "data", "image_size", "workers", "batch_size", "learning_rate"}
    assert differs == (scaled if model == "resnet50" else scaled | {"model", "density"})
    assert small.learning_rate / small.batch_size == large.learning_rate / large.batch_size


@pytest.mark.parametrize("model", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_run_says_how_long_it_waited_for_its_images(model, photographs):
    options = ("--data", photographs, "--epochs", 2, "--out", photographs / "run", "--set", "batch_size=8")
    result = command("train", f"imagenette-{model}", *options, *SMALL)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (photographs / "run" / "metrics.jsonl").read_text().splitlines()]
    waited = [row["seconds_waiting"] for row in rows]
    assert 0 < waited[0] < waited[1]
    assert all(row["seconds_waiting"] < row["seconds"] for row in rows)
    found = json.loads((photographs / "run" / "result.json").read_text())
    assert found["steps"] == 6
    assert found["seconds_waiting"] == waited[-1] < found["seconds_train"]
    assert found["density_actual"] == pytest.approx(found["density"], abs=1e-4)


def test_the_loading_of_images_is_timed_alone(photographs):
    settings = (*SMALL, "--set", "batch_size=8", "--set", "workers=1")
    told = command("data", "speed", "imagenette-resnet18", "--data", photographs, *settings)
    assert re.fullmatch(
        r"imagenette: [\d,]+ images/s \(12 images in \d+\.\d s, batch 8, random-resized-crop, 1 workers\)\n",
        told.stdout,
    )
    whole = command("data", "speed", "imagenette-resnet18", "--data", photographs, *SMALL)
    refused(whole, "one batch of 20 images", "smaller batch_size")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs $REGROW_DATA with imagenette/")
def test_the_real_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    loaded = data.load(
        "imagenette", root=REAL.parent, batch_size=64, valid_samples=0, augment="random-resized-crop", image_size=64
    )
    assert (loaded.train.samples, loaded.test.samples, loaded.classes) == (9469, 3925, 10)
    images, labels = next(loaded.train.epoch())
    assert images.shape == (64, 3, 64, 64)
    assert labels.unique().numel() == 10
    assert images.mean().abs() < 0.5
    assert 0.5 < images.std() < 1.5
