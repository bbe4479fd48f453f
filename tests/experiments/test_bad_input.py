"""A mistake of the user gives one clear line on stderr and status 2, and costs nothing that was there."""

import json

import pytest
from runs import command, refused, tiny

from regrow.experiments.files import lock_folder
from regrow.experiments.train.loop import train

RECIPES = """
import regrow
number = 3
def takes_nothing(): return None
def returns_a_number(every, steps): return 3
def raises(every, steps): raise KeyError("mistake")
def good(every, steps): return regrow.set(every=every, steps=steps)
recipe = regrow.static(every=1, steps=10)
"""


def setting(pair, *words):
    return pytest.param(["--set", pair], words, id=pair)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "sett"], ["there is no method 'sett'", "did you mean set"]),
        (["--method", "magic"], ["there is no method 'magic'", "dense, static, set, rigl, sparse-momentum"]),
        (["--density", "0"], ["density = 0.0", "greater than 0"]),
        (["--density", "-0.1"], ["density = -0.1", "greater than 0"]),
        (["--density", "1.5"], ["density = 1.5", "less than or equal to 1"]),
        (["--density", "nan"], ["density = nan"]),
        (["--density", "0.00001"], ["too small to leave layer 'fc1.weight' one of its", "take 0.0011 or more"]),
        (["--method", "dense", "--density", "0.5"], ["dense method has density 1"]),
        (["--backend", "magic"], ["there is no backend 'magic'", "auto, masked"]),
        (["--epochs", "0"], ["epochs = 0", "greater than or equal to 1"]),
        (["--seed", "-1"], ["seed = -1"]),
        (["--seed", str(2**64)], [f"seed = {2**64}", "less than"]),
        setting("batch_size=9223372036854775808", "batch_size = 9223372036854775808"),
        setting("block=4", "block = 4"),
        setting("block=01x1", "block = '01x1'", "outputs x inputs"),
        setting("seed=2001-99-99", "not valid YAML"),
        setting("keep_dense=[head*]", "'head*' matches no weight", "fc1.weight, fc2.weight, fc3.weight"),
        setting("keep_dense=3", "keep_dense = 3 does not fit"),
        setting("preset=digits-mlp", "name the preset as the first argument"),
        setting("momentum=0", "needs momentum", "use SGD with momentum, Adam or AdamW"),
        setting("density", "write key=value"),
        setting("keep_dense=[first", "not valid YAML"),
        setting("learning_rat=1", "there is no setting 'learning_rat'", "learning_rate"),
        setting("epochs=many", "epochs = 'many'", "valid integer"),
        setting("epochs=1.5", "epochs = 1.5", "valid integer"),
        setting("epochs=", "epochs = None"),
        setting("optimizer=lion", "optimizer = 'lion'", "'sgd', 'adam' or 'adamw'"),
        setting("learning_rate=.inf", "learning_rate = inf", "finite number"),
        setting("learning_rate_drops=[.nan]", "learning_rate_drops.0 = nan", "finite number"),
        setting("update_every=0", "update_every = 0", "greater than 0"),
        setting("distribution=normal", "there is no distribution 'normal'", "erdos-renyi"),
        setting("device=toaster", "device 'toaster' cannot be used here"),
        setting("device=meta", "device 'meta' cannot be used here"),
        setting("data=mnits", "no data set is called 'mnits'", "mnist"),
        setting("valid_samples=100000", "valid_samples is 100000", "take fewer"),
        setting("image_size=9", "image_size is 9", "leave image_size out"),
        setting("augment=random-resized-crop", "augment is 'random-resized-crop'", "crop-flip"),
        setting("model=mlpp", "there is no model 'mlpp'", "did you mean mlp"),
        setting("model=lenet5", "model lenet5 takes no option hidden"),
        setting("model_options=512", "model_options = 512", "valid dictionary"),
        setting("model_options={depth: 512}", "takes no option depth", "hidden"),
        setting("model_options={hidden: 512}", "{'hidden': 512} do not fit mlp"),
        setting("model_options={hidden: [a]}", "{'hidden': ['a']} do not fit mlp"),
        setting("model_options={hidden: [-1]}", "{'hidden': [-1]} do not fit mlp", "negative dimension"),
        setting("model_options={hidden: 3.5}", "do not fit mlp"),
        setting("model_options={classes: 3}", "do not fit mlp"),
    ],
)
def test_a_wrong_option(tmp_path, arguments, words):
    out = tmp_path / "run"
    refused(command("train", "digits-mlp", "--epochs", "1", "--out", out, *arguments), *words)
    assert not out.exists()


