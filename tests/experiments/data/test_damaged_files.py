"""Damaged caches and hostile archives: made anew or refused in a line, and never the end of the process."""

import gzip
import io
import tarfile
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made import load, make_mnist, make_parquet, one_line, publish
from runs import child

from regrow.experiments.data import idx, layouts, pickles, registry
from regrow.experiments.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")

TRIES = pytest.mark.parametrize("tries", [60, pytest.param(2_000, marks=pytest.mark.slow)])


def damages(whole, tries):
    """Return contents with a flipped bit, cut short, or with something at the end."""
    random = Random(0)
    for number in range(tries):
        at = random.randrange(len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << random.randrange(8)]) + whole[at + 1 :]
        yield (flipped, flipped, flipped, whole[:at], whole + whole[:at])[number % 5]


def in_a_child(function, *arguments):
    """Run a function where a crash is a failure of this test alone."""
    process = child(function, *arguments)
    process.join()
    assert process.exitcode == 0


def rebuild_each(stored, tries, read, capfd):
    """Damage a cache again and again; each time it is made anew, with one line."""
    whole = stored.read_bytes()
    for content in damages(whole, tries):
        stored.write_bytes(content)
        read()
        written, said = capfd.readouterr()
        assert written == ""
        assert said == f"regrow: the cache {stored} is damaged: it is made anew\n"
        assert stored.read_bytes()[-32:] != content[-32:] or stored.read_bytes() == whole


@TRIES
def test_damaged_decoded_images(tmp_path, tries, capfd):
    make_parquet(tmp_path, rows=(4, 2))
    (images, _), _ = layouts.read(tmp_path, registry.get("cifar10"))
    (stored,) = (tmp_path / "cache" / "decoded").iterdir()

    def read():
        (again, _), _ = layouts.read(tmp_path, registry.get("cifar10"))
        assert (again == images).all()

    in_a_child(rebuild_each, stored, tries, read, capfd)


def all_images(folder):
    return torch.cat([images for images, _ in load("imagenet", root=folder, image_size=16).test.epoch()])


@TRIES
def test_damaged_tables_of_copied_images(tmp_path, tries, capfd):
    make_parquet(tmp_path, "image", names=("train", "validation"), rows=(8, 4))
    whole = all_images(tmp_path)
    (stored,) = (tmp_path / "cache" / "decoded").glob("imagenet-val-*.npz")

    def read():
        assert torch.equal(all_images(tmp_path), whole)

    in_a_child(rebuild_each, stored, tries, read, capfd)


@TRIES
def test_damaged_copied_images(tmp_path, tries, capfd):
    make_parquet(tmp_path, "image", names=("train", "validation"), rows=(8, 4))
    images = all_images(tmp_path)
    (stored,) = (tmp_path / "cache" / "decoded").glob("imagenet-val-*.images")
    whole = stored.read_bytes()

    def damage_each():
        for content in damages(whole, tries):
            stored.write_bytes(content)
            if len(content) == len(whole):  # seen where the image is read, and before it is decoded
                with pytest.raises(UserError, match="is damaged and was deleted") as caught:
                    all_images(tmp_path)
                one_line(caught)
            assert torch.equal(all_images(tmp_path), images)
            said = "" if len(content) == len(whole) else f"regrow: the cache {stored} is damaged: it is made anew\n"
            assert capfd.readouterr().err == said
            assert stored.read_bytes() == whole

    in_a_child(damage_each)


def test_copied_images_are_read_alone(tmp_path, monkeypatch):
    """A start does not read all images: those of ImageNet would take minutes."""
    make_parquet(tmp_path, "image", names=("train", "validation"), rows=(8, 4))
    images = all_images(tmp_path)
    monkeypatch.setattr("regrow.experiments.data.cache.encoded_rows", None)
    with monkeypatch.context() as patch:
        patch.setattr("regrow.experiments.data.samples.CopiedSamples.encoded", None)
        load("imagenet", root=tmp_path, image_size=16)
    assert torch.equal(all_images(tmp_path), images)


def test_an_image_that_is_a_path_is_named_before_anything_trains(tmp_path):
    make_parquet(tmp_path, "image", names=("train", "validation"), rows=(8, 4))
    path = tmp_path / "validation-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[2]["image"] = {"bytes": None, "path": "n01440764/1.JPEG"}
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(UserError, match=r"row 2 of .*validation-00000.* holds a path") as caught:
        load("imagenet", root=tmp_path)
    one_line(caught)
    assert not list((tmp_path / "cache" / "decoded").glob("*val*"))


def write_archive(path, members):
    """Write a gzipped tar with these members, each with its contents."""
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def refused_archive(tmp_path):
    with pytest.raises(UserError) as caught:
        layouts.read(tmp_path, registry.get("cifar10"))
    return one_line(caught)


def link(kind, target):
    member = tarfile.TarInfo(f"{pickles.FOLDER}/data_batch_1")
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["data_batch_1", f"{pickles.FOLDER}/data_batch_1", "nothing", "/etc/passwd"])
def test_an_archive_with_a_link(tmp_path, monkeypatch, kind, target):
    write_archive(tmp_path / pickles.ARCHIVE, [(link(kind, target), b"")])
    publish(tmp_path / pickles.ARCHIVE, monkeypatch)
    assert "lacks data_batch_1" in refused_archive(tmp_path)


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(tmp_path, monkeypatch):
    write_archive(tmp_path / pickles.ARCHIVE, [(tarfile.TarInfo("data_batch_1"), b"content")])
    monkeypatch.setattr("tarfile.open", None)
    assert "it is not unpacked" in refused_archive(tmp_path)


def test_an_archive_of_many_files(tmp_path, monkeypatch):
    write_archive(tmp_path / pickles.ARCHIVE, [(tarfile.TarInfo(str(number)), b"") for number in range(101)])
    publish(tmp_path / pickles.ARCHIVE, monkeypatch)
    assert "more than 100 files" in refused_archive(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_1", "something"])
def test_an_archive_that_would_fill_the_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pickles, "_MOST_BYTES", 100_000)
    write_archive(tmp_path / pickles.ARCHIVE, [(tarfile.TarInfo(name), bytes(200_000))])
    publish(tmp_path / pickles.ARCHIVE, monkeypatch)
    assert "more than 100000 bytes" in refused_archive(tmp_path)


def test_a_compressed_file_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_MOST_BYTES", 1000)
    make_mnist(tmp_path / "mnist", monkeypatch)
    (path,) = (tmp_path / "mnist").glob("train-images*")
    path.write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(UserError, match="more than 1000 bytes"):
        load("mnist", root=tmp_path)
