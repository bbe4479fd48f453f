"""Methods by name, and recipes from a user's own file."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import regrow
from regrow.core.budget import within
from regrow.core.schedule import constant, cosine, linear
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.growth import parse_growth
from regrow.experiments.train.modes import with_modes
from regrow.methods import METHODS

__all__ = ["METHODS", "Factory", "check_method", "make_recipe", "recipe_file", "run_name", "with_digest"]

Factory = Callable[..., regrow.Recipe]

_FINAL_PRUNE_RATE = 0.005


def make_recipe(config: TrainConfig, steps_per_epoch: int) -> regrow.Recipe:
    """Return the recipe that the settings name, over the steps of the whole training.

    `config.method` is a name from `METHODS` or `path/to/file.py:recipe`, where `recipe` is a `regrow.Recipe` or a
    function of `every` and `steps` (both in optimizer steps), with `prune_rate`, `compute` and `density` (that of its
    end) if it takes them, that returns one. A bound on compute that it does not take is put around its redistribution.

    Raises:
        UserError: if there is no such method or file, the file does not hold a recipe, or is not that of
            `config.method_digest`.
    """
    steps = config.epochs * steps_per_epoch
    every = max(1, round(config.update_every * steps_per_epoch))
    factory = _factory(config.method, config.method_digest)
    arguments: dict[str, int | float] = {"every": every, "steps": steps}
    if isinstance(factory, regrow.Recipe):
        recipe = factory
    else:
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
    if config.keep_returning is not None:
        recipe = replace(recipe, keep_returning=config.keep_returning)
    if config.distribution is not None:
        recipe = replace(recipe, distribution=config.distribution)
    if config.growth is not None:
        recipe = replace(recipe, growth=parse_growth(config.growth))
    if config.prune_rate_decay is None:
        return recipe
    start = recipe.fraction(0)
    end = min(_FINAL_PRUNE_RATE, start)
    decays = {
        "constant": constant(start),
        "cosine": cosine(start, steps, end=end),
        "linear": linear(start, steps),  # to 0, as in the code of arXiv:1907.04840
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
    block = "" if config.block is None or method == "dense" else f"-{config.block}"
    kept = {"method": "", "keep": "-keep"}.get(config.redistribute, f"-redistribute-{config.redistribute}")
    asked = {"prune": config.prune, "grow": config.grow, "rate": config.prune_rate_decay}
    modes = "".join(f"-{setting}-{name}" for setting, name in asked.items() if name is not None)
    bound = "" if config.compute is None or method == "dense" else f"-compute{config.compute:g}"
    spread = "" if config.distribution is None or method == "dense" else f"-{config.distribution}"
    return f"{method}{modes}{kept}{bound}{spread}{growth}{block}{density}-seed{config.seed}"


def check_method(name: str) -> None:
    """Raise a UserError if `name` is neither "dense", a method's name, nor a recipe in a file."""
    if name != "dense":
        _factory(name)


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
    path = recipe_file(name)
    if path is not None:
        return _from_file(path, name.rpartition(":")[2], digest)
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
