"""The pages: links that lead somewhere, commands that parse, lines that fit."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import benchmarks
import critique
import dpo
import evaluate
import generate
import refine

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "course").glob("*.md"))]
STAGES = {f"{stage.__name__}.py": stage for stage in (generate, critique, refine, dpo, evaluate)}


def name_page(page):
    return page.name


def headings(page):
    """The anchors of a page's headings, as they are made from their words."""
    anchors = set()
    for heading in re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        anchors.add(words.replace(" ", "-"))
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_relative_links_lead_to_files_and_headings_that_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    relative = [link for link in links if not link.startswith("https://")]
    assert relative
    for link in relative:
        file, _, anchor = link.partition("#")
        target = page if file == "" else page.parent / file
        assert target.exists(), link
        assert anchor == "" or anchor in headings(target), link


def commands(page):
    """The commands in the page's blocks of code, as lists of words; comments and line breaks are taken out."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith(("python ", "pip ", "make ")) else []
            if words[:1] == ["python"]:
                found.append(words[: words.index(">")] if ">" in words else words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_command_parses(page, monkeypatch):
    names = [*benchmarks.names(), "yes_no"]  # which a patch adds, in benchmarks.md
    monkeypatch.setattr(benchmarks, "names", lambda: names)
    for words in commands(page):
        if words[1] == "-m":
            assert importlib.util.find_spec(words[2]), words
        elif words[2:] != ["--help"]:
            monkeypatch.setattr("sys.argv", words[1:])
            STAGES[words[1]].parse_args()  # SystemExit for an option that is unknown or missing


def test_there_are_commands_to_parse():
    stages = {words[1] for page in PAGES for words in commands(page)}
    assert stages >= set(STAGES)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_lines_of_text_fit_a_hundred_columns(page):
    text = re.sub(r"^```\n.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")] == []
