"""The ready-made studies: their grids, their statistics on made results, and a small run of each."""

import json
import math

import pytest
import torch
from runs import command, refused, tiny

import regrow
from regrow.experiments.study import ablation
from regrow.experiments.study.ablation import ABLATION_STUDY
from regrow.experiments.study.anova import two_way
from regrow.experiments.study.density import DENSITY_STUDY, smallest_within_dense
from regrow.experiments.study.features import FeatureRun, specialisation
from regrow.experiments.study.methods import METHODS_STUDY
from regrow.experiments.study.sensitivity import SENSITIVITY_STUDY
from regrow.experiments.train.run import Run
from regrow.methods import METHODS

SMALL = ("--epochs", 2, "--seeds", 2, "--jobs", 1, "--set", "batch_size=128", "--set", "model_options={hidden: [24]}")


def made(axes, accuracies):
    """Rows of a study: for each point the test accuracies in percent of seeds 0, 1, ..., with FLOPs."""
    counted = {"flops_train": 10, "flops_train_dense": 40, "flops_inference": 3, "flops_inference_dense": 30}
    return [
        {**dict(zip(axes, key, strict=True)), "seed": seed, "test_accuracy": right / 100, **counted}
        for key, each in accuracies.items()
        for seed, right in enumerate(each)
    ]


# density


def test_the_smallest_density_within_the_interval_of_dense():
    rows = {
        ("dense", 1.0): [98.0, 98.2, 98.4],  # 98.2 ± 0.497: from 97.70
        ("set", 0.01): [90.0, 91.0, 92.0],
        ("set", 0.05): [97.6, 97.7, 97.8],
        ("set", 0.1): [97.7, 97.8, 97.9],
        ("rigl", 0.01): [99.0, 99.0, 99.0],  # above the interval is no worse
        ("static", 0.1): [10.0, 10.0, 10.0],
    }
    cells = DENSITY_STUDY.collect(made(("method", "density"), rows))
    low = 98.2 - 4.302653 * 0.2 / math.sqrt(3)
    assert low == pytest.approx(97.703, abs=1e-3)
    assert [smallest_within_dense(cells, method) for method in ("set", "rigl", "static")] == [0.1, 0.01, None]
    text = DENSITY_STUDY.markdown(cells, "mine")
    assert "| set | 5 % | 97.70 ± 0.06 | 97.45 to 97.95 | 3 | -0.50 ± 0.06 | 25 | 10 |" in text
    assert "| static | none of these |" in text


def test_one_seed_of_dense_gives_no_interval():
    cells = DENSITY_STUDY.collect(made(("method", "density"), {("dense", 1.0): [98.0], ("set", 0.1): [98.0]}))
    assert smallest_within_dense(cells, "set") is None
    assert "| set | unknown: one seed of dense |" in DENSITY_STUDY.markdown(cells)


# methods


def test_methods_are_compared_with_the_best_other_one():
    rows = {
        ("dense", "own", 1.0): [99.0, 99.0],
        ("set", "own", 0.1): [96.0, 96.2],
        ("rigl", "own", 0.1): [97.0, 97.4],
        ("static", "own", 0.1): [95.0, 96.6],
        ("set", "uniform", 0.1): [94.0, 94.0],
        ("rigl", "uniform", 0.1): [90.0, 90.0],
    }
    text = METHODS_STUDY.markdown(METHODS_STUDY.collect(made(("method", "distribution", "density"), rows)), "mine")
    own, uniform = text.split("### ")[1:]
    assert own.startswith("mine at 10 %, each with its own distribution")
    assert uniform.startswith("mine at 10 %, all uniform")
    assert [line.split(" | ")[0] for line in own.splitlines()[4:8]] == ["| dense", "| rigl", "| set", "| static"]
    # 2.8 % beside 3.9 %; the two seeds differ by 1.0 and 1.2
    assert "| rigl | 2.80 ± 0.20 | 0.26 to 5.34 | 2 | set | -1.10 ± 1.27 | -28.2 | 25 | 10 |" in own
    assert "| set | 3.90 ± 0.10 | 2.63 to 5.17 | 2 | rigl | +1.10 ± 1.27 | +39.3 | 25 | 10 |" in own
    assert "| dense | 1.00 ± 0.00 | 1.00 to 1.00 | 2 | - | - | - | 25 | 10 |" in uniform
    assert "| rigl | 10.00 ± 0.00 | 10.00 to 10.00 | 2 | set | +4.00 ± 0.00 | +66.7 |" in uniform