def test_a_layer_without_weights(tmp_path):
    options = ("--set", "model_options={hidden: [0]}")
    with pytest.warns(UserWarning, match="zero-element"):
        result = command("train", "digits-mlp", "--out", tmp_path / "run", *options)
    refused(result, "leave fc1.weight of mlp no weights")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit-mlp", ["there is no preset 'digit-mlp'", "did you mean digits-mlp"]),
        ("magic", ["there is no preset 'magic'", "choose among digits-mlp, mnist-lenet300-100"]),
    ],
)
def test_an_unknown_preset(tmp_path, name, words):
    refused(command("train", name, "--out", tmp_path / "run"), *words)
    refused(command("study", "density", name, "--out", tmp_path / "study"), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "recipe", ["there is no file"]),
        ("import nothing_of_that_name", "recipe", ["does not run", "No module named 'nothing_of_that_name'"]),
        ("def (", "recipe", ["does not run", "SyntaxError"]),
        ("raise SystemExit(0)", "recipe", ["does not run", "SystemExit"]),
        (RECIPES, "recip", ["has no recipe or function 'recip'"]),
        (RECIPES, "number", ["has no recipe or function 'number'"]),
        (RECIPES, "takes_nothing", ["takes_nothing(every=39, steps=39) does not run", "unexpected keyword"]),
        (RECIPES, "raises", ["raises(every=39, steps=39) does not run: KeyError: 'mistake'"]),
        (RECIPES, "returns_a_number", ["returned int", "must return a regrow.Recipe"]),
    ],
)
def test_a_recipe_file_that_is_none(tmp_path, content, name, words):
    file, out = tmp_path / "mine.py", tmp_path / "run"
    if content is not None:
        file.write_text(content)
    refused(command("train", "digits-mlp", "--epochs", "1", "--out", out, "--method", f"{file}:{name}"), *words)
    assert not out.exists()


@pytest.mark.parametrize("name", ["recipe", "good"])
def test_a_recipe_of_the_user(tmp_path, name):
    (tmp_path / "mine.py").write_text(RECIPES)
    method, out = f"{tmp_path}/mine.py:{name}", tmp_path / "run"
    assert command("train", "digits-mlp", "--epochs", "1", "--out", out, "--method", method).exit_code == 0
    assert json.loads((out / "result.json").read_text())["method"] == method


def test_data_that_are_missing_or_damaged(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir(exist_ok=True)
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("regrow.experiments.data.sources.fetch", None)  # it must not be reached by "check"
    refused(command("data", "check", "cifar10"), "cifar10: BAD: not on this machine")
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"\0\0\10\3damaged")
    refused(command("data", "check", "mnist"), "mnist: BAD: ")
    refused(command("train", "mnist-lenet300-100", "--out", tmp_path / "run"), str(folder))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dense", "set", "rigl", "sparse-momentum"])
@pytest.mark.parametrize("update_every", [0.02, 1])
def test_a_loss_that_is_no_number(tmp_path, method, update_every):
    options = ("--method", method, "--set", "learning_rate=1e30", "--set", f"update_every={update_every}")
    result = command("train", "digits-mlp", "--out", tmp_path, *options)
    refused(result, "no longer finite at step", "lower the learning rate (--set learning_rate=1e+29)", status=1)
    assert not (tmp_path / "result.json").exists()


