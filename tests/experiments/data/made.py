"""Tiny data sets in every format, written to a folder."""

import gzip
import hashlib
import io
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from regrow.experiments import data
from regrow.experiments.data import pickles, registry

IDX = [name.removesuffix(".gz") for name in registry.IDX_FILES]
load = partial(data.load, batch_size=8, valid_samples=5)


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


def publish(archive, monkeypatch):
    """Make an archive of CIFAR-10 the published one."""
    digests = {**registry.DATASETS["cifar10"].digests, archive.name: hashlib.md5(archive.read_bytes()).hexdigest()}
    alter(monkeypatch, "cifar10", digests=digests)


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


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)
