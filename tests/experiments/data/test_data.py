"""Data sets on disk: every format, every bad input, the order of sources, the cache, downloads."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from regrow.experiments import data
from regrow.experiments.data import cache, download, idx, layouts, pickles, registry
from regrow.experiments.errors import UserError

IDX = [name.removesuffix(".gz") for name in registry.IDX_FILES]
load = partial(data.load, batch_size=8, valid_samples=5)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No cache, no variable, no mirrors, no packages but those that a test sets up."""
    monkeypatch.delenv("REGROW_DATA", raising=False)
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    for dataset in list(registry.DATASETS.values()):
        monkeypatch.setitem(registry.DATASETS, dataset.name, replace(dataset, mirrors=(), debian=None, system=()))


def alter(monkeypatch, name, **changes):
    monkeypatch.setitem(registry.DATASETS, name, replace(registry.DATASETS[name], **changes))


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def make_mnist(folder, monkeypatch, name="mnist", zipped=True, seed=0):
    """A tiny MNIST, made the published one."""
    random = np.random.default_rng(seed)
    arrays = [random.integers(0, 256, (30, 28, 28)), random.integers(0, 10, 30)]
    arrays += [random.integers(0, 256, (12, 28, 28)), random.integers(0, 10, 12)]
    contents = {file: idx_bytes(array.astype(np.uint8)) for file, array in zip(IDX, arrays, strict=True)}
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / f"{file}{'.gz' * zipped}").write_bytes(gzip.compress(content) if zipped else content)
    alter(monkeypatch, name, digests={file: hashlib.sha256(c).hexdigest() for file, c in contents.items()})
    return arrays


def make_pickles(folder, monkeypatch):
    random, digests, images = np.random.default_rng(0), {}, []
    folder.mkdir(parents=True)
    for name in pickles.TRAIN + pickles.TEST:
        images.append(random.integers(0, 256, (6, 3072)).astype(np.uint8))
        content = pickle.dumps({"data": images[-1], "labels": list(range(6))}, protocol=2)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.md5(content).hexdigest()
    alter(monkeypatch, "cifar10", digests=digests)
    return np.concatenate(images[:5]).reshape(-1, 3, 32, 32)


def encode(pixels, form="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def make_parquet(folder, column="img", size=32, form="PNG", rows=(20, 8), names=("train", "test")):
    folder.mkdir(parents=True, exist_ok=True)
    random, kept = np.random.default_rng(1), []
    for split, count in zip(names, rows, strict=True):
        pixels = random.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
        images = [{"bytes": encode(one, form), "path": None} for one in pixels]
        table = pa.table({column: images, "label": [row % 10 for row in range(count)]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=7)
        kept.append(pixels)
    return kept


def make_folder(folder, splits=("train", "val"), classes=("ant", "bee")):
    random = np.random.default_rng(2)
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 256, (40 + number, 50, 3)).astype(np.uint8)
                form = ("JPEG", "PNG")[number % 2]
                (folder / split / name / f"{number}.{form.lower()}").write_bytes(encode(pixels, form))


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


def test_damaged_arrow_cache_is_rebuilt(tmp_path):
    make_parquet(tmp_path, "image", names=("train", "validation"))
    first = next(load("imagenet", root=tmp_path, image_size=16).train.epoch())
    for stored in (tmp_path / "cache" / "decoded").glob("*.arrow"):
        stored.write_bytes(stored.read_bytes()[:-100])
    assert torch.equal(next(load("imagenet", root=tmp_path, image_size=16).train.epoch())[0], first[0])


# ---------------------------------------------------------------- bad input


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    with pytest.raises(UserError) as caught:
        list(loaded.test.epoch())
    assert str(bad) in one_line(caught)


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


# ---------------------------------------------------------------- sources


def test_order_of_sources(tmp_path, monkeypatch):
    system = tmp_path / "system"
    alter(monkeypatch, "mnist", system=(str(system),))
    assert data.find("mnist") is None
    make_mnist(system, monkeypatch)
    named = [tmp_path / "cache" / "mnist", tmp_path / "variable", tmp_path / "variable" / "mnist"]
    named += [tmp_path / "root", tmp_path / "root" / "mnist"]
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "variable"))
    assert data.find("mnist") == system
    for folder in named[:3]:
        shutil.copytree(system, folder, dirs_exist_ok=True)
        assert data.find("mnist") == folder
    assert data.find("mnist", tmp_path / "root") == named[0]  # an explicit root stands in for the variable
    for folder in named[3:]:
        shutil.copytree(system, folder, dirs_exist_ok=True)
        assert data.find("mnist", tmp_path / "root") == data.fetch("mnist", tmp_path / "root") == folder


def test_relatives_of_mnist_are_told_apart(tmp_path, monkeypatch):
    make_mnist(tmp_path / "cache" / "mnist", monkeypatch)
    make_mnist(tmp_path / "fashion", monkeypatch, "fashion-mnist", seed=1)
    assert data.find("mnist", tmp_path / "fashion") == tmp_path / "cache" / "mnist"
    assert data.find("fashion-mnist", tmp_path / "fashion") == tmp_path / "fashion"


