"""What the documentation's site has beside the files of docs/: a hook of MkDocs, see mkdocs.yml.

The start is README.md; CONTRIBUTING.md and CHANGELOG.md are pages too. Results are listed by themselves. The reference
has a page for each public module, with every name of its `__all__`. After a build it is made sure that each of these
names is on a page, and that no page asks another host for anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# Pages that lie outside of docs/, by their place in the site.
OUTSIDE = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
# Rooms of the package whose public names are those of `regrow` itself.
INTERNAL = ("core", "convert", "experiments", "files", "nn", "ops", "storage", "topology")
# A room without names of its own: each module in it is public.
_FRAMEWORKS = "integrations"

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
_SOURCE = re.compile(r"""\b(src|srcset)="([^":]+)\"""")
_REMOTE = (
    re.compile(r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^>]*>"),
    re.compile(r"<link\b(?![^>]*\brel=[\"']?(?:canonical|next|prev))[^>]*\shref=[\"']?(?:https?:)?//[^>]*>"),
    re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^)\s]*"),
)


class Examples(griffe.Extension):
    """Read the section "Example:" of a docstring as code, as "Examples:" is."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was found."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


@dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
        path: what it is imported as.
        defined: what the reference calls it: where its file has it, for a function that is named as its module is.
    """

    path: str
    defined: str


@cache
def public_names() -> Mapping[str, tuple[Name, ...]]:
    """Return what is in `__all__` of `regrow` and of each of its public modules, but for modules."""
    loader = griffe.GriffeLoader(search_paths=[str(ROOT / "src")])
    package = loader.load("regrow")
    loader.resolve_aliases()
    inside = sorted(name for name, module in package.modules.items() if _is_public(name, module))
    inside += [f"{_FRAMEWORKS}.{name}" for name in sorted(package[_FRAMEWORKS].modules)]
    modules = {"regrow": package, **{f"regrow.{name}": package[name] for name in inside}}
    return {path: tuple(_names(path, module, modules)) for path, module in modules.items()}


def _is_public(name: str, module: Any) -> bool:
    return not module.is_alias and not name.startswith("_") and name not in (*INTERNAL, _FRAMEWORKS)


def _names(path: str, module: Any, modules: Mapping[str, Any]) -> Iterator[Name]:
    if not module.exports:
        raise PluginError(f"{path} is public and has no __all__")
    for name in sorted(map(str, module.exports), key=str.lower):
        full = f"{path}.{name}"
        if full in modules:
            continue
        found = module[name]
        # a module in the place of the function that it is named after, and that the package has taken from it
        yield Name(full, f"{found.canonical_path}.{name}" if found.is_module else full)


def reference() -> dict[str, str]:
    """Return the pages of the reference by their place in the site."""
    names = public_names()
    methods = {each.defined for each in names["regrow.methods"]}
    pages = {}
    for module, each in names.items():
        lines = [f"# {module}", ""]
        if module != "regrow":
            lines += [
                f"::: {module}",
                "    options: { members: false, show_root_heading: false, show_root_toc_entry: false }",
                "",
            ]
        for name in each:
            if module != "regrow" or name.defined not in methods:
                # methods are called as `regrow` has them
                shown = name.path.replace("regrow.methods.", "regrow.")
                lines += [f"::: {name.defined}", f'    options: {{ heading: "{shown}", toc_label: "{shown}" }}', ""]
        if module == "regrow":
            lines += ["## Modules", "", *(f"- [`{other}`]({other}.md)" for other in names if other != "regrow"), ""]
        pages[f"api/{module}.md"] = "\n".join(lines)
    return pages


def on_config(config: Any) -> Any:
    """Complete the navigation."""
    docs = Path(config.docs_dir)
    config.nav = list(_present(config.nav, docs))
    results = sorted(f"results/{path.name}" for path in (docs / "results").glob("*.md"))
    api = [{place[4:-3]: place} for place in reference()]
    config.nav[2:2] = [{"Reference": api}, {"Results": results}]
    return config


def _present(nav: list[Any], docs: Path) -> Iterator[Any]:
    """Yield what of a navigation there is: pages may be written later than their entries."""
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            yield {title: list(_present(target, docs))}
        elif target in OUTSIDE or (docs / target).exists():
            yield entry


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files of docs/."""
    for place, source in OUTSIDE.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    for place, text in reference().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where their targets are in the site; those that are not there become plain text."""
    place = page.file.src_uri
    if place.startswith("api/"):
        return markdown
    source = ROOT / OUTSIDE[place] if place in OUTSIDE else Path(config.docs_dir) / place
    places = {(ROOT / path).resolve(): name for name, path in OUTSIDE.items()}

    def inside(target: str) -> str | None:
        path = (source.parent / target).resolve()
        found = places.get(path)
        if found is None and path.is_relative_to(config.docs_dir):
            found = path.relative_to(config.docs_dir).as_posix()
        return None if found is None else os.path.relpath(found, Path(place).parent)

    def lead(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target:
            return match[0]
        found = inside(target)
        return text if found is None else f"{image}[{text}]({found}{anchor})"

    def show(match: re.Match[str]) -> str:
        return f'{match[1]}="{inside(match[2]) or match[2]}"'

    return _SOURCE.sub(show, _LINK.sub(lead, markdown))


def on_post_build(config: Any) -> None:
    """Check what was built.

    Raises:
        PluginError: if a public name is on no page, or a page asks another host for something.
    """
    site = Path(config.site_dir)
    pages = {path: path.read_text() for path in sorted(site.rglob("*.html"))}
    text = "\n".join(page for path, page in pages.items() if path.parent.name == "api")
    missing = [name.path for each in public_names().values() for name in each if f'id="{name.defined}"' not in text]
    if missing:
        raise PluginError(f"the reference has no {', '.join(missing)}")
    styles = {path: path.read_text() for path in sorted(site.rglob("*.css"))}
    for path, content in {**pages, **styles}.items():
        if found := remote(content):
            raise PluginError(f"{path.relative_to(site)} asks another host: {found}")


def remote(content: str) -> str | None:
    """Return the first part of a page or a style sheet that makes a browser ask another host; None if none does."""
    for pattern in _REMOTE:
        if match := pattern.search(content):
            return match[0]
    return None
