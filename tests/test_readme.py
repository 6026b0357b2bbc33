"""README.md says what is true: its options, its commands, its files, its example."""

import ast
import re
import runpy
import shlex
import shutil
import subprocess
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest
from fakes_gateway import serving

from launch.cli import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/openai.md")
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The lines of its shell blocks, as words, without comments."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_table_of_options_is_that_of_config() -> None:
    options = runpy.run_path(str(ROOT / "docs" / "options.py"))
    assert README.count(options["BEGIN"]) == README.count(options["END"]) == 1
    assert options["rewritten"](README) == README, "run: make readme"


def test_every_command_line_of_skipjoin_is_understood() -> None:
    lines = [words for words in commands() if any(word.endswith("bin/skipjoin") for word in words)]
    assert lines
    for words in lines:
        _, *arguments = dropwhile(lambda word: not word.endswith("bin/skipjoin"), words)
        parse(list(takewhile(lambda word: word != ">>", arguments)))


def test_every_target_of_make_exists() -> None:
    targets = {words[words.index("make") + 1] for words in commands() if "make" in words}
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    names = set(re.findall(r"`((?:common|gateway|worker|launch|tests|docs|\.ci)/[\w./-]*)`", page.read_text()))
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_example_in_python_streams_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    with serving() as url:
        exec(compile(ast.parse(example.replace("http://127.0.0.1:8000", url)), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "Hello, world!"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_example_with_curl_streams_an_answer() -> None:
    (words,) = (words for words in commands() if words[0] == "curl")
    with serving() as url:
        command = [word.replace("http://127.0.0.1:8000", url) for word in words]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert '"content":"H"' in answer.stdout
    assert answer.stdout.endswith("data: [DONE]\n\n")
