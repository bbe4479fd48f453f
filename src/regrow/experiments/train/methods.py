"""Methods by name, and recipes from a user's own file."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import regrow
from regrow.core.redistribute import keep
from regrow.core.schedule import constant, cosine, linear
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.growth import parse_growth
from regrow.methods import METHODS

__all__ = ["METHODS", "Factory", "check_method", "make_recipe", "run_name"]

Factory = Callable[..., regrow.Recipe]

_FINAL_PRUNE_RATE = 0.005


def make_recipe(config: TrainConfig, steps_per_epoch: int) -> regrow.Recipe:
    """Return the recipe that the settings name, over the steps of the whole training.

    `config.method` is a name from `METHODS` or `path/to/file.py:recipe`, where `recipe` is a `regrow.Recipe` or a
    function of `every` and `steps` (both in optimizer steps), with `prune_rate` if it takes one, that returns one.

    Raises:
        UserError: if there is no such method or file, or the file does not hold a recipe.
    """
    steps = config.epochs * steps_per_epoch
    every = max(1, round(config.update_every * steps_per_epoch))
    factory = _factory(config.method)
    if isinstance(factory, regrow.Recipe):
        recipe = factory
    else:
        arguments: dict[str, int | float] = {"every": every, "steps": steps}
        if config.prune_rate is not None and "prune_rate" in inspect.signature(factory).parameters:
            arguments["prune_rate"] = config.prune_rate
        made = _call(factory, config.method, arguments)
        if not isinstance(made, regrow.Recipe):
            raise UserError(f"{config.method} returned {type(made).__name__}: it must return a regrow.Recipe")
        recipe = made
    if config.redistribute == "keep":
        recipe = replace(recipe, redistribute=keep)
    if config.keep_returning:
        recipe = replace(recipe, keep_returning=True)
    if config.growth is not None:
        recipe = replace(recipe, growth=parse_growth(config.growth))
    if config.prune_rate_decay is None:
        return recipe
    start = recipe.fraction(0)
    end = min(_FINAL_PRUNE_RATE, start)
    decays = {
        "constant": constant(start),
        "cosine": cosine(start, steps, end=end),
        "linear": linear(start, steps, end=end),
    }
    return replace(recipe, fraction=decays[config.prune_rate_decay])


def run_name(config: TrainConfig) -> str:
    """Return a name for a run among those of its preset, fit for a folder: method, what was set of it, density, seed.

    Example:
        >>> run_name(TrainConfig(preset="mine", data="digits", model="mlp", epochs=2, method="my.py:recipe"))
        'my-recipe-0.05-seed0'
    """
    path, colon, recipe = config.method.rpartition(":")
    method = f"{Path(path).stem}-{recipe}" if colon else config.method
    density = "" if method == "dense" else f"-{config.density:g}"
    growth = "" if config.growth is None else "-" + config.growth.replace(":", "-")
    kept = "" if config.redistribute == "method" else f"-{config.redistribute}"
    return f"{method}{kept}{growth}{density}-seed{config.seed}"


def check_method(name: str) -> None:
    """Raise a UserError if `name` is neither "dense", a method's name, nor a recipe in a file."""
    if name != "dense":
        _factory(name)


def _factory(name: str) -> Factory | regrow.Recipe:
    if name in METHODS:
        return METHODS[name]
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), attribute)
    names = ("dense", *METHODS)
    near = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose among {', '.join(names)}"
    raise UserError(f"there is no method {name!r}: {hint}, or path/to/file.py:recipe")


def _call(factory: Factory, name: str, arguments: dict[str, int | float]) -> object:
    if name in METHODS:
        return factory(**arguments)
    try:
        return factory(**arguments)
    except Exception as error:  # whatever a user's own code raises
        given = ", ".join(f"{argument}={value:g}" for argument, value in arguments.items())
        raise UserError(f"--method: {name}({given}) does not run: {type(error).__name__}: {error}") from error


def _from_file(path: Path, attribute: str) -> Factory | regrow.Recipe:
    spec = importlib.util.spec_from_file_location(f"regrow_user_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--method: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"--method: {path} does not run: {type(error).__name__}: {error}") from error
    recipe: object = getattr(module, attribute, None)
    if isinstance(recipe, regrow.Recipe):
        return recipe
    if callable(recipe):
        return recipe
    raise UserError(f"--method: {path} has no recipe or function {attribute!r}")
