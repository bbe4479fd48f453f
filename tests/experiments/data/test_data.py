"""Data sets on disk: every format, every bad input, the cache."""

import hashlib
import multiprocessing
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made import IDX, load, make_folder, make_mnist, make_parquet, make_pickles, one_line, publish

from regrow.experiments import data
from regrow.experiments.data import idx, layouts, pickles, registry
from regrow.experiments.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("zipped", [True, False])
def test_idx(tmp_path, monkeypatch, zipped):
    arrays = make_mnist(tmp_path / "mnist", monkeypatch, zipped=zipped)
    loaded = load("mnist", root=tmp_path, valid_samples=0)
    images, labels = next(loaded.test.epoch())
    assert (loaded.classes, loaded.image_shape, loaded.train.samples) == (10, (1, 28, 28), 30)
    torch.testing.assert_close(images[:, 0], torch.tensor((arrays[2] / 255 - 0.1307) / 0.3081, dtype=torch.float32))
    assert labels.tolist() == arrays[3].tolist()


@pytest.mark.parametrize("archived", [False, True])
def test_pickles(tmp_path, monkeypatch, archived):
    expected = make_pickles(tmp_path / pickles.FOLDER, monkeypatch)
    if archived:
        with tarfile.open(tmp_path / pickles.ARCHIVE, "w:gz") as archive:
            archive.add(tmp_path / pickles.FOLDER, pickles.FOLDER)
        publish(tmp_path / pickles.ARCHIVE, monkeypatch)
        shutil.rmtree(tmp_path / pickles.FOLDER)
    (images, labels), (test_images, _) = layouts.read(tmp_path, registry.get("cifar10"))
    assert (images == expected).all()
    assert labels.tolist() == list(range(6)) * 5
    assert test_images.shape == (6, 3, 32, 32)
    assert load("cifar10", root=tmp_path).image_shape == (3, 32, 32)


