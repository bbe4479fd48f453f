"""Where a data set is looked for, in order: the user's folder, the cache, the system, mirrors, Debian's package."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from regrow.experiments.data import cache, download, layouts
from regrow.experiments.data.registry import Dataset, get
from regrow.experiments.errors import UserError

__all__ = ["VARIABLE", "fetch", "find", "folders", "places"]

VARIABLE = "REGROW_DATA"
"""The environment variable with the folder of data sets, or of the one data set."""


def folders(name: str, root: Path | None = None) -> list[Path]:
    """The folders that may hold the data set, in order.

    Args:
        name: of the data set.
        root: holds data sets by name, or is the data set; None means $REGROW_DATA.

    Raises:
        UserError: if no data set has that name, there is no such `root`, or scikit-learn, whose set it is, is missing.
    """
    dataset = get(name)
    given = root if root is not None else os.environ.get(VARIABLE)
    if given and not Path(given).expanduser().is_dir():
        raise UserError(f"there is no data folder {given}: name one that exists with --data or ${VARIABLE}, or neither")
    if "scikit-learn" in dataset.layouts:
        return [_of_scikit_learn()]
    chosen = [Path(given).expanduser() / name, Path(given).expanduser()] if given else []
    return [*chosen, cache.folder() / name, *map(Path, dataset.system)]


def _of_scikit_learn() -> Path:
    # Found without its import, which takes longer than a small run on its digits.
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UserError("the digits come with scikit-learn, which is not installed: pip install 'regrow[experiments]'")
    return Path(package.submodule_search_locations[0]) / "datasets" / "data"


def places(name: str, root: Path | None = None) -> list[str]:
    """Every place that `fetch` would look at, in order.

    Raises:
        UserError: if no data set has that name.
    """
    local = [str(folder) for folder in folders(name, root)]
    return local + [place for place, _ in _remote(get(name))]


def find(name: str, root: Path | None = None) -> Path | None:
    """The first folder on this machine that holds the data set; None if none does. Downloads nothing.

    Raises:
        UserError: if no data set has that name, or a folder holds a part of it only.
    """
    dataset = get(name)
    for folder in folders(name, root):
        if "scikit-learn" in dataset.layouts:
            return folder
        if folder == cache.folder() / name and not _complete(folder, dataset):
            continue  # what is missing there is fetched
        if layouts.recognise(folder, dataset) is not None:
            return folder
    return None


def fetch(name: str, root: Path | None = None) -> Path:
    """The folder that holds the data set, downloaded into the user's cache folder if no folder here does.

    Downloads are verified before they are moved there; files that are there already are left alone.

    Raises:
        UserError: if it is nowhere to be had; names every place and why it failed.
    """
    dataset = get(name)
    found = find(name, root)
    if found is not None:
        return found
    failures = [f"{folder}: {_absence(folder)}" for folder in folders(name, root)]
    for place, get_files in _remote(dataset):
        outcome = _install(dataset, get_files)
        if isinstance(outcome, Path):
            return outcome
        failures.append(f"{place}: {outcome}")
    contents = (
        ", ".join(dataset.files) or "train/<class>/* and val/<class>/*, or train-*.parquet and validation-*.parquet"
    )
    raise UserError(
        f"{name} was not found ({'; '.join(failures)}); put {contents} into a folder {name}/ and give the folder "
        f"above it with --data or ${VARIABLE}"
        + (f", or run `regrow data fetch {name}` online" if dataset.files else "")
    )


def _remote(dataset: Dataset) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Each place beyond this machine, with a function that puts the files into a folder."""
    for address in dataset.mirrors:
        yield address, partial(_from_mirror, address, dataset)
    if dataset.debian:
        yield f"apt-get download {dataset.debian}", partial(_from_debian, dataset.debian, dataset)


def _from_mirror(address: str, dataset: Dataset, folder: Path) -> None:
    download.from_mirror(address, dataset.files, folder)


def _from_debian(package: str, dataset: Dataset, folder: Path) -> None:
    download.from_debian(package, dataset.system, dataset.files, folder)


def _install(dataset: Dataset, get_files: Callable[[Path], None]) -> Path | str:
    """Let `get_files` fill a scratch folder, verify what it holds, and move it into the cache.

    Returns:
        The folder, or why it failed.
    """
    target = cache.folder() / dataset.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{dataset.name}.", dir=target.parent) as scratch:
            get_files(Path(scratch))
            layouts.read(Path(scratch), dataset)  # raises if anything is damaged
            target.mkdir(exist_ok=True)
            for name in dataset.files:
                if not (target / name).exists():
                    (Path(scratch) / name).replace(target / name)
        return target
    except UserError as error:
        # Without the scratch folder's name, and without what to do about a file that is gone.
        return re.sub(r"\S*/", "", str(error)).split(";")[0]
    except (download.UnavailableError, OSError) as error:
        return str(error)


def _complete(folder: Path, dataset: Dataset) -> bool:
    try:
        return layouts.recognise(folder, dataset) is not None
    except UserError:
        return False


def _absence(folder: Path) -> str:
    return "it is not in that folder" if folder.is_dir() else "no such folder"
