from dataclasses import replace

import pytest

from regrow.experiments.data import cache, registry


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No cache, no variable, no mirrors, no packages but those that a test sets up."""
    monkeypatch.delenv("REGROW_DATA", raising=False)
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    for dataset in list(registry.DATASETS.values()):
        monkeypatch.setitem(registry.DATASETS, dataset.name, replace(dataset, mirrors=(), debian=None, system=()))
