"""What processes send each other, counted by hand for a small network."""

import pytest
from runs import command, refused, tiny

import regrow
from regrow.experiments import models
from regrow.experiments.bench.common.spreads import Spread
from regrow.experiments.bench.processes.measure import KINDS, Figures, measure, table

OPTIONS = {"hidden": [300, 100]}


def measured(rank, size):
    return measure(rank, size, tiny(model_options=OPTIONS), 0.05, 1)


def test_what_is_sent_is_what_is_there(pair):
    model = models.build("mlp", image_shape=(1, 8, 8), classes=10, **OPTIONS)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    exist = sum(layer.nonzeros for layer in regrow.summary(regrow.sparsify(model, 0.05)).layers)
    for found in pair(measured):
        assert list(found) == list(KINDS)
        assert [found[kind].sent for kind in KINDS[:2]] == [4 * numbers] * 2
        assert found["masked, active sent"].sent == 4 * (exist + numbers - weights)
        assert 4 * (exist + numbers - weights) <= found["sparse"].sent < 0.2 * 4 * numbers
        assert {each.sent_in_window for each in found.values()} == {4 * numbers}
        assert all(each.milliseconds.low > 0 for each in found.values())
        assert found["dense"].speed == Spread(1, 1, 1)


def test_a_table_has_each_kind_beside_dense():
    figures = {kind: Figures(4 << 20, 8 << 20, Spread(20, 19, 22), Spread(1.5, 1.4, 1.75)) for kind in KINDS}
    shown = table({"digits-mlp": figures}, 0.1, 2)
    assert shown.columns[-2:] == ("ms a step", "times as fast as dense")
    assert shown.rows[3] == (
        "digits-mlp, sparse",
        "4.00",
        "100.0%",
        "8.00",
        "20.0 (19.0-22.0)",
        "1.50 (1.40-1.75)",
    )
    assert table({"digits-mlp": figures}, 0.1, 2, times=False).columns[-1] == "MiB in a window"


def test_one_process_sends_nothing():
    refused(command("bench", "processes", "digits-mlp", "--processes", "1"), "--processes 2 or more")


@pytest.mark.slow
def test_the_command_writes_a_table_with_machine_and_command(tmp_path):
    settings = ("--steps", "2", "--set", "model_options={hidden: [20]}", "--markdown", tmp_path / "page.md")
    assert command("bench", "processes", "digits-mlp", *settings).exit_code == 0
    page = (tmp_path / "page.md").read_text()
    assert page.count("| digits-mlp, ") == len(KINDS)
    assert "2 processes.\n" in page
