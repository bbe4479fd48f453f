"""The code in the documentation runs."""

import re
from itertools import product
from pathlib import Path

import pytest
from mktestdocs import check_md_file

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_md_file(page, memory=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    text = page.read_text()
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    local = [target.split("#")[0] for target in targets if not target.startswith("http")]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_messages_that_troubleshooting_explains_are_those_of_the_library():
    source = "".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # messages of several lines
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 5
    parts = [part.strip() for row in rows for part in row.split("...") if part.strip()]
    assert [part for part in parts if part not in source] == []


FRAMEWORKS = ("plain loop", "Lightning", "Accelerate", "`transformers`")
FEATURES = (
    *("trains", "clips by norm", "accumulates", "bfloat16", "saves and resumes", "average of weights"),
    *("two processes (DDP)", "split parameters (FSDP2)", "`torch.compile`", "save and export"),
)


def test_the_table_of_trainers_is_whole_and_names_tests_that_are_there():
    page = ROOT / "docs" / "trainers.md"
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ") and "](../tests/" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {(framework, feature) for framework, feature, *_ in rows} >= set(product(FRAMEWORKS, FEATURES))
    for framework, _, masked, sparse, tests in rows:
        assert framework in FRAMEWORKS
        assert masked
        assert sparse
        named = re.findall(r"\[(\w+)\]\(([^)]+)\)", tests)
        assert named
        assert [name for name, path in named if f"\ndef {name}(" not in (page.parent / path).read_text()] == []
