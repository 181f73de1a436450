"""Everything that a page shows is run: a page is a program, read from top to bottom in an empty folder.

What a fenced block means:

    ```python                       executed, all blocks of a page in one namespace
    ```bash                         executed by bash, in the page's folder; `task` and `python` are the ones under test
    ```{code-block} yaml            with `:caption: name.yaml`: written to that file, in any language
    ```output                       what the block above it printed; `...` stands for any text
    others                          shown only

A comment above a block changes that: `<!-- exits with 2 -->`, or `<!-- not run: REASON -->`. The latter are counted
below, so that no block is left out unnoticed.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sklearn  # noqa: F401 - pages use it, and it sets environment variables when it is first imported

import taskloom

SERVER = Path(__file__).with_name("warm.py")
DOCS = Path(__file__).parents[2] / "docs"
# Pages that a program writes, and records of decisions, have nothing for a reader to type.
PAGES = [
    path
    for path in sorted(DOCS.rglob("*.md"))
    if not {"_build", "decisions"} & set(path.parts) and path.name not in ("parity.md", "benchmarks.md")
]

# Blocks that do not run, by page: one more is a decision.
NOT_RUN = {"getting-started": 2}

SECONDS = 100
_OPENING = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<directive>\{[\w-]+\})?\s*(?P<word>.*)$")
_OPTION = re.compile(r"^:(?P<name>[\w-]+):\s*(?P<value>.*)$")
_COMMENT = re.compile(r"^<!-- (?P<what>not run: |exits with )(?P<value>.+) -->$")


# A `task` or `python` that lets the server run the program.
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
answer = server.recv(4)
os._exit(int(answer) if answer else 255)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        language: python, bash, output, ...
        text: between the fences, without options.
        line: number of its first line.
        file: that it is written to, or empty.
        not_run: why it does not run, or empty.
        exits_with: what a command is to end with.
    """

    language: str
    text: str
    line: int
    file: str = ""
    not_run: str = ""
    exits_with: int = 0


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    comment, number = None, 0
    while number < len(lines):
        opening = _OPENING.match(lines[number])
        if opening is None:
            if lines[number]:
                comment = _COMMENT.match(lines[number])
            number += 1
            continue
        ends = (after for after in range(number + 1, len(lines)) if lines[after].rstrip() == opening["fence"])
        end = next(ends, None)
        assert end is not None, f"{path.name}:{number + 1}: this block is never closed"
        if opening["directive"] in (None, "{code-block}"):
            start, options = number + 1, {}
            while opening["directive"] and (option := _OPTION.match(lines[start])):
                options[option["name"]] = option["value"]
                start += 1
            start += opening["directive"] is not None and not lines[start]
            said = {comment["what"]: comment["value"]} if comment else {}
            found.append(
                Block(
                    language=opening["word"],
                    text="".join(f"{line}\n" for line in lines[start:end]),
                    line=start + 1,
                    file=options.get("caption", ""),
                    not_run=said.get("not run: ", ""),
                    exits_with=int(said.get("exits with ", 0)),
                )
            )
        comment, number = None, end + 1
    return found


class Reader:
    """Somebody who does what a page says, in an empty folder.

    Args:
        page: the page.
        folder: empty.
        server: socket of tests/docs/warm.py.
        monkeypatch: changes the working folder of this process.
    """

    def __init__(self, page: Path, folder: Path, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page, self.monkeypatch = page, monkeypatch
        self.tools, self.here = folder / "tools", folder / "empty"
        self.tools.mkdir()
        self.here.mkdir()
        # What a reader has after installing: `task`, and a `python` that finds taskloom.
        for program in ("task", "python"):
            tool = self.tools / program
            tool.write_text(CLIENT.format(python=sys.executable, socket=str(server), program=program))
            tool.chmod(0o755)
        self.module = types.ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", self.module)
        self.printed = ""

    def do(self, block: Block) -> None:
        """Do what a block means."""
        if block.not_run:
            return
        if block.file:
            file = self.here / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.printed = self._python(block)
        elif block.language == "bash":
            self.printed = self._bash(block)
        elif block.language == "output":
            self._compare(block)

    def _python(self, block: Block) -> str:
        self.monkeypatch.chdir(self.here)
        # Empty lines in front, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(self.page), "exec", dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, vars(self.module))
        return printed.getvalue()

    def _bash(self, block: Block) -> str:
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(self.tools), os.environ["PATH"]]),
            "COLUMNS": "120",
        }
        done = subprocess.run(
            ["bash", "-eu", "-c", f"trap 'pwd > {self.tools}/where' EXIT\n{block.text}"],
            cwd=self.here,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == block.exits_with, self._at(block, f"exit {done.returncode}\n{done.stdout}")
        self.here = Path((self.tools / "where").read_text().rstrip())
        return done.stdout

    def _compare(self, block: Block) -> None:
        shown, printed = _trimmed(block.text), _trimmed(self.printed)
        pattern = ".*".join(re.escape(part) for part in shown.split("..."))
        if re.fullmatch(pattern, printed, flags=re.DOTALL) is None:
            lines = difflib.unified_diff(shown.splitlines(), printed.splitlines(), "page", "printed", lineterm="")
            pytest.fail(self._at(block, "something else is printed\n" + "\n".join(lines)))

    def _at(self, block: Block, what: str) -> str:
        return f"{self.page.relative_to(DOCS.parent)}:{block.line}: {what}"


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _name(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Serve `task` and `python` to the blocks of all pages."""
    path = tmp_path_factory.mktemp("server") / "socket"
    environment = {**os.environ, "PYTHONPATH": str(Path(taskloom.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SERVER), str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield path
        process.kill()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_works_word_by_word(page: Path, tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(page, tmp_path, server, monkeypatch)
    for block in blocks_of(page):
        reader.do(block)


def test_the_readme_works_word_by_word(tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The reader of a README has a clone. What `make` does is run by continuous integration itself.
    readme = DOCS.parent / "README.md"
    reader = Reader(readme, tmp_path, server, monkeypatch)
    shutil.copytree(DOCS.parent / "examples", reader.here / "examples")
    targets = set(re.findall(r"^([a-z-]+):", (DOCS.parent / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in blocks_of(readme):
        if block.language == "bash" and block.text.startswith("make "):
            assert {line.split()[1] for line in block.text.splitlines()} <= targets
        else:
            reader.do(block)


def test_blocks_that_do_not_run_are_known() -> None:
    left_out = {_name(page): sum(bool(block.not_run) for block in blocks_of(page)) for page in PAGES}
    assert {page: count for page, count in left_out.items() if count} == NOT_RUN