def test_digits_need_nothing(tmp_path):
    loaded = load("digits")
    assert (loaded.train.samples, loaded.valid.samples, loaded.test.samples) == (1432, 5, 360)
    images = torch.cat([images for images, _ in loaded.train.epoch()])
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    assert not (tmp_path / "cache").exists()


class Server:
    """Serves a folder on the loopback address, and counts."""

    def __init__(self, folder):
        self.asked = asked = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def mirror(tmp_path):
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_mirror(tmp_path, monkeypatch, mirror):
    make_mnist(tmp_path / "served" / "mnist", monkeypatch)
    shutil.copytree(tmp_path / "served" / "mnist", tmp_path / "served" / "bad")
    (tmp_path / "served" / "bad" / f"{IDX[0]}.gz").write_bytes(gzip.compress(b"not this"))
    alter(monkeypatch, "mnist", mirrors=(mirror.address + "none/", mirror.address + "bad/", mirror.address + "mnist/"))
    assert data.find("mnist") is None
    assert not data.check("mnist")[0].good
    assert mirror.asked == []  # neither downloads
    assert load("mnist").train.samples == 25
    target = tmp_path / "cache" / "mnist"
    assert sorted(path.name for path in target.iterdir()) == sorted(registry.IDX_FILES)
    assert list(target.parent.iterdir()) == [target]  # no scratch is left
    asked = len(mirror.asked)
    load("mnist")
    assert len(mirror.asked) == asked
    kept = (target / registry.IDX_FILES[0]).stat()
    (target / registry.IDX_FILES[3]).unlink()  # an incomplete cache is completed; what is good stays
    load("mnist")
    assert (target / registry.IDX_FILES[0]).stat().st_mtime_ns == kept.st_mtime_ns


def test_bad_mirror_leaves_nothing(tmp_path, monkeypatch, mirror):
    make_mnist(tmp_path / "served" / "mnist", monkeypatch)
    (tmp_path / "served" / "mnist" / f"{IDX[0]}.gz").write_bytes(gzip.compress(b"not this"))
    alter(monkeypatch, "mnist", mirrors=(mirror.address + "mnist/",))
    with pytest.raises(UserError, match=f"{IDX[0]}.gz is damaged") as caught:
        load("mnist")
    one_line(caught)
    assert list((tmp_path / "cache").iterdir()) == []


def test_nothing_found_names_every_place_at_once(tmp_path, monkeypatch):
    alter(
        monkeypatch, "fashion-mnist", mirrors=("http://127.0.0.1:9/",), debian="no-such-package", system=("/nowhere",)
    )
    monkeypatch.setattr(download.shutil, "which", lambda _: None)
    (tmp_path / "root").mkdir()
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load("fashion-mnist", root=tmp_path / "root")
    assert time.perf_counter() - start < 3
    places = data.places("fashion-mnist", tmp_path / "root")
    assert len(places) == 6
    for part in (*places, "no apt", "no such folder", "not in that folder", IDX[0], "REGROW_DATA"):
        assert part in one_line(caught)


def test_mirror_that_never_answers(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: never.wait(5))
    with pytest.raises(download.UnavailableError, match="no answer in"):
        download.from_mirror("http://127.0.0.1/", ("file",), Path())
    never.set()


def test_debian_package(tmp_path, monkeypatch):
    make_mnist(tmp_path / "pool", monkeypatch, "fashion-mnist")
    alter(monkeypatch, "fashion-mnist", debian="dataset-fashion-mnist", system=("/usr/share/nowhere",))
    commands = []

    def run(command, folder):
        commands.append(command[:2])
        if command[:2] == ["apt-get", "download"]:
            if commands.count(["apt-get", "download"]) == 1:
                raise download.UnavailableError("no package lists")
            (Path(folder) / "package.deb").touch()
        if command[0] == "dpkg-deb":
            shutil.copytree(tmp_path / "pool", Path(folder) / "usr/share/nowhere")

    monkeypatch.setattr(download, "_run", run)
    monkeypatch.setattr(download.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(download.os, "geteuid", lambda: 0)
    assert data.fetch("fashion-mnist") == tmp_path / "cache" / "fashion-mnist"
    assert [command[1] for command in commands] == ["download", "update", "download", "-x"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["fashion-mnist"]


def test_check_tells_lossy_from_published(tmp_path, monkeypatch):
    make_parquet(tmp_path / "jpeg", form="JPEG")
    make_parquet(tmp_path / "png")
    make_pickles(tmp_path / "published", monkeypatch)
    said = {form: " ".join(map(str, data.check("cifar10", tmp_path / form))) for form in ("jpeg", "png", "published")}
    assert "not the originals" in said["jpeg"]
    assert "cannot be compared" in said["png"]
    assert "published files" in said["published"]
    assert all(record.good for form in said for record in data.check("cifar10", tmp_path / form))
