"""What processes send each other, counted by hand for a small network."""

from runs import command, refused, tiny

import regrow
from regrow.experiments import models
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
        assert all(each.seconds > 0 for each in found.values())


def test_a_table_has_each_kind_beside_dense():
    figures = {kind: Figures(4 << 20, 8 << 20, 0.002) for kind in KINDS}
    shown = table({"digits-mlp": figures}, 0.1, 2)
    assert shown.columns[-1] == "ms a step"
    assert shown.rows[3] == ("digits-mlp, sparse", "4.00", "100.0%", "8.00", "2.0")
    assert table({"digits-mlp": figures}, 0.1, 2, times=False).columns[-1] == "MiB in a window"


def test_one_process_sends_nothing():
    refused(command("bench", "processes", "digits-mlp", "--processes", "1"), "--processes 2 or more")
