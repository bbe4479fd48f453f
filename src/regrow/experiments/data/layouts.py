"""How a data set may lie in a folder: what is there, and reading it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from regrow.experiments.data import cache, idx, pickles, text
from regrow.experiments.data.digests import digest
from regrow.experiments.data.progress import tracker
from regrow.experiments.data.randomness import Purpose, torch_generator
from regrow.experiments.data.registry import DATASETS, Dataset
from regrow.experiments.data.samples import (
    EVALUATION,
    FolderSamples,
    Samples,
    TableSamples,
    decoded,
    parquet_files,
    read_tables,
)
from regrow.experiments.errors import UserError

__all__ = ["DIGITS_TEST", "Split", "open_samples", "read", "recognise"]

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (N, C, H, W) and labels (N,)."""

DIGITS_TEST = 360
"""A fifth of the digits, as scikit-learn has no split of its own."""


def recognise(folder: Path, dataset: Dataset) -> str | None:
    """The first of the data set's layouts that `folder` has; None if it has none.

    Raises:
        UserError: if it holds a part of the set only; names what is missing.
    """
    for layout in dataset.layouts:
        try:
            there, missing = _inventory(folder, dataset, layout)
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error}); change its permissions or name another") from error
        if there and missing:
            raise UserError(
                f"{folder} holds a part of {dataset.name} only: it lacks {', '.join(missing)}; "
                "add that, or take the rest away so that other places are tried"
            )
        if there:
            return layout
    return None


def _inventory(folder: Path, dataset: Dataset, layout: str) -> tuple[list[str], list[str]]:
    """What of a layout is there, and what is missing."""
    if layout == "idx":
        there = [name for name in dataset.digests if idx.present(folder, name)]
        if _is_another(folder, dataset):
            return [], []
        return there, [name for name in dataset.digests if name not in there]
    if layout == "pickles":
        inside = pickles.folder_of(folder)
        there = [name for name in pickles.TRAIN + pickles.TEST if (inside / name).is_file()]
        if not there and (folder / pickles.ARCHIVE).is_file():
            return [pickles.ARCHIVE], []
        return there, [name for name in pickles.TRAIN + pickles.TEST if name not in there]
    if layout == "parquet":
        splits = {
            "train-*.parquet": parquet_files(folder, ("train",)),
            "validation-*.parquet or test-*.parquet": parquet_files(folder, EVALUATION),
        }
        missing = [name for name, files in splits.items() if not files]
        return [name for name in splits if name not in missing], missing + [
            shard for files in splits.values() for shard in _missing_shards(files)
        ]
    if layout == "text":
        return [name for name in dataset.files if (folder / name).is_file()], []
    if layout == "folder":
        folders = {"train/": ["train"], "val/ or test/": EVALUATION}
        there = [name for name, options in folders.items() if any((folder / one).is_dir() for one in options)]
        return there, [name for name in folders if name not in there]
    return [], []


def _is_another(folder: Path, dataset: Dataset) -> bool:
    """Whether the IDX files are those of another data set: all relatives of MNIST have the same file names."""
    name = "t10k-labels-idx1-ubyte"
    path = idx.present(folder, name)
    if path is None:
        return False
    others = {other.digests.get(name) for other in DATASETS.values()} - {dataset.digests[name]}
    try:
        return digest(idx.content(path)) in others
    except UserError:
        return False  # damaged: reading it says so


def _missing_shards(files: Sequence[Path]) -> list[str]:
    """Names of the parquet files that `...-of-N` in the others' names promises."""
    missing = []
    if files and (match := re.fullmatch(r"(.*-)(\d+)-of-(\d+)\.parquet", files[0].name)):
        prefix, digits, total = match[1], len(match[2]), match[3]
        names = [f"{prefix}{number:0{digits}}-of-{total}.parquet" for number in range(int(total))]
        missing = [name for name in names if name not in {path.name for path in files}]
    return missing


def read(folder: Path, dataset: Dataset) -> tuple[Split, Split]:
    """The training and the test set, decoded; of a text, characters (N, 1, 1, T) and the one after each (N, T).

    Raises:
        UserError: if a file is missing, damaged, or not what the data set consists of.
    """
    layout = "scikit-learn" if "scikit-learn" in dataset.layouts else recognise(folder, dataset)
    if layout == "scikit-learn":
        return _digits(folder)
    if layout == "idx":
        return idx.read(folder, dataset, "train"), idx.read(folder, dataset, "test")
    if layout == "text":
        return text.read(folder, dataset)
    if layout == "pickles":
        return pickles.read(folder, dataset, "train"), pickles.read(folder, dataset, "test")
    if layout != "parquet":
        raise UserError(f"{folder} does not hold {dataset.name}; `regrow data list` says where it is looked for")
    train_files, test_files = parquet_files(folder, ("train",)), parquet_files(folder, EVALUATION)

    def decode_all() -> cache.Arrays:
        train, test = _decode_split(train_files, dataset), _decode_split(test_files, dataset)
        return {"train_images": train[0], "train_labels": train[1], "test_images": test[0], "test_labels": test[1]}

    arrays = cache.decoded(dataset.name, [*train_files, *test_files], decode_all)
    return (arrays["train_images"], arrays["train_labels"]), (arrays["test_images"], arrays["test_labels"])


def _decode_split(files: list[Path], dataset: Dataset) -> Split:
    samples = TableSamples(files, partial(read_tables, files))
    mode, size = ("L", "RGB")[dataset.channels == 3], (dataset.image_size,) * 2
    images = np.empty((len(samples.labels), *size, dataset.channels), np.uint8)
    with tracker(f"decoding {dataset.name}", len(images)) as advance:
        for index in range(len(images)):
            with decoded(samples, index, mode) as image:
                if image.size != size:
                    raise UserError(
                        f"{samples.where(index)} is {image.size[0]}x{image.size[1]}, but {dataset.name} has images "
                        f"of {size[0]}x{size[1]}; point --data at the right set"
                    )
                images[index] = np.asarray(image).reshape(*size, dataset.channels)
            advance(1)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), samples.labels


def _digits(folder: Path) -> tuple[Split, Split]:
    table = np.loadtxt(folder / "digits.csv.gz", delimiter=",")
    images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
    # They come sorted by writer, so the test set is drawn from all of them.
    order = torch.randperm(len(images), generator=torch_generator(Purpose.SPLIT, 0)).numpy()
    test, train = np.sort(order[:DIGITS_TEST]), np.sort(order[DIGITS_TEST:])
    return (images[train], labels[train]), (images[test], labels[test])


def open_samples(folder: Path, dataset: Dataset) -> tuple[Samples, Samples]:
    """The training and the evaluation set, encoded.

    Raises:
        UserError: if a file is missing or damaged, or the two sets' classes differ.
    """
    if recognise(folder, dataset) == "parquet":
        train_files, test_files = parquet_files(folder, ("train",)), parquet_files(folder, EVALUATION)
        return cache.copied(f"{dataset.name}-train", train_files), cache.copied(f"{dataset.name}-val", test_files)
    evaluation = next((folder / name for name in EVALUATION if (folder / name).is_dir()), folder / "val")
    train, test = FolderSamples(folder / "train"), FolderSamples(evaluation)
    if unknown := sorted(set(test.classes) ^ set(train.classes)):
        raise UserError(
            f"{folder / 'train'} and {evaluation} differ in their classes: {', '.join(unknown[:5])}; "
            "both need the same folders"
        )
    return train, test
