"""What the documents name exists: links, commands, modules."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_commands_of_a_document_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (document.parent / link.partition("#")[0]).exists()]
    scripts = re.findall(r"python ((?:data|training|hpo|ensembles|benchmarks|docs)/[\w/]+\.py)", text)
    missing += [script for script in scripts if not (ROOT / script).exists()]
    assert missing == []


def test_every_module_that_the_architecture_names_exists():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(data|models|training|hpo|ensembles)/` \|(.*)$", text, re.MULTILINE)
    assert [package for package, _ in rows] == ["data", "models", "training", "hpo", "ensembles"]
    named = [(package, name) for package, row in rows for name in re.findall(r"`([\w/]+\.py)`", row)]
    elsewhere = [(package, name) for package, name in named if not (ROOT / package / name).exists()]
    # "the only import beside ensembles/serving.py" names a module of another package by its path.
    assert [name for _, name in elsewhere if not (ROOT / name).exists()] == []
    assert len(named) > 80