def test_pickle_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    with pytest.raises(UserError, match="mkdir"):
        pickles.parse(pickle.dumps({"data": Evil(), "labels": []}), tmp_path / "data_batch_1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("column", "below"), [("img", ""), ("image", "data")])
def test_parquet_decoded_once(tmp_path, monkeypatch, column, below):
    train, _ = make_parquet(tmp_path / "cifar10" / below, column)
    (images, labels), _ = layouts.read(tmp_path / "cifar10", registry.get("cifar10"))
    assert (images == train.transpose(0, 3, 1, 2)).all()
    assert labels.tolist() == [row % 10 for row in range(20)]
    monkeypatch.setattr(layouts, "_decode_split", None)  # from here on only the cache can serve
    (again, _), _ = layouts.read(tmp_path / "cifar10", registry.get("cifar10"))
    assert (again == images).all()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    make_parquet(tmp_path)
    (images, _), _ = layouts.read(tmp_path, registry.get("cifar10"))
    (stored,) = (tmp_path / "cache" / "decoded").iterdir()
    good = stored.read_bytes()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    stored.write_bytes({"truncate": good[:middle], "flip": flipped, "empty": b""}[damage])
    (again, _), _ = layouts.read(tmp_path, registry.get("cifar10"))
    assert (again == images).all()
    with np.load(stored) as arrays:
        assert (arrays["train_images"] == images).all()
    assert len(list(stored.parent.iterdir())) == 1


def test_changed_source_is_decoded_anew(tmp_path):
    make_parquet(tmp_path)
    layouts.read(tmp_path, registry.get("cifar10"))
    make_parquet(tmp_path, rows=(21, 8))
    assert len(layouts.read(tmp_path, registry.get("cifar10"))[0][0]) == 21


def test_cache_that_cannot_be_written_is_done_without(tmp_path):
    make_parquet(tmp_path)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(layouts.read(tmp_path, registry.get("cifar10"))[0][0]) == 20


@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_images_of_any_size(tmp_path, form):
    if form == "folder":
        make_folder(tmp_path)
    else:
        make_parquet(tmp_path, "image", size=40, names=("train", "validation"))
    loaded = load("imagenet", root=tmp_path, image_size=16, valid_samples=0, augment="random-resized-crop")
    assert loaded.classes == (2 if form == "folder" else 10)
    for batches in (loaded.train, loaded.valid, loaded.test):
        images, labels = zip(*batches.epoch(), strict=True)
        assert torch.cat(images).shape == (batches.samples, 3, 16, 16)
        assert torch.cat(labels).dtype == torch.int64
    assert torch.cat([labels for _, labels in loaded.test.epoch()]).bincount().min() > 0


# ---------------------------------------------------------------- bad input


def test_damaged_idx_names_file_and_digests(tmp_path, monkeypatch):
    make_mnist(tmp_path / "mnist", monkeypatch, zipped=False)
    path = tmp_path / "mnist" / IDX[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x63")
    with pytest.raises(UserError) as caught:
        load("mnist", root=tmp_path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    for part in (str(path), found, registry.DATASETS["mnist"].digests[IDX[1]], "fetch"):
        assert part in one_line(caught)
    (record,) = data.check("mnist", tmp_path)
    assert not record.good
    assert found in str(record)


def test_truncated_gzip(tmp_path, monkeypatch):
    make_mnist(tmp_path / "mnist", monkeypatch)
    path = tmp_path / "mnist" / f"{IDX[0]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=path.name):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    "raw", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x01\x00\x00\x00\x01x", b"\x00\x00\x08\x01\x00\x00\x00\x05x"]
)
def test_bad_idx(raw):
    with pytest.raises(UserError, match="labels"):
        idx.parse(raw, Path("labels"))


def test_partial_sets_name_what_is_missing(tmp_path, monkeypatch):
    make_mnist(tmp_path / "mnist", monkeypatch)
    (tmp_path / "mnist" / f"{IDX[2]}.gz").unlink()
    make_pickles(tmp_path / "cifar10" / pickles.FOLDER, monkeypatch)
    (tmp_path / "cifar10" / pickles.FOLDER / "data_batch_3").unlink()
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    for name, missing in (("mnist", IDX[2]), ("cifar10", "data_batch_3"), ("imagenet", "val/ or test/")):
        with pytest.raises(UserError, match=missing):
            load(name, root=tmp_path)
        assert not data.check(name, tmp_path)[0].good


def test_missing_shard(tmp_path):
    make_parquet(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
    with pytest.raises(UserError, match="train-00001-of-00002"):
        load("cifar10", root=tmp_path)


def test_bad_images(tmp_path):
    make_parquet(tmp_path / "size", size=16)
    with pytest.raises(UserError, match="16x16"):
        load("cifar10", root=tmp_path / "size")
    (tmp_path / "rot").mkdir()
    make_parquet(tmp_path / "rot")
    rot = tmp_path / "rot" / "test-00000-of-00001.parquet"
    rot.write_bytes(rot.read_bytes()[:-5])
    with pytest.raises(UserError, match="test-00000"):
        load("cifar10", root=tmp_path / "rot")
    pq.write_table(pa.table({"text": ["a"]}), rot)
    with pytest.raises(UserError, match="text"):
        load("cifar10", root=tmp_path / "rot")


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_named(tmp_path, workers):
    make_folder(tmp_path)
    bad = tmp_path / "val" / "bee" / "0.jpeg"
    bad.write_bytes(bad.read_bytes()[:100])
    loaded = load("imagenet", root=tmp_path, image_size=16, workers=workers)
    before = multiprocessing.active_children()
    with pytest.raises(UserError) as caught:
        list(loaded.test.epoch())
    assert str(bad) in one_line(caught)
    assert set(multiprocessing.active_children()) <= set(before)


def test_classes_must_agree(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "wasp")
    with pytest.raises(UserError, match="bee, wasp"):
        load("imagenet", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nist", {}, "mnist"),
        ("digits", {"augment": "random-resized-crop"}, "crop-flip"),
        ("digits", {"augment": "cutout"}, "cutout"),
        ("digits", {"image_size": 16}, "image_size"),
        ("digits", {"batch_size": 0}, "batch_size"),
        ("digits", {"seed": -1}, "seed"),
        ("digits", {"valid_samples": 1437}, "valid_samples"),
        ("digits", {"valid_samples": -1}, "valid_samples"),
    ],
)
def test_bad_arguments(name, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load(name, **changes)
    one_line(caught)
