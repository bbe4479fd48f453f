"""Methods by name, and recipes from a user's own file."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import regrow
from regrow.core.budget import within
from regrow.core.schedule import Schedule, constant, cosine, linear
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import WITHOUT_DENSITY, TrainConfig
from regrow.experiments.train.growth import parse_growth
from regrow.experiments.train.modes import with_modes
from regrow.experiments.train.options import method_options
from regrow.methods import METHODS, STEP_METHODS
from regrow.saliency import SALIENCIES

__all__ = [
    "CARDS",
    "DENSE",
    "METHODS",
    "Factory",
    "check_method",
    "check_recipe",
    "make_method",
    "make_recipe",
    "recipe_file",
    "run_name",
    "with_digest",
]

Factory = Callable[..., regrow.Recipe]

DENSE: Mapping[str, str] = {
    "dense": "Every weight, to compare with.",
    "small-dense": "A dense network of less width with as many weights as the sparse one, to compare with.",
}
"""What is trained without a sparse weight, and what it is."""

CARDS: Mapping[str, Callable[..., object]] = {**METHODS, **STEP_METHODS, **SALIENCIES}
"""For each method by its name what has its card as docstring."""

# Parameters of a factory that settings of their own give.
_GIVEN = ("every", "steps", "prune_rate", "compute", "growth", "density", "distribution")
# What drops and grows at updates alone knows.
_OF_RECIPES = ("prune_rate", "prune_rate_decay", "compute", "keep_returning", "growth")

_FINAL_PRUNE_RATE = 0.005


def make_method(config: TrainConfig, steps_per_epoch: int) -> regrow.Recipe | regrow.StepRule:
    """Return the recipe or the rule that the settings name, over the steps of the whole training.

    Raises:
        UserError: as `make_recipe`, or if a setting is none of a rule.
        ValueError: as the rule's factory raises it.
    """
    if config.method not in STEP_METHODS:
        return make_recipe(config, steps_per_epoch)
    factory = STEP_METHODS[config.method]
    takes = inspect.signature(factory).parameters
    foreign = [name for name in _OF_RECIPES if getattr(config, name) is not None]
    foreign += ["redistribute"] if config.redistribute == "keep" else []
    if config.distribution is not None and config.method in WITHOUT_DENSITY:
        foreign.append("distribution")
    if foreign:
        raise UserError(f"{config.method} has a rule of its own for every step: leave {' and '.join(foreign)} out")
    arguments: dict[str, Any] = {**_times(config, steps_per_epoch), **method_options(config, factory, _GIVEN)}
    own = {"density": config.density, "distribution": config.distribution}
    arguments |= {name: value for name, value in own.items() if name in takes and value is not None}
    rule: regrow.StepRule = _call(factory, config.method, arguments)
    return rule


def _times(config: TrainConfig, steps_per_epoch: int) -> dict[str, int]:
    """Return the steps between updates and those of the whole training, as factories take them."""
    return {
        "every": max(1, round(config.update_every * steps_per_epoch)),
        "steps": config.epochs * steps_per_epoch,
    }


def make_recipe(config: TrainConfig, steps_per_epoch: int) -> regrow.Recipe:
    """Return the recipe that the settings name, over the steps of the whole training.

    `config.method` is a name from `METHODS` or `path/to/file.py:recipe`, where `recipe` is a `regrow.Recipe` or a
    function of `every` and `steps` (both in optimizer steps), with `prune_rate`, `compute` and `density` (that of its
    end) if it takes them, that returns one. A bound on compute that it does not take is put around its redistribution.

    Raises:
        UserError: if there is no such method or file, the file does not hold a recipe, or is not that of
            `config.method_digest`.
    """
    arguments: dict[str, Any] = _times(config, steps_per_epoch)
    steps = arguments["steps"]
    factory = _factory(config.method, config.method_digest)
    if isinstance(factory, regrow.Recipe):
        recipe = factory
    else:
        if config.method not in SALIENCIES:
            arguments |= method_options(config, factory, _GIVEN)
        asked = {"prune_rate": config.prune_rate, "compute": config.compute, "density": config.density}
        takes = inspect.signature(factory).parameters
        arguments |= {name: value for name, value in asked.items() if value is not None and name in takes}
        made = _call(factory, config.method, arguments)
        if not isinstance(made, regrow.Recipe):
            raise UserError(f"{config.method} returned {type(made).__name__}: it must return a regrow.Recipe")
        recipe = made
    if config.compute is not None and "compute" not in arguments:
        recipe = replace(recipe, redistribute=within(config.compute, recipe.redistribute))
    recipe = with_modes(
        recipe, prune=config.prune, grow=config.grow, redistribute=config.redistribute, compute=config.compute
    )
    others: dict[str, Any] = {
        "keep_returning": config.keep_returning,
        "distribution": config.distribution,
        "growth": None if config.growth is None else parse_growth(config.growth),
        "fraction": None if config.prune_rate_decay is None else _decay(config.prune_rate_decay, recipe, steps),
    }
    others = {name: value for name, value in others.items() if value is not None}
    return replace(recipe, **others) if others else recipe


def _decay(name: str, recipe: regrow.Recipe, steps: int) -> Schedule:
    """Return the prune rate of a recipe at its start, and how it falls from there."""
    start = recipe.fraction(0)
    decays = {
        "constant": constant(start),
        "cosine": cosine(start, steps, end=min(_FINAL_PRUNE_RATE, start)),
        "linear": linear(start, steps),  # to 0, as in the code of arXiv:1907.04840
    }
    return decays[name]


def run_name(config: TrainConfig) -> str:
    """Return a name for a run among those of its preset, fit for a folder: method, what was set of it, density, seed.

    Example:
        >>> run_name(TrainConfig(preset="mine", data="digits", model="mlp", epochs=2, method="my.py:recipe"))
        'my-recipe-0.05-seed0'
    """
    path, colon, recipe = config.method.rpartition(":")
    method = f"{Path(path).stem}-{recipe}" if colon else config.method
    density = "" if method == "dense" or method in WITHOUT_DENSITY else f"-{config.density:g}"
    growth = "" if config.growth is None else "-" + config.growth.replace(":", "-")
    block = "" if config.block is None or method in DENSE else f"-{config.block}"
    kept = {"method": "", "keep": "-keep"}.get(config.redistribute, f"-redistribute-{config.redistribute}")
    asked = {"prune": config.prune, "grow": config.grow, "rate": config.prune_rate_decay}
    modes = "".join(f"-{setting}-{name}" for setting, name in asked.items() if name is not None)
    bound = "" if config.compute is None or method in DENSE else f"-compute{config.compute:g}"
    spread = "" if config.distribution is None or method in DENSE else f"-{config.distribution}"
    return f"{method}{modes}{kept}{bound}{spread}{growth}{block}{density}-seed{config.seed}"


def check_method(name: str) -> None:
    """Raise a UserError if `name` is neither a method's name nor a recipe in a file."""
    if name not in DENSE and name not in STEP_METHODS:
        _factory(name)


