"""Peak memory of training: that of a process of its own, and what cannot be measured is told."""

import pytest
import torch
from runs import tiny

from regrow.experiments.bench.common.process_memory import forget_peak, held, peak
from regrow.experiments.bench.steps.peak import peaks
from regrow.experiments.train.config import override
from regrow.experiments.train.presets import preset

CONFIG = tiny(density=0.3, batch_size=16, growth="window:3")
MIB = 1 << 20


def test_a_peak_is_remembered_until_it_is_forgotten():
    before = held()
    ballast = torch.ones(64 * MIB)
    assert peak() >= held() > before + 200 * MIB
    del ballast
    assert peak() > before + 200 * MIB
    try:
        forget_peak()
    except OSError:
        pytest.skip("this system lets no process forget its peak")
    assert peak() < before + 100 * MIB


def test_the_peak_is_that_of_a_process_of_its_own():
    ballast = torch.ones(1 << 26)  # 256 MiB that this process has held, and a new one has not
    del ballast
    config = override(
        preset("cifar10-mlp"),
        {"density": 0.02, "batch_size": 4, "growth": "window:3", "model_options": {"hidden": [1024]}},
    )
    found, failed = peaks(config, ("dense", "sparse"), "cpu")
    assert failed == {}
    weights = 4 * (3072 * 1024 + 1024 * 10)
    # weights, gradients and momentum; some of their pages the process may have touched before it began
    assert 2.9 * weights <= found["dense"] < 5 * weights
    assert found["sparse"] < weights
    assert found["sparse, update"] > found["sparse"] + weights  # growth looks at all absent weights before


@pytest.mark.slow
def test_static_training_has_no_peak_around_an_update():
    found, _ = peaks(override(CONFIG, {"method": "static", "growth": None}), ("sparse",), "cpu")
    assert set(found) == {"sparse"}


@pytest.mark.slow
def test_what_has_no_peak_is_told():
    found, failed = peaks(override(CONFIG, {"method": "nowhere.py:recipe"}), ("dense", "sparse"), "cpu")
    assert set(found) == {"dense"}
    assert failed["sparse"].startswith("its peak memory could not be measured: ")
    assert "there is no file nowhere.py" in failed["sparse"]
