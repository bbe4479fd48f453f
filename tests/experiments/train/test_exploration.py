"""The exploration rate in metrics and results, and over a stop."""

import json

import pytest
from runs import metrics, stop_after, tiny

from regrow.experiments.train.loop import train


@pytest.mark.parametrize(
    ("method", "first", "grows"),
    [("dense", 1.0, False), ("static", 0.1, False), ("set", 0.1, True), ("gmp", 1.0, False)],
)
def test_metrics_and_result_have_the_exploration_rate(method, first, grows, tmp_path):
    density = {} if method == "dense" else {"density": 0.1}
    config = tiny(method=method, epochs=3, update_every=0.5, **density)
    result = train(config, tmp_path)
    rates = [row["explored"] for row in metrics(tmp_path)]
    assert result["explored"] == json.loads((tmp_path / "result.json").read_text())["explored"] == rates[-1]
    assert rates == sorted(rates)
    if grows:
        assert first < rates[0] < rates[-1] < 1
    else:
        assert rates == pytest.approx([first] * 3, abs=1e-4)


@pytest.mark.parametrize("method", ["itop", "sparse-momentum"])
@pytest.mark.parametrize("backend", ["masked", "cpu"])
def test_the_rate_goes_on_after_a_stop(method, backend, tmp_path):
    config = tiny(method=method, backend=backend, update_every=0.3)
    train(config, tmp_path / "whole")
    stop_after(config, tmp_path / "stopped", 12, 15)
    train(config, tmp_path / "stopped", resume=True)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
