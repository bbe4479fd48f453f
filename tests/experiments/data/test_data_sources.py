"""Where data sets are looked for: the order of sources, downloads, what a check says."""

import gzip
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from made import IDX, alter, load, make_mnist, make_parquet, make_pickles, one_line
from sklearn.datasets import load_digits

from regrow.experiments import data
from regrow.experiments.data import download, registry
from regrow.experiments.data.layouts import read
from regrow.experiments.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


# ---------------------------------------------------------------- sources


def test_order_of_sources(tmp_path, monkeypatch):
    system = tmp_path / "system"
    alter(monkeypatch, "mnist", system=(str(system),))
    assert data.find("mnist") is None
    make_mnist(system, monkeypatch)
    named = [tmp_path / "cache" / "mnist", tmp_path / "variable", tmp_path / "variable" / "mnist"]
    named += [tmp_path / "root", tmp_path / "root" / "mnist"]
    for folder in ("variable", "root"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "variable"))
    assert data.find("mnist") == system
    for folder in named[:3]:
        shutil.copytree(system, folder, dirs_exist_ok=True)
        assert data.find("mnist") == folder
    assert data.find("mnist", tmp_path / "root") == named[0]  # an explicit root stands in for the variable
    for folder in named[3:]:
        shutil.copytree(system, folder, dirs_exist_ok=True)
        assert data.find("mnist", tmp_path / "root") == data.fetch("mnist", tmp_path / "root") == folder


def test_relatives_of_mnist_are_told_apart(tmp_path, monkeypatch):
    make_mnist(tmp_path / "cache" / "mnist", monkeypatch)
    make_mnist(tmp_path / "fashion", monkeypatch, "fashion-mnist", seed=1)
    assert data.find("mnist", tmp_path / "fashion") == tmp_path / "cache" / "mnist"
    assert data.find("fashion-mnist", tmp_path / "fashion") == tmp_path / "fashion"


def test_digits_need_nothing(tmp_path):
    loaded = load("digits")
    assert (loaded.train.samples, loaded.valid.samples, loaded.test.samples) == (1432, 5, 360)
    images = torch.cat([images for images, _ in loaded.train.epoch()])
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    assert not (tmp_path / "cache").exists()


def test_digits_are_those_of_scikit_learn():
    (train, train_labels), (test, test_labels) = read(data.find("digits"), registry.get("digits"))
    theirs = load_digits()
    ours = sorted(
        zip(np.concatenate([train, test]).reshape(-1, 64).tolist(), [*train_labels, *test_labels], strict=True)
    )
    assert ours == sorted(zip(theirs.data.tolist(), theirs.target, strict=True))


class Server:
    """Serves a folder on the loopback address, and counts."""

    def __init__(self, folder):
        self.asked = asked = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def mirror(tmp_path):
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_mirror(tmp_path, monkeypatch, mirror):
    make_mnist(tmp_path / "served" / "mnist", monkeypatch)
    shutil.copytree(tmp_path / "served" / "mnist", tmp_path / "served" / "bad")
    (tmp_path / "served" / "bad" / f"{IDX[0]}.gz").write_bytes(gzip.compress(b"not this"))
    alter(monkeypatch, "mnist", mirrors=(mirror.address + "none/", mirror.address + "bad/", mirror.address + "mnist/"))
    assert data.find("mnist") is None
    assert not data.check("mnist")[0].good
    assert mirror.asked == []  # neither downloads
    assert load("mnist").train.samples == 25
    target = tmp_path / "cache" / "mnist"
    assert sorted(path.name for path in target.iterdir()) == sorted(registry.IDX_FILES)
    assert list(target.parent.iterdir()) == [target]  # no scratch is left
    asked = len(mirror.asked)
    load("mnist")
    assert len(mirror.asked) == asked
    kept = (target / registry.IDX_FILES[0]).stat()
    (target / registry.IDX_FILES[3]).unlink()  # an incomplete cache is completed; what is good stays
    load("mnist")
    assert (target / registry.IDX_FILES[0]).stat().st_mtime_ns == kept.st_mtime_ns


def test_bad_mirror_leaves_nothing(tmp_path, monkeypatch, mirror):
    make_mnist(tmp_path / "served" / "mnist", monkeypatch)
    (tmp_path / "served" / "mnist" / f"{IDX[0]}.gz").write_bytes(gzip.compress(b"not this"))
    alter(monkeypatch, "mnist", mirrors=(mirror.address + "mnist/",))
    with pytest.raises(UserError, match=f"{IDX[0]}.gz is damaged") as caught:
        load("mnist")
    one_line(caught)
    assert list((tmp_path / "cache").iterdir()) == []


def test_nothing_found_names_every_place_at_once(tmp_path, monkeypatch):
    alter(
        monkeypatch, "fashion-mnist", mirrors=("http://127.0.0.1:9/",), debian="no-such-package", system=("/nowhere",)
    )
    monkeypatch.setattr(download.shutil, "which", lambda _: None)
    (tmp_path / "root").mkdir()
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load("fashion-mnist", root=tmp_path / "root")
    assert time.perf_counter() - start < 3
    places = data.places("fashion-mnist", tmp_path / "root")
    assert len(places) == 6
    for part in (*places, "no apt", "no such folder", "not in that folder", IDX[0], "REGROW_DATA"):
        assert part in one_line(caught)


def test_mirror_that_never_answers(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: never.wait(5))
    with pytest.raises(download.UnavailableError, match="no answer in"):
        download.from_mirror("http://127.0.0.1/", ("file",), Path())
    never.set()


def test_debian_package(tmp_path, monkeypatch):
    make_mnist(tmp_path / "pool", monkeypatch, "fashion-mnist")
    alter(monkeypatch, "fashion-mnist", debian="dataset-fashion-mnist", system=("/usr/share/nowhere",))
    commands = []

    def run(command, folder):
        commands.append(command[:2])
        if command[:2] == ["apt-get", "download"]:
            if commands.count(["apt-get", "download"]) == 1:
                raise download.UnavailableError("no package lists")
            (Path(folder) / "package.deb").touch()
        if command[0] == "dpkg-deb":
            shutil.copytree(tmp_path / "pool", Path(folder) / "usr/share/nowhere")

    monkeypatch.setattr(download, "_run", run)
    monkeypatch.setattr(download.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(download.os, "geteuid", lambda: 0)
    assert data.fetch("fashion-mnist") == tmp_path / "cache" / "fashion-mnist"
    assert [command[1] for command in commands] == ["download", "update", "download", "-x"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["fashion-mnist"]


def test_check_tells_lossy_from_published(tmp_path, monkeypatch):
    make_parquet(tmp_path / "jpeg", form="JPEG")
    make_parquet(tmp_path / "png")
    make_pickles(tmp_path / "published", monkeypatch)
    said = {form: " ".join(map(str, data.check("cifar10", tmp_path / form))) for form in ("jpeg", "png", "published")}
    assert "not the originals" in said["jpeg"]
    assert "cannot be compared" in said["png"]
    assert "published files" in said["published"]
    assert all(record.good for form in said for record in data.check("cifar10", tmp_path / form))
