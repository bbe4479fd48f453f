"""Batches: order, resuming, the split, augmentation against a plain reference, and the real sets where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regrow.experiments import data
from regrow.experiments.data import augment, loading, registry
from regrow.experiments.data.batches import Normalise, TensorBatches
from regrow.experiments.errors import UserError

REAL = Path(os.environ.get("REGROW_DATA", "/nonexistent"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                small = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8))
                small.resize((150, 120)).save(folder / split / name / f"{number}.jpg")
    return folder


def open_set(kind, photographs, **changes):
    if kind == "memory":
        return data.load("digits", batch_size=100, valid_samples=200, augment="crop-flip", **changes)
    settings = {"root": photographs, "batch_size": 5, "valid_samples": 2, "image_size": 16, **changes}
    return data.load("imagenet", augment="random-resized-crop", **settings)


def equal(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right) > 0
    return all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(left, right, strict=True))


KINDS = pytest.mark.parametrize(("kind", "workers"), [("memory", 0), ("decoding", 0), ("decoding", 2)])


@KINDS
def test_resume_is_bitwise_the_same(kind, workers, photographs):
    train = open_set(kind, photographs, workers=workers).train
    whole = [list(train.epoch()) for _ in range(2)]
    assert train.state_dict() == {"epoch": 2, "position": 0}
    assert not equal(*whole)
    assert [len(epoch) for epoch in whole] == [len(train)] * 2
    again = open_set(kind, photographs, workers=workers).train
    list(again.epoch())
    iterator = again.epoch()
    first = [next(iterator), next(iterator)]
    state = again.state_dict()
    iterator.close()
    assert state == {"epoch": 1, "position": 2}  # handed out, however many were fetched ahead
    resumed = open_set(kind, photographs).train
    resumed.load_state_dict(state)
    assert equal([*first, *resumed.epoch()], whole[1])
    assert resumed.state_dict() == {"epoch": 2, "position": 0}


@KINDS
def test_global_generators_are_neither_used_nor_moved(kind, workers, photographs):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = list(open_set(kind, photographs, workers=workers).train.epoch())
    assert torch.equal(before, torch.get_rng_state())
    assert (before_numpy == np.random.get_state()[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert equal(first, open_set(kind, photographs).train.epoch())


@KINDS
def test_seed_changes_order_but_not_split(kind, workers, photographs):
    left, right = (open_set(kind, photographs, workers=workers, seed=seed) for seed in (0, 1))
    assert not equal(left.train.epoch(), right.train.epoch())
    assert equal(left.valid.epoch(), right.valid.epoch())
    assert equal(left.test.epoch(), right.test.epoch())
    assert equal(left.test.epoch(), left.test.epoch())  # neither shuffled nor augmented


def test_every_sample_once_an_epoch():
    images = torch.arange(23, dtype=torch.uint8).view(-1, 1, 1, 1)
    plain = Normalise.of((0.0,), (1.0,), 1, "cpu")
    batches = TensorBatches(images, torch.arange(23), normalise=plain, batch_size=5, seed=3)
    seen = list(batches.epoch())
    assert [len(x) for x, _ in seen] == [5, 5, 5, 5, 3]
    labels = torch.cat([y for _, y in seen])
    assert labels.tolist() != list(range(23))
    assert sorted(labels.tolist()) == list(range(23))
    assert torch.equal(torch.cat([x for x, _ in seen]).flatten().long(), labels)


def test_a_part_is_drawn_from_what_is_left_for_training():
    part = data.load("digits", batch_size=10, valid_samples=37, train_samples=25)
    assert [len(labels) for _, labels in part.train.epoch()] == [10, 10, 5]
    assert sum(len(labels) for _, labels in part.valid.epoch()) == 37


def test_state_inside_the_last_batch():
    train = data.load("digits", batch_size=1000, valid_samples=0).train
    for _ in train.epoch():
        state = train.state_dict()
    assert state == {"epoch": 0, "position": len(train)}
    train.load_state_dict(state)
    assert list(train.epoch()) == []
    assert train.state_dict() == {"epoch": 1, "position": 0}


@pytest.mark.parametrize(
    "state", [{"epoch": 0, "position": 99}, {"epoch": -1, "position": 0}, {"epoch": 0, "position": -1}]
)
def test_state_of_another_run(state):
    with pytest.raises(UserError, match="batch size"):
        data.load("digits", batch_size=100, valid_samples=0).train.load_state_dict(state)


def test_split_is_disjoint_and_fixed():
    train, valid = loading.split(1000, 100)
    assert len(valid) == 100
    assert sorted(train.tolist() + valid.tolist()) == list(range(1000))
    assert valid[:5].tolist() == loading.split(1000, 100)[1][:5].tolist() == [1, 14, 33, 34, 35]


def test_no_validation_set_means_the_test_set():
    loaded = data.load("digits", batch_size=100, valid_samples=0)
    assert equal(loaded.valid.epoch(), loaded.test.epoch())


@pytest.mark.parametrize("border", ["zeros", "reflect"])
@pytest.mark.parametrize("shape", [(7, 3, 32, 32), (3, 1, 9, 12)])
def test_crop_flip_against_one_image_at_a_time(shape, border):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = augment.crop_flip(images, torch.Generator().manual_seed(5), padding=4, border=border)
    generator = torch.Generator().manual_seed(5)
    offset = torch.randint(0, 9, (2, shape[0], 1), generator=generator)
    mirror = torch.rand(shape[0], 1, generator=generator) < 0.5
    for number, image in enumerate(images):
        mode = {"zeros": "constant", "reflect": "reflect"}[border]
        padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode=mode))
        down, right = int(offset[0, number]), int(offset[1, number])
        expected = padded[:, down : down + shape[2], right : right + shape[3]]
        assert torch.equal(result[number], expected.flip(2) if mirror[number] else expected)


def test_crop_flip_draws_all_offsets_and_both_sides():
    images = torch.zeros(4000, 1, 9, 9)
    images[:, :, 4, 3] = 1
    moved = augment.crop_flip(images, torch.Generator().manual_seed(0)).flatten(1)
    assert moved.sum(1).max() == 1
    spots = moved.argmax(1)[moved.sum(1) == 1]
    # Rows 0 to 8; columns 0 to 7 as it is, and 1 to 9 mirrored, of which 9 is outside.
    assert set(spots.tolist()) == {row * 9 + column for row in range(9) for column in range(9)}


def test_random_box():
    random = np.random.default_rng(0)
    boxes = np.array([augment.random_box(400, 300, random) for _ in range(2000)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = wide * high / 120_000, wide / high
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 300
    assert 0.07 < area.min() < 0.1
    assert 0.85 < area.max() <= 1
    assert 0.73 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.36
    left, upper, right, lower = augment.random_box(1000, 10, random)  # too long for any draw
    assert (right - left, lower - upper) == (13, 10)


def test_evaluation_images_are_the_middle(photographs):
    loaded = data.load("imagenet", root=photographs, batch_size=4, valid_samples=0, image_size=56)
    images, _ = next(loaded.test.epoch())
    known = registry.get("imagenet")
    with Image.open(photographs / "val" / "ant" / "0.jpg") as image:  # 150 x 120, to 80 x 64, its middle 56 x 56
        reference = np.asarray(image.resize((80, 64), Image.Resampling.BILINEAR).crop((12, 4, 68, 60)))
    pixels = images[0].permute(1, 2, 0) * torch.tensor(known.std) + torch.tensor(known.mean)
    difference = (pixels * 255 - torch.tensor(reference.astype(np.float32))).abs()
    assert difference.mean() < 1.5


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="needs $REGROW_DATA with mnist/")
def test_real_mnist():
    loaded = data.load("mnist", batch_size=100, valid_samples=6000)
    assert (len(loaded.train), loaded.valid.samples, loaded.test.samples) == (540, 6000, 10_000)
    images = torch.cat([images for images, _ in loaded.train.epoch()])
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01
    assert all(record.good for record in data.check("mnist"))


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="needs $REGROW_DATA with cifar10/")
def test_real_cifar10():
    loaded = data.load("cifar10", batch_size=128, valid_samples=5000, augment="reflect-crop-flip")
    assert (len(loaded.train), loaded.valid.samples, loaded.test.samples) == (352, 5000, 10_000)
    images = torch.cat([images for images, _ in loaded.test.epoch()])
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    # the papers' deviation is the mean of each image's own, a fifth below that of all pixels
    assert images.std((0, 2, 3)).sub(1.2).abs().max() < 0.15
    within = images.flatten(2).std(2).mean(0)
    assert (within - 1).abs().max() < 0.08
    assert all(record.good for record in data.check("cifar10"))
