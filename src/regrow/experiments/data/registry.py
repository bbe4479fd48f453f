"""What is known of each data set: its size, its normalisation, its files, their digests and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from regrow.experiments.errors import UserError

__all__ = ["DATASETS", "IDX_FILES", "Dataset", "get"]


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        name: what the user calls it, and the name of its folder.
        description: one line for lists.
        channels: 1 or 3.
        samples: of the whole training set, those that are held out for validation among them.
        image_size: height and width; for sets whose images differ in size, the default size of a crop; of a text, the
            characters of a piece.
        mean: one a channel, of pixels scaled to 0..1, over the training set.
        std: likewise; where papers agree on other numbers, theirs.
        layouts: the layouts that it may have on disk, in the order tried (see `layouts`).
        classes: how many; None where the files say it.
        top: the pixel value that means 1.
        files: what a full copy holds, in the form in which mirrors hand it out.
        digests: of the files' decompressed bytes, and of archives as they are; SHA-256 (64 digits), or MD5 (32) where
            that is what is published.
        mirrors: addresses to which a file's name is appended.
        system: folders into which an operating system's package puts the files.
        debian: the name of that package, fetched with `apt-get download`.
        in_memory: whether the decoded set is held in memory whole.
    """

    name: str
    description: str
    channels: int
    samples: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layouts: tuple[str, ...]
    classes: int | None = 10
    top: int = 255
    files: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    mirrors: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    debian: str | None = None
    in_memory: bool = True

    @property
    def is_text(self) -> bool:
        """Whether it is a text in pieces, and no images."""
        return self.layouts == ("text",)

    @property
    def what(self) -> str:
        """What its samples are, in the plural."""
        return "pieces" if self.is_text else "images"

    def shape(self, size: int) -> tuple[int, int, int]:
        """Channels, height and width of a sample; of a text one row of characters.

        Args:
            size: height and width, or the characters of a piece.

        >>> get("mnist").shape(28), get("tinyshakespeare").shape(64)
        ((1, 28, 28), (1, 1, 64))
        """
        return (1, 1, size) if self.is_text else (self.channels, size, size)


IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

_ALL = (
    Dataset(
        name="digits",
        description="1,797 handwritten digits, 8x8, one channel; part of scikit-learn",
        channels=1,
        samples=1_437,
        image_size=8,
        mean=(0.3053,),
        std=(0.3760,),
        layouts=("scikit-learn",),
        top=16,
    ),
    Dataset(
        name="mnist",
        description="60,000 + 10,000 handwritten digits, 28x28, one channel",
        channels=1,
        samples=60_000,
        image_size=28,
        mean=(0.1307,),
        std=(0.3081,),
        layouts=("idx",),
        files=IDX_FILES,
        digests={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    Dataset(
        name="fashion-mnist",
        description="60,000 + 10,000 pieces of clothing, 28x28, one channel",
        channels=1,
        samples=60_000,
        image_size=28,
        mean=(0.2860,),
        std=(0.3530,),
        layouts=("idx",),
        files=IDX_FILES,
        digests={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        system=("/usr/share/datasets/fashion-mnist",),
        debian="dataset-fashion-mnist",
    ),
    Dataset(
        name="cifar10",
        description="50,000 + 10,000 photographs, 32x32, colour, ten classes",
        channels=3,
        samples=50_000,
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),  # the papers' on sparse training: means over images of each image's own
        layouts=("pickles", "parquet"),
        files=("cifar-10-python.tar.gz",),
        digests={
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
    ),
    Dataset(
        name="imagenet",
        description="ImageNet, a part of it such as Imagenette, or any photographs in folders or parquet",
        channels=3,
        samples=1_281_167,
        image_size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        layouts=("parquet", "folder"),
        classes=None,
        in_memory=False,
    ),
    Dataset(
        name="imagenette",
        description="9,469 + 3,925 photographs of ten classes of ImageNet, of any size; by default cropped to 64x64",
        channels=3,
        samples=9_469,
        image_size=64,
        mean=(0.485, 0.456, 0.406),  # ImageNet's
        std=(0.229, 0.224, 0.225),
        layouts=("parquet", "folder"),
        in_memory=False,
    ),
    Dataset(
        name="tinyshakespeare",
        description="1,115,394 characters of Shakespeare in pieces of 64, each with the character after it",
        channels=1,
        samples=15_685,
        image_size=64,
        mean=(0.0,),  # characters are numbers, and stay as they are
        std=(1.0,),
        layouts=("text",),
        classes=65,
        top=1,
        files=("input.txt",),
        digests={"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        mirrors=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
    ),
)

DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
"""Every data set by name."""


def get(name: str) -> Dataset:
    """The data set called `name`.

    >>> get("mnist").mean
    (0.1307,)

    Raises:
        UserError: if there is none.
    """
    if name not in DATASETS:
        raise UserError(f"no data set is called {name!r}; there are: {', '.join(DATASETS)}")
    return DATASETS[name]
