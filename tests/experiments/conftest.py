import pytest
from runs import ALWAYS, dropout_mlp, tiny

from regrow.experiments import models


@pytest.fixture
def small_runs(monkeypatch):
    """Make settings of runs of a small network with dropout, saved after every step; returns how."""
    monkeypatch.setitem(models.MODELS, "dropout-mlp", dropout_mlp)

    def make(**changes):
        common = {"model": "dropout-mlp", "model_options": {}, "save_every_seconds": ALWAYS}
        return tiny(**{**common, **changes})

    return make