def test_a_distribution_that_is_the_method_s_own_is_run_once():
    values = {"method": ["dense", "static", "set"], "distribution": ["own", "uniform"], "density": [0.1, 0.2]}
    runs = METHODS_STUDY.runs(tiny(), values, [0])
    assert list(runs) == ["dense-seed0", "static-0.1-seed0", "static-0.2-seed0"] + [
        f"set{spread}-{density}-seed0" for spread in ("", "-uniform") for density in (0.1, 0.2)
    ]
    static = runs["static-0.1-seed0"]
    assert static.config.distribution is None
    assert [point["distribution"] for point in static.points] == ["own", "uniform"]
    assert len(METHODS_STUDY.rows(static, {"seed": 0})) == 2
    assert len(METHODS_STUDY.rows(runs["dense-seed0"], {"density": 1.0})) == 2  # one for each distribution


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_recipe_takes_part_in_the_study_of_methods(method):
    values = {"method": [method], "distribution": ["own", "uniform"], "density": [0.1]}
    assert METHODS_STUDY.runs(tiny(), values, [0])


# ablation


def test_parts_are_taken_by_the_names_that_the_settings_know():
    known = {setting: ablation._known(setting) for setting in ("redistribute", "grow")}
    assert {"method", "keep"} <= set(known["redistribute"])
    assert known["grow"][0] == "method"
    for axis in ABLATION_STUDY.axes[1:3]:
        assert axis.parse(axis.default)
        for name in axis.parse(axis.default):
            assert axis.settings(name) == ({} if name == "method" else {axis.name: name})


def test_networks_grow_in_depth_and_width():
    axis = ABLATION_STUDY.axes[0]
    sizes = [axis.settings(name)["model_options"]["hidden"] for name in axis.parse(axis.default)]
    assert sizes == [[100], [100] * 2, [100] * 4, [50] * 2, [200] * 2]
    values = {"network": ["1x8", "2x8", "vgg-small:0.25"], "redistribute": ["method", "keep"], "grow": ["method"]}
    runs = ABLATION_STUDY.runs(tiny(), {**values, "density": [0.2]}, [0])
    assert len(runs) == 6
    assert {run.config.model for run in runs.values()} == {"mlp", "vgg-small"}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--networks", "2x", "DEPTHxWIDTH"),
        ("--networks", "resnet1999", "DEPTHxWIDTH"),
        ("--redistribute", "magic", "there is no redistribute 'magic'"),
        ("--grow", "magic", "there is no grow 'magic'"),
    ],
)
def test_mistakes_in_the_ablation_are_named(tmp_path, option, value, words):
    refused(command("study", "ablation", "digits-mlp", "--out", tmp_path, option, value), words)


def test_an_ablation(tmp_path):
    grid = ("--networks", "1x16,2x16", "--redistribute", "method,keep", "--grow", "method", "--densities", "0.2")
    done = command("study", "ablation", "digits-mlp", "--out", tmp_path, *grid, *SMALL[:-2])
    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "table.md").read_text().startswith("| network | redistribution | growth | 20 %: test error | tr")
    assert len(list(tmp_path.glob("*/result.json"))) == 8
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


# sensitivity


def test_dense_is_beside_each_value_and_runs_once_where_it_does_not_matter():
    values = {"setting": ["prune_rate=0.2", "prune_rate=0.5", "momentum=0.5", "momentum=0.9"]}
    runs = SENSITIVITY_STUDY.runs(tiny(), {**values, "method": ["dense", "set"]}, [0])
    assert list(runs) == [
        "dense-seed0", "set-0.1-seed0-prune_rate-0.2", "set-0.1-seed0-prune_rate-0.5", "dense-seed0-momentum-0.5",
        "set-0.1-seed0-momentum-0.5", "set-0.1-seed0",
    ]  # fmt: skip
    dense = [point["setting"] for point in runs["dense-seed0"].points]
    assert dense == ["prune_rate=0.2", "prune_rate=0.5", "momentum=0.9"]


@pytest.mark.slow
def test_sensitivity_sets_sparse_beside_dense(tmp_path):
    over = ("--over", "momentum=0.5,0.9 prune_rate_decay=cosine", "--methods", "dense,set")
    done = command("study", "sensitivity", "digits-mlp", "--out", tmp_path, *over, *SMALL)
    assert (done.exit_code, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "study.json").read_text())
    assert len(rows) == 2 * 6
    text = (tmp_path / "table.md").read_text()
    assert "### digits-mlp, momentum: mean ± standard error" in text
    assert "| 0.9 | set | " in text
    assert "| cosine | set | " in text
    assert text.index("| 0.5 | set | ") < text.index("| 0.9 | set | ")
    cells = SENSITIVITY_STUDY.collect(rows)
    assert SENSITIVITY_STUDY.markdown(cells, "digits-mlp") + "\n" == text
    apart = {(row["setting"], row["method"], row["seed"]): row["test_accuracy"] for row in rows}
    shown = [100 * (apart["momentum=0.5", "dense", s] - apart["momentum=0.5", "set", s]) for s in (0, 1)]
    assert f" | {sum(shown) / 2:+.2f} ± {abs(shown[0] - shown[1]) / 2:.2f} | " in text
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("over", ["momentum", "magic=1,2", "momentum=0.5,,0.9", "momentum=2"])
def test_mistakes_in_settings_are_named(tmp_path, over):
    refused(command("study", "sensitivity", "digits-mlp", "--out", tmp_path, "--over", over), "momentum")


