"""Looking a data set over without loading it for training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regrow.experiments.data import layouts
from regrow.experiments.data.registry import Dataset, get
from regrow.experiments.data.samples import EVALUATION, Samples, TableSamples, parquet_files, read_tables
from regrow.experiments.data.sources import find, places
from regrow.experiments.errors import UserError

__all__ = ["Record", "check"]


@dataclass(frozen=True)
class Record:
    """What a check found: `good` is False where something must be mended."""

    name: str
    good: bool
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {'good' if self.good else 'BAD'}: {self.message}"


def check(name: str, root: Path | None = None) -> list[Record]:
    """Verify the copy of a data set that would be used; nothing is downloaded, and what is wrong does not raise.

    >>> print(*check("digits"))
    digits: good: 1437 training and 360 test images, part of scikit-learn

    Raises:
        UserError: if no data set has that name.
    """
    dataset = get(name)
    try:
        folder = find(name, root)
        if folder is None:
            return [Record(name, False, f"not on this machine; looked for in: {', '.join(places(name, root))}")]
        return _describe(folder, dataset)
    except UserError as error:
        return [Record(name, False, str(error))]


def _describe(folder: Path, dataset: Dataset) -> list[Record]:
    good = partial(Record, dataset.name, True)
    if not dataset.in_memory:
        train, test = layouts.open_samples(folder, dataset)
        counts = f"{len(train.labels)} training and {len(test.labels)} evaluation images"
        return [good(f"{counts} in {folder}; there is no digest to compare them with")]
    (train_images, _), (test_images, _) = layouts.read(folder, dataset)
    counts = f"{len(train_images)} training and {len(test_images)} test {dataset.what}"
    if "scikit-learn" in dataset.layouts:
        return [good(f"{counts}, part of scikit-learn")]
    if not dataset.digests:
        return [good(f"{counts} in {folder}; there is no digest to compare them with")]
    if layouts.recognise(folder, dataset) != "parquet":
        return [good(f"{counts} in {folder}; the digests are those of the published files")]
    records = [good(f"{counts} in {folder}")]
    for split in (("train",), EVALUATION):
        files = parquet_files(folder, split)
        records.append(good(f"{files[0].name}: {_fidelity(TableSamples(files, partial(read_tables, files)))}"))
    return records


def _fidelity(samples: Samples) -> str:
    """Whether re-encoded images can be the originals: a JPEG cannot, as its pixels are approximations."""
    lossy = sum(samples.encoded(index).startswith(b"\xff\xd8") for index in range(len(samples.labels)))
    if lossy:
        return (
            f"{lossy} of {len(samples.labels)} images are JPEG, so their pixels are not the originals: "
            "do not compare accuracies with published ones"
        )
    return "not the published files, so their digests cannot be compared; the images are not JPEG"
