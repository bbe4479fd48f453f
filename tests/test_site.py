"""The documentation builds as a site that is whole and asks no other host for anything."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

import regrow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hook():
    specification = importlib.util.spec_from_file_location("site_hook", ROOT / ".ci" / "site.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["site_hook"] = module  # where dataclasses look
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_has_its_place_in_the_reference(site):
    # as Python sees them, and not as the site's own reading of the sources does
    modules = {"regrow": regrow} | {
        f"regrow.{name}": importlib.import_module(f"regrow.{name}")
        for name in (
            *("compat", "distribution", "growth", "methods", "processes", "redistribute", "saliency", "schedule"),
            *("score", "integrations.accelerate", "integrations.lightning", "integrations.transformers"),
        )
    }
    pages = {path: (site / "api" / f"{path}.html").read_text() for path in modules}
    for path, module in modules.items():
        for name in module.__all__:
            if f"{path}.{name}" in modules:
                assert f'href="{path}.{name}.html"' in pages[path]
                continue
            place = "regrow.methods" if name in regrow.methods.__all__ else path
            # where a function is named as its module, the module stands before it
            assert f'id="{place}.{name}"' in pages[place] or f'id="{place}.{name}.{name}"' in pages[place]
            called = f"regrow.{name}" if place == "regrow.methods" else f"{path}.{name}"
            assert re.search(rf"\s{re.escape(called)}\s", pages[place]), called


def test_a_name_that_is_on_no_page_stops_the_build(hook, tmp_path):
    with pytest.raises(PluginError, match=r"the reference has no .*regrow\.AveragedModel, "):
        hook.on_post_build(SimpleNamespace(site_dir=tmp_path))


def test_the_pages_of_the_repository_are_there_and_linked(site):
    start = (site / "index.html").read_text()
    assert 'href="training.html"' in start
    assert 'src="results/speed.png"' in start
    assert 'href="CONTRIBUTING.html"' in (site / "architecture.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()
    for page in (ROOT / "docs" / "results").glob("*.md"):
        assert f'results/{page.stem}.html"' in start


def test_pictures_for_light_and_dark_lead_to_where_they_are(hook):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    config = SimpleNamespace(docs_dir=str(ROOT / "docs"))
    text = '<source srcset="docs/results/speed-dark.png"><img src="docs/results/speed.png" alt="a: b">'
    shown = hook.on_page_markdown(text, page, config, None)
    assert shown == '<source srcset="results/speed-dark.png"><img src="results/speed.png" alt="a: b">'


def test_no_page_asks_another_host(site, hook):
    parts = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert [path for path in parts if hook.remote(path.read_text())] == []


@pytest.mark.parametrize(
    "content",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img alt="" src=http://example/x.png>',
        "@import 'https://example/x.css';",
        "a { background: url(https://example/x.png) }",
    ],
)
def test_what_asks_another_host_is_found(hook, content):
    assert hook.remote(content) is not None
    assert hook.remote('<a href="https://example">there</a> <link rel="canonical" href="https://example">') is None