# features


def test_the_specialisation_of_channels_by_hand():
    # totals 1, 4, 40, 55 of 100: the first two together are the lowest 5 %
    activation = torch.tensor([[1.0, 2.0, 10.0, 55.0], [0.0, 2.0, 30.0, 0.0]])
    assert specialisation(activation).tolist() == pytest.approx([0.75, 1.0])
    # 6 of 100 are more than 5 %
    assert len(specialisation(torch.tensor([[6.0, 94.0]]))) == 2
    assert specialisation(torch.zeros(10, 3)).tolist() == []


def test_activations_are_summed_by_class_and_channel(monkeypatch):
    run = FeatureRun(tiny(model="vgg-small", model_options={"width": 0.25}, backend="cpu", density=0.2))
    reference = regrow.densify(Run(run.config).model).eval()
    images, labels = next(iter(run.data.test.epoch()))
    monkeypatch.setattr(run.data.test, "epoch", lambda: iter([(images, labels)]))
    sums = run._activations()
    assert [name.startswith("relu") for name in sums] == [True] * 6
    with torch.no_grad():
        first = reference.relu1_1(reference.bn1_1(reference.conv1_1(images)))
    for label in range(10):
        torch.testing.assert_close(sums["relu1_1"][label], first[labels == label].double().sum(dim=(0, 2, 3)))
    assert regrow.masks(run.model)  # the run's own model is as it was


def test_a_study_of_features(tmp_path):
    done = command("study", "features", "digits-mlp", "--out", tmp_path, "--densities", "0.2", *SMALL)
    assert (done.exit_code, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "study.json").read_text())
    assert all(list(row["specialisation_by_layer"]) == ["relu1"] for row in rows)
    assert all(0.1 <= value <= 1 for row in rows for value in row["specialisation_by_layer"]["relu1"])
    text = (tmp_path / "table.md").read_text()
    assert "| sparse-momentum | 20 % | 0." in text
    assert "| not possible: it takes two layers" in text  # an analysis by layer needs two
    deeper = command(
        "study", "features", "digits-mlp", "--out", tmp_path / "two", "--densities", "0.2", *SMALL[:-1],
        "model_options={hidden: [24, 16]}",
    )  # fmt: skip
    assert deeper.exit_code == 0
    text = (tmp_path / "two" / "table.md").read_text()
    assert "sparse-momentum at 20 % beside dense: analysis of variance" in text
    assert [line.split(" | ")[0] for line in text.splitlines()[-4:]] == [
        "| layer", "| sparse", "| layer x sparse", "| residual",
    ]  # fmt: skip
    assert (tmp_path / "two" / "specialisation.png").read_bytes().startswith(b"\x89PNG")


def test_the_analysis_of_variance_of_equal_groups_by_hand():
    # cells of two values each: means 1.5, 3.5; 4.5, 8.5; the grand mean is 4.5
    values, first, second = [1, 2, 3, 4, 4, 5, 8, 9], list("aaaabbbb"), list("xxyyxxyy")
    found = two_way(values, first, second)
    squares = {"first": 8 * 2.0**2, "second": 8 * 1.5**2, "interaction": 8 * 0.5**2, "residual": 4 * 0.5}
    assert {name: effect.squares for name, effect in found.items()} == pytest.approx(squares)
    assert {name: effect.freedom for name, effect in found.items()} == {
        "first": 1, "second": 1, "interaction": 1, "residual": 4,
    }  # fmt: skip
    assert found["first"].f == pytest.approx(32 / 0.5)
    assert found["interaction"].p == pytest.approx(0.1161165, rel=1e-5)  # of F = 4 with 1 and 4 degrees
    assert found["second"].eta_squared == pytest.approx(18 / 54)
    assert found["second"].omega_squared == pytest.approx((18 - 0.5) / (54 + 0.5))


def test_groups_may_be_of_any_sizes():
    """Type II: what a factor explains beside the other, here a factor that explains nothing once the other is known."""
    values = [0.0, 0.1, 0.0, 0.1, 5.0, 5.1, 5.0, 5.1, 5.0, 5.1]
    first, second = list("aaaabbbbbb"), list("xxyyxxyyyy")
    found = two_way(values, first, second)
    assert found["second"].squares == pytest.approx(0, abs=1e-12)
    assert found["first"].eta_squared > 0.99
    with pytest.raises(ValueError, match="two levels"):
        two_way([1, 2, 3], list("aaa"), list("xyx"))