def test_a_diverged_state_does_not_replace_a_sound_checkpoint(tmp_path):
    options = ("--set", "learning_rate=1e30", "--set", "save_every_seconds=1e-9")
    refused(command("train", "digits-mlp", "--out", tmp_path, *options), "no longer finite", status=1)
    refused(command("train", "digits-mlp", "--out", tmp_path, "--resume"), "no longer finite", status=1)


@pytest.fixture
def run(tmp_path):
    """A finished run; afterwards all of it must be as it was."""
    out = tmp_path / "run"
    train(tiny(), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    yield out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("preset", "options", "words"),
    [
        ("digits-mlp", [], ["holds a finished run", "add --resume", "another --out"]),
        ("digits-mlp", ["--epochs", "3", "--resume"], ["has epochs = 2, not 3", "another --out"]),
        ("digits-mlp", ["--seed", "1", "--resume"], ["has seed = 0, not 1"]),
        ("digits-mlp", ["--method", "set", "--resume"], ["has method = sparse-momentum, not set"]),
        ("digits-mlp", ["--set", "learning_rate=1", "--resume"], ["has learning_rate = 0.05, not 1.0"]),
        ("cifar10-mlp", ["--resume"], ["has preset = digits-mlp, not cifar10-mlp"]),
    ],
)
def test_a_folder_that_holds_another_run(run, preset, options, words):
    refused(command("train", preset, "--out", run, *options), *words)


def test_a_run_whose_settings_are_damaged(tmp_path):
    for content in (b"[", b"density: 3", b"", b"a list", b"\xff\xfe\x00", b"seed: 2001-99-99", b"[" * 5000):
        (tmp_path / "config.yaml").write_bytes(content)
        refused(command("train", "digits-mlp", "--out", tmp_path, "--resume"), "config.yaml is not a run's settings")
        assert (tmp_path / "config.yaml").read_bytes() == content


def test_nothing_to_resume(tmp_path):
    refused(command("train", "digits-mlp", "--out", tmp_path / "run", "--resume"), "no run to go on with", "--out")
    assert not list(tmp_path.iterdir())


def test_an_out_that_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(command("train", "digits-mlp", "--out", file), "is no folder", "another --out")
    refused(command("train", "digits-mlp", "--out", file, "--resume"), "no run to go on with")
    refused(command("train", "digits-mlp", "--out", file / "run"), "cannot write", "Not a directory", status=1)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--densities", "0.1,x"], ["--densities 0.1,x", "numbers separated by commas"]),
        (["--densities", "0.1,2"], ["density = 2.0"]),
        (["--methods", "sett"], ["did you mean set"]),
        (["--set", "learning_rat=1"], ["there is no setting 'learning_rat'"]),
    ],
)
def test_a_study_checks_its_grid_before_it_trains(tmp_path, options, words):
    refused(command("study", "density", "digits-mlp", "--out", tmp_path / "study", *options), *words)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("arguments", [["train"], ["train", "digits-mlp", "--epochs", "many"], ["learn"]])
def test_a_command_that_is_none(arguments):
    result = command(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_in_which_another_process_is_at_work(tmp_path):
    out = tmp_path / "run"
    with lock_folder(out):
        refused(command("train", "digits-mlp", "--epochs", 1, "--out", out), "another process", "another --out")
        assert list(out.iterdir()) == []
    assert not out.exists()


def test_the_largest_seed(tmp_path):
    assert command("train", "digits-mlp", "--epochs", 1, "--out", tmp_path, "--seed", 2**64 - 1).exit_code == 0


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"test_accuracy": null}'])
def test_a_result_that_is_damaged_is_named_and_can_be_made_again(tmp_path, content):
    result = train(tiny(), tmp_path)
    (tmp_path / "result.json").write_bytes(content)
    refused(command("train", "digits-mlp", "--out", tmp_path, "--resume"), "result.json is damaged", "delete it")
    (tmp_path / "result.json").unlink()
    again = train(tiny(), tmp_path, resume=True)
    assert again["test_loss"] == result["test_loss"]


def test_one_layer_to_keep_dense_needs_no_list():
    assert tiny(keep_dense="first").keep_dense == ("first",)
