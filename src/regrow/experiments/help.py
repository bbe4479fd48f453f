"""What the help of commands shows beside their options: presets, methods, settings and examples."""

from __future__ import annotations

import inspect
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from regrow.experiments.terminal import OUT
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.methods import CARDS, DENSE
from regrow.experiments.train.modes import MODES
from regrow.experiments.train.presets import PRESETS

__all__ = ["TrainHelp", "methods_table", "modes_table", "presets_table", "settings_table"]

# The first argument, and what a run writes down itself.
_NOT_SET = ("preset", "method_digest")

_EXAMPLES = """\
  regrow train digits-mlp
  regrow train mnist-lenet300-100 --density 0.02 --data DIR --out runs/mnist
  regrow train mnist-lenet300-100 --out runs/mnist --resume
  regrow train cifar10-wrn-28-2 --method rigl --epochs 50 --set learning_rate=0.05
  regrow train cifar10-vgg16-d --set block=4x1 --set 'keep_dense=[first, last]'
  regrow train digits-mlp --method my_method.py:recipe"""


class TrainHelp(TyperCommand):
    """A command whose help goes on with examples, presets, methods and settings."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # classes of click, which typer has inside or beside it
        """Print the options as usual, then what they may be."""
        super().format_help(ctx, formatter)
        OUT.print("Examples", style="bold")
        OUT.print(_EXAMPLES, markup=False, highlight=False, soft_wrap=True)
        for table in (presets_table(), methods_table(), modes_table(), settings_table()):
            OUT.print()
            OUT.print(table)


def presets_table() -> Table:
    """Return the presets, with what tells them apart."""
    table = _table("Presets", "preset", "data", "network", "epochs", "batch", "density")
    for name, config in PRESETS.items():
        sizes = (str(config.epochs), str(config.batch_size), f"{config.density:g}")
        table.add_row(name, config.data, config.model, *sizes)
    return table


def methods_table() -> Table:
    """Return the methods, each with the first line of its card."""
    table = _table("Methods", "method", "what it does")
    for name, what in DENSE.items():
        table.add_row(name, what)
    for name, factory in CARDS.items():
        card = inspect.getdoc(factory) or ""
        _, _, what = card.partition("\n")[0].rpartition(": ")
        table.add_row(name, escape(what[:1].upper() + what[1:]))
    table.add_row(
        "path/to/file.py:recipe", "A regrow.Recipe of your own, or a function of `every` and `steps` that returns one."
    )
    return table


def modes_table() -> Table:
    """Return the rules that may stand in the place of a method's own."""
    table = _table("Modes, over any method, as --set SETTING=MODE", "setting", "mode", "what it does")
    for setting, modes in MODES.items():
        for name, mode in modes.items():
            table.add_row(setting, name, mode.about)
    return table


def settings_table() -> Table:
    """Return every setting with its type, its default and what it means."""
    table = _table("Settings, as --set KEY=VALUE (a preset has its own values)", "key", "type", "default", "meaning")
    for name, field in TrainConfig.model_fields.items():
        if name not in _NOT_SET:
            cells = (name, _type_name(field.annotation), _default(field), field.description or "")
            table.add_row(*map(Text, cells))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    return table


def _type_name(annotation: Any) -> str:
    """Return what a value of a setting looks like.

    Example:
        >>> _type_name(float | None), _type_name(Literal["a", "b"]), _type_name(tuple[float, ...])
        ('number, null', 'a, b', 'list of numbers')
    """
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return ", ".join(map(str, parts))
    if kind in (Union, types.UnionType):
        return ", ".join(map(_type_name, parts))
    if kind is tuple:
        return f"list of {_type_name(parts[0])}s"
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", type(None): "null"}
    return names.get(kind or annotation, "mapping")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "the preset's"
    value = field.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
