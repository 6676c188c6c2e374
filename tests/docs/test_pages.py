"""The texts: README's size and example, links that lead somewhere, commands and options that exist."""

import re
import shlex

import pytest
import typer

from kanjilab.cli.main import app
from tests.docs.pages import DOCS, PAGES, ROOT, broken_links, examples, run_examples
from tests.test_code_rules import ROOMS

README = ROOT / "README.md"
README_LIMIT_BYTES = 8_000
COMMANDS = typer.main.get_command(app).commands


def page_name(page):
    return str(page.relative_to(ROOT))


def test_the_readme_is_read_in_two_minutes():
    assert len(README.read_bytes()) <= README_LIMIT_BYTES


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# A b, `c`\n[x](#a-b-c) [y](#d) [z](none.md) <img src="none.png"> [w](https://none.example)\n')
    assert broken_links(page) == ["#d", "none.md", "none.png"]


def test_every_page_of_docs_is_in_the_readme():
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent == DOCS and f"docs/{page.name}" not in text] == []


def shell_commands(text: str) -> list[list[str]]:
    """Words of every `kanjilab ...` command in code of a page."""
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    lines = [line for block in code for line in block.splitlines() if line.startswith("kanjilab ")]
    return [shlex.split(line.replace("(", "").replace(")", ""))[1:] for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_their_options_exist(page):
    for command, *words in shell_commands(page.read_text(encoding="utf-8")):
        if command == "--help":
            continue
        assert command in COMMANDS, command
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, (command, words)


def test_options_in_prose_exist():
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    for page in (page for page in PAGES if page == README or page.parent == DOCS):
        named = set(re.findall(r"`(--[a-z0-9-]+)", page.read_text(encoding="utf-8")))
        assert named - known - {"--help"} == set(), page


def test_the_table_of_rooms_is_the_one_that_is_tested():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(\S+\) \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    found = {room: {room, *others.replace("–", room).split(", ")} for room, others in rows}
    assert found == {room: others for room, others in ROOMS.items() if room not in ("widgets", "cli")}


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = examples(README.read_text(encoding="utf-8"))
    small = {
        "Left16()": "Left16(per_radical=4)",
        "images_seen=10_000": "images_seen=4, batch=4, warmup_steps=0",
        'ranks")):': 'ranks"), checkpoints=1):',
        "15, 5.0": "2, 5.0",
    }
    for full, little in small.items():
        assert full in example
        example = example.replace(full, little)
    names = run_examples([example], "README.md")
    assert len(names["run"].settings["arms"]) == 3
    assert (tmp_path / "strip.png").is_file()
