"""What the pages of the documentation hold: commands, links, headings."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..conftest import ROOT

PAGES = [Path(ROOT, "README.md"), *sorted(Path(ROOT, "docs").glob("*.md"))]
PROGRAMS = ("python", "torchrun", "pip", "make", "tensorboard", "sbatch", "git", "wandb")
PROGRAMS += ("chromium",)

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.M | re.S)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_TYPED = re.compile(rf"^(?:\$ )?((?:{'|'.join(PROGRAMS)}) \S.*(?:\\\n.*)*)", re.M)
_COMMAND = re.compile(rf"\s*(\$ )?({'|'.join(PROGRAMS)}) \S")


@dataclass(frozen=True)
class Block:
    """Something to run.

    Attributes:
        kind: "bash" or "python".
        text: what a reader copies.
        line: where it stands, counted from 1.
    """

    kind: str
    text: str
    line: int


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _without_fences(text: str) -> str:
    """The text with its fences blanked out, every position kept."""
    return _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def blocks(text: str) -> list[Block]:
    """What is run of a page, in its order.

    The fences of kind bash and python, the commands in those of kind text (behind a $, or where
    only what they gave is shown), and the commands in `single quotes`.
    """
    found = [
        Block(match[1], match[2], _line(text, match.start()) + 1)
        for match in _FENCE.finditer(text)
        if match[1] in ("bash", "python")
    ]
    for fence in _FENCE.finditer(text):
        for match in _TYPED.finditer(fence[2] if fence[1] == "text" else ""):
            line = _line(text, fence.start(2) + match.start())
            found.append(Block("bash", match[1].rstrip() + "\n", line))
    for match in _SPAN.finditer(_without_fences(text)):
        if _COMMAND.match(match[1]):
            found.append(
                Block("bash", " ".join(match[1].split()) + "\n", _line(text, match.start()))
            )
    return sorted(found, key=lambda block: block.line)


def stray_commands(text: str) -> list[str]:
    """Lines that look like commands, and are where no test finds them."""
    known = ("bash", "python", "text")
    other = [match[2] for match in _FENCE.finditer(text) if match[1] not in known]
    lines = [line for fence in other for line in fence.splitlines()]
    lines += [line for line in _without_fences(text).splitlines() if line.startswith("    ")]
    return [line for line in lines if _COMMAND.match(line)]


def links(text: str) -> list[tuple[str, str]]:
    """(text, target) of every link and picture."""
    return re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", _without_fences(text))


def name_links(text: str) -> list[tuple[str, str]]:
    """(name, target) of every link from a name to the file that defines it."""
    named = re.compile(r"`?[\w.]*\w`?")
    code = [pair for pair in links(text) if pair[1].endswith(".py")]
    return [(n, target) for n, target in code if named.fullmatch(n) and not n.endswith(".py")]


def defines(code: str, name: str) -> bool:
    """Whether code defines a function, class, variable or key of this name."""
    name = name.strip("`")
    last, whole = re.escape(name.rpartition(".")[2]), re.escape(name)
    pattern = rf"^\s*(?:(?:def|class) {last}\b|(?:cfg\.)?{whole}(?:: [^=]+)? = )"
    return bool(re.search(pattern, code, re.M))


def anchors(text: str) -> set[str]:
    """The names under which GitHub offers the headings of a page."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", _without_fences(text), re.M):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        number = next(n for n in range(99) if (f"{name}-{n}" if n else name) not in found)
        found.add(f"{name}-{number}" if number else name)
    return found
