"""Data sets: found on this machine or fetched, verified, and cut into batches whose order is reproducible."""

from __future__ import annotations

from regrow.experiments.data.batches import Batches, Share
from regrow.experiments.data.checks import Record, check
from regrow.experiments.data.loading import Data, load
from regrow.experiments.data.registry import DATASETS, Dataset
from regrow.experiments.data.sources import fetch, find, places

__all__ = ["DATASETS", "Batches", "Data", "Dataset", "Record", "Share", "check", "fetch", "find", "load", "places"]
