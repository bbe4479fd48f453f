"""The page about runs and studies: what is in it, that it needs no other file, and what it refuses."""

import base64
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from runs import command, refused, stop_after, tiny

from regrow.experiments.report.gather import gather
from regrow.experiments.report.layers import changes_table, flops_table, layer_counts
from regrow.experiments.report.page import train_command
from regrow.experiments.train.loop import train
from regrow.experiments.train.result import read_metrics

SMALL = ("--epochs", 3, "--seeds", 2, "--jobs", 1, "--set", "batch_size=128", "--set", "model_options={hidden: [24]}")


class Page(HTMLParser):
    """A page taken apart: its tags balance, and what it has of each."""

    VOID = ("meta", "img", "source", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def page_of(folder):
    done = command("report", folder)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{folder / 'report' / 'report.html'}\n"
    return Page((folder / "report" / "report.html").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    grid = ("--methods", "set,sparse-momentum", "--densities", "0.1,0.2")
    assert command("study", "density", "digits-mlp", "--out", out, *grid, *SMALL).exit_code == 0
    return out, page_of(out)


def test_the_page_of_a_study_has_all_that_was_asked_and_found(study):
    out, page = study
    plan = json.loads((out / "plan.json").read_text())
    assert plan["question"] in page.text
    assert plan["command"] in page.text
    assert plan["machine"] in page.text
    assert "10 finished runs in 5 groups" in page.text
    for words in ("sparse-momentum", "Smallest density whose mean reaches", "training FLOPs", "torch 2", "batch_size"):
        assert words in page.text
    assert "regrow train digits-mlp --method set --density 0.2 --epochs 3" in page.text


def test_the_page_needs_no_other_file(study):
    out, page = study
    places = [(tag, name, value) for tag, given in page.attributes for name, value in given.items() if value]
    links = [value for _, name, value in places if name in ("src", "href", "srcset")]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    text = (out / "report" / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    anchors = {given["id"] for _, given in page.attributes if "id" in given}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors


def test_every_figure_is_there_in_light_and_dark_and_as_a_file(study):
    out, page = study
    light = [given for tag, given in page.attributes if tag == "img"]
    dark = [given for tag, given in page.attributes if tag == "source"]
    files = {path.read_bytes() for path in (out / "report").glob("*.png")}
    contents = [base64.b64decode(given["src"].partition(",")[2]) for given in light]
    assert set(contents) == files
    assert len(files) == 6
    assert all(given["alt"] for given in light)
    assert all("dark" in given["media"] for given in dark)
    others = [base64.b64decode(given["srcset"].partition(",")[2]) for given in dark]
    assert all(content.startswith(b"\x89PNG") for content in (*contents, *others))
    assert not set(others) & files


def test_groups_are_runs_that_differ_in_their_seeds(study):
    folder = gather(study[0])
    assert [group.label for group in folder.groups] == [
        "dense", "set, 10 %", "set, 20 %", "sparse-momentum, 10 %", "sparse-momentum, 20 %",
    ]  # fmt: skip
    assert all(len(group.records) == 2 for group in folder.groups)
    assert folder.dense_beside(folder.groups[0]) is None
    assert all(folder.dense_beside(group) is folder.groups[0] for group in folder.groups[1:])


def test_layers_are_means_over_seeds_and_all_epochs(study):
    group = gather(study[0]).groups[3]
    counts = layer_counts(group)
    metrics = [read_metrics(study[0] / record.folder) for record in group.records]
    assert counts.layers == ("fc1", "fc2")
    assert counts.densities.shape == (2, 3)
    last = [rows[-1]["nonzeros_by_layer"]["fc2.weight"] / 240 for rows in metrics]
    assert counts.densities[1, -1] == pytest.approx(sum(last) / 2)
    grown = [sum(row["changes_by_layer"].get("fc1.weight", {}).get("grown", 0) for row in rows) for rows in metrics]
    assert sum(grown) > 0
    assert changes_table(group, counts).rows[0][6] == f"{sum(grown) / 2:,.0f}"
    assert layer_counts(gather(study[0]).groups[0]) is None  # dense


def test_flops_add_up(study):
    group = gather(study[0]).groups[1]
    total = flops_table(group).rows[-1]
    assert (total[0], total[2], total[5]) == ("all", "10", "0")
    assert total[3] == f"{sum(record.result['flops_train'] for record in group.records) / 2:.3g}"


def test_the_page_of_a_run(tmp_path):
    train(tiny(method="static"), tmp_path / "my <run>")
    page = page_of(tmp_path / "my <run>")
    assert "a run" in page.text
    assert "static" in page.text
    assert not (tmp_path / "my <run>" / "report" / "gains.png").exists()  # no layer moves
    assert "regrow train digits-mlp --method static --epochs 2 --set batch_size=128" in page.text


def test_the_page_of_runs_says_in_what_they_differ_and_what_is_unfinished(tmp_path):
    train(tiny(learning_rate=0.01), tmp_path / "a")
    train(tiny(learning_rate=0.02, valid_samples=200), tmp_path / "b")
    stop_after(tiny(seed=9), tmp_path / "c", 3, 15)
    page = page_of(tmp_path)
    assert "learning_rate=0.01" in page.text
    assert "1 unfinished" in page.text
    assert [group.label for group in gather(tmp_path).groups] == [
        "learning_rate=0.01", "learning_rate=0.02",
    ]  # fmt: skip
    page_of(tmp_path)  # the report itself is no run


def test_runs_of_older_versions_are_shown(tmp_path):
    train(tiny(), tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    result = {k: v for k, v in json.loads(path.read_text()).items() if "flops" not in k and k != "weights_by_layer"}
    path.write_text(json.dumps(result))
    page_of(tmp_path)
    assert {file.name for file in (tmp_path / "report").glob("*.png")} == {"accuracy.png", "training.png"}


def test_failed_runs_and_text_that_looks_like_a_tag_are_shown(study, tmp_path):
    out = tmp_path / "copy"
    train(tiny(epochs=1), out / "run")
    plan = {"study": "mine", "question": "is <b> safe?", "command": "", "failed": {"x": "a <script> & more"}}
    (out / "plan.json").write_text(json.dumps(plan))
    page = page_of(out)
    assert "script" not in page.tags
    assert "a <script> & more" in page.text
    assert "1 failed" in page.text


def test_the_command_of_a_run_makes_it_again(tmp_path):
    config = tiny(method="rigl", density=0.2, keep_dense=("last",), model_options={"hidden": [16]}, seed=3, epochs=1)
    train(config, tmp_path / "run")
    (group,) = gather(tmp_path).groups
    words = shlex.split(train_command(group.records[0]))
    assert words[:3] == ["regrow", "train", "digits-mlp"]
    assert command(*words[1:], "--out", tmp_path / "again").exit_code == 0
    again = (tmp_path / "again" / "config.yaml").read_text()
    assert again == (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "study",
    [
        "features",
        "methods",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("units", "compute", "sensitivity")),
    ],
)
def test_every_study_has_a_page(tmp_path, study):
    grids = {
        "units": ("--blocks", "1x1,2x1", "--densities", "0.2"),
        "compute": ("--bounds", "1,dense", "--set", "density=0.2"),
        "features": ("--densities", "0.2"),
        "sensitivity": ("--over", "momentum=0.5,0.9"),
        "methods": ("--methods", "dense,set,static", "--densities", "0.2"),
    }
    small = tuple({2: 1}.get(each, each) for each in SMALL)
    assert command("study", study, "digits-mlp", "--out", tmp_path, *grids[study], *small).exit_code == 0
    assert json.loads((tmp_path / "plan.json").read_text())["question"] in page_of(tmp_path).text


def test_folders_without_a_finished_run_and_damaged_files_are_named(tmp_path):
    refused(command("report", tmp_path), "holds no finished run")
    refused(command("report", tmp_path / "none"), "holds no finished run")
    train(tiny(epochs=1), tmp_path / "run")
    (tmp_path / "plan.json").write_text("{")
    refused(command("report", tmp_path), "plan.json is damaged")
    (tmp_path / "plan.json").unlink()
    (tmp_path / "run" / "config.yaml").write_text("[]")
    refused(command("report", tmp_path), "config.yaml is damaged")