def check_recipe(name: str) -> None:
    """Raise a UserError if `name` is neither the name of a recipe nor one in a file."""
    check_method(name)
    if name not in METHODS and recipe_file(name) is None:
        raise UserError(f"{name} is no recipe, and only recipes are timed: choose among {', '.join(METHODS)}")


def recipe_file(name: str) -> Path | None:
    """Return the file that the name of a method points into; None if it names none.

    Example:
        >>> recipe_file("mine.py:recipe"), recipe_file("set")
        (PosixPath('mine.py'), None)
    """
    path, colon, _ = name.rpartition(":")
    return Path(path) if colon and path.endswith(".py") else None


def with_digest(config: TrainConfig) -> TrainConfig:
    """Return the settings with the digest of the recipe's file in them, which is read and not run.

    Raises:
        UserError: if there is no such file, or the settings have the digest of another.
    """
    path = recipe_file(config.method)
    digest = None if path is None else _digest(_read(path, config.method_digest))
    return config.model_copy(update={"method_digest": digest})


def _factory(name: str, digest: str | None = None) -> Factory | regrow.Recipe:
    if name in METHODS:
        return METHODS[name]
    if name in SALIENCIES:
        return METHODS["static"]
    path = recipe_file(name)
    if path is not None:
        return _from_file(path, name.rpartition(":")[2], digest)
    names = (*DENSE, *CARDS)
    near = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose among {', '.join(names)}"
    raise UserError(f"there is no method {name!r}: {hint}, or path/to/file.py:recipe")


def _call(factory: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except Exception as error:  # whatever a user's own code raises, or a method that meets an option of another type
        if name in CARDS and not isinstance(error, TypeError):
            raise
        given = ", ".join(f"{argument}={value}" for argument, value in arguments.items())
        raise UserError(f"--method: {name}({given}) does not run: {type(error).__name__}: {error}") from error


def _read(path: Path, digest: str | None) -> bytes:
    """Return the contents of a recipe's file, if it has that digest; None for any."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"--method: there is no file {path}") from None
    except OSError as error:
        raise UserError(f"--method: {path} cannot be read: {error.strerror}") from None
    if digest not in (None, _digest(content)):
        raise UserError(
            f"--method: {path} is not what it was when the run started (SHA-256 {digest}): "
            "put that file back, or take another --out for a new run"
        )
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_file(path: Path, attribute: str, digest: str | None) -> Factory | regrow.Recipe:
    content = _read(path, digest)
    name = f"regrow_user_{path.stem}_{_digest(content)[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f"--method: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in annotations that are strings
    try:
        # The bytes whose digest was compared, and not what the file holds by then.
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"--method: {path} does not run: {type(error).__name__}: {error}") from error
    recipe: object = getattr(module, attribute, None)
    if isinstance(recipe, regrow.Recipe):
        return recipe
    if callable(recipe):
        return recipe
    raise UserError(f"--method: {path} has no recipe or function {attribute!r}")
