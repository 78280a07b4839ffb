"""Is the site true and whole? Its code blocks run, its commands exist, and it builds without a warning and reads offline."""

from __future__ import annotations

import html.parser
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import tritoncrf as tc
from tests.warm import Warm
from tritoncrf import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INCLUDED = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Pages that others fill: the examples' programs run in test_examples.
WRITTEN = [page for page in PAGES if page.parent.name != "examples"]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def text_of(page: Path) -> str:
    """A page with what it includes."""
    return INCLUDED.sub(lambda found: (ROOT / found[1]).read_text(), page.read_text())


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(what stands behind the language, the block) of every block."""
    return [(title.strip(), code) for found, title, code in BLOCK.findall(text_of(page)) if found == language]


@pytest.mark.parametrize("page", [page for page in WRITTEN if blocks(page, "python")], ids=name_of)
def test_the_python_blocks_run(warm: Warm, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and as one program; a block that is titled with a file's name is a file for pytest."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        monkeypatch.setenv(name, value)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": page.stem}
    for title, code in blocks(page, "python"):
        if "init_process_group" in code:
            # In a process that ends at once: torch at times waits for ever where a group of gloo's goes as its last use does.
            program = f"{code}\nimport os\nos._exit(0)\n"
            done = warm.run(["-c", program], env=outside_xdist(), cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        elif title:
            path = tmp_path / title.removeprefix('title="').removesuffix('"')
            path.write_text(code)
            command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-only", str(path)]
            result = warm.run(command, env=outside_xdist(), cwd=tmp_path)
            assert result.returncode == 0, result.stdout
            assert "1 passed" in result.stdout
        else:
            exec(compile(code, str(page), "exec"), names)


def outside_xdist() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return kept | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_what_blocks_promise_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a comment says what a line prints, it prints that."""
    monkeypatch.chdir(tmp_path)
    promised = 0
    for page in ("concepts/energy.md", "concepts/exact.md", "concepts/edges.md", "guides/latent-labels.md", "start.md"):
        names: dict[str, object] = {}
        for _, code in blocks(DOCS / page, "python"):
            printing = [line for line in code.splitlines() if line.startswith("print(")]
            capsys.readouterr()
            exec(compile(code, page, "exec"), names)
            lines = capsys.readouterr().out.splitlines()
            assert len(lines) == len(printing), page
            for line, came in zip(printing, lines, strict=True):
                promise = re.search(r"  # ((?:True|tensor\(True\)|torch\.Size|\d|\(\()[^:]*)", line)
                if promise is not None:
                    assert came == promise[1].rstrip(), (page, line)
                    promised += 1
    assert promised >= 8


COMMANDS = [
    (name_of(page), line) for page in PAGES for _, code in blocks(page, "console")
    for line in code.replace("\\\n", " ").splitlines() if line.strip()
]  # fmt: skip


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line[:40]}" for page, line in COMMANDS])
def test_commands_exist(page: str, line: str) -> None:
    """Programs, modules, files and extras that a command names are there; our own command takes its flags."""
    for words in (shlex.split(part, comments=True) for part in line.split("&&")):
        known(words)


def known(words: list[str]) -> None:
    match words:
        case ["tritoncrf", *rest] | ["torchrun", _, "-m", "tritoncrf", *rest]:
            cli._parser().parse_args(rest)
        case ["python", "-m", "torch.distributed.run", _, "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), script
        case ["pip", "install", *rest]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
                assert set(extra.split(",")) <= set(SETTINGS["project"]["optional-dependencies"]), extra
        case ["pytest", *rest]:
            for word in rest:
                assert not word.startswith(("bench/", "tests/")) or (ROOT / word).exists(), word
        case ["pre-commit" | "ruff" | "mypy" | "zensical", *_] | [".ci/run"]:
            pass
        case _:
            raise AssertionError(f"expected a command that this test knows, got {words}")


def test_an_unknown_flag_is_found() -> None:
    with pytest.raises(ValueError, match="--nothing"):
        known(["tritoncrf", "train", "--nothing"])


def test_every_public_name_has_a_place_in_the_reference() -> None:
    shown = set(re.findall(r"^::: tritoncrf\.(\w+)$", "".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), re.M))
    assert set(tc.__all__) <= shown


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert sorted(listed) == sorted(map(name_of, PAGES))


def test_every_example_has_a_page_with_a_picture() -> None:
    for script in (ROOT / "examples").glob("*.py"):
        page = (DOCS / "examples" / f"{script.stem}.md").read_text()
        assert f'--8<-- "examples/{script.name}"' in page
        assert f"]({script.stem}.png)" in page


def test_the_change_log_and_the_citation_name_this_release_and_contract() -> None:
    from tritoncrf import contract

    newest = re.search(r"^## (?:Unreleased: )?(\S+), bit contract (\d+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest.groups() == (tc.__version__, str(contract.VERSION))
    assert f"\nversion: {tc.__version__}\n" in (ROOT / "CITATION.cff").read_text()


class Links(html.parser.HTMLParser):
    """What a page loads, and where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.led: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if "src" in given:
            self.loaded.append(given["src"])
        if "href" in given:
            (self.loaded if tag == "link" else self.led).append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from a copy of what it is made of: the checkout stays as it is."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "examples", "tritoncrf", ".ci"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, folder)
    result = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    # Docstrings' faults are warnings that the strict mode passes over.
    assert not re.search(r"griffe:|mkdocstrings:|[Ww]arning", said), said
    return folder / "site"


def test_every_page_is_there_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert {str(path.relative_to(site).with_suffix(".md")) for path in pages} == {name_of(page) for page in PAGES}
    for path, links in pages.items():
        for link in (part for part in links.led if not re.match(r"https?:|mailto:", part)):
            target, _, place = link.partition("#")
            other = (path.parent / target).resolve() if target else path
            assert other.is_file(), (path.name, link)
            assert not place or other not in pages or place in pages[other].ids, (path.name, link)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not [part for part in Links(path).loaded if re.match(r"(https?:)?//", part)], path.name
        assert not re.search(r"googletagmanager|google-analytics|gstatic|unpkg|jsdelivr", path.read_text(encoding="utf-8"))
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path.name


def test_examples_of_docstrings_are_code(site: Path) -> None:
    page = (site / "reference" / "learning.html").read_text(encoding="utf-8")
    assert re.search(r'<span class="gp">>>> |<span class="gp">&gt;&gt;&gt; ', page)
    assert "<blockquote" not in page
    assert "an image [C, *shape], a target [*shape]" in (site / "reference" / "datasets.html").read_text(encoding="utf-8")


def loaded_extension() -> Any:
    specification = importlib.util.spec_from_file_location("docstrings", ROOT / ".ci" / "docstrings.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_arguments_told_in_a_sentence_become_a_list() -> None:
    pytest.importorskip("griffe", reason="mkdocstrings is not installed: pip install '.[docs]'")
    listed = loaded_extension().listed
    text = "What it does.\n\na: one thing; b, c:\ntwo of [N: d]. Raises ValueError for others.\n\nMore: of it."
    expected = "What it does.\n\n- `a`: one thing\n- `b, c`: two of [N: d].\n\nRaises ValueError for others.\n\nMore: of it."
    assert listed(text, ["a", "b", "c"]) == expected
    assert listed(text, []) == text
