"""What the pages of the documentation hold: commands, links, headings."""

import re
from pathlib import Path
from typing import NamedTuple

from ..conftest import ROOT

PAGES = [Path(ROOT, "README.md"), *sorted(Path(ROOT, "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.M | re.S)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_COMMAND = re.compile(r"\s*(\$ )?(python|torchrun|pip|make|tensorboard|sbatch|git|wandb) \S")


class Block(NamedTuple):
    """Something to run: "bash" or "python", what a reader copies, and its line in the page."""

    kind: str
    text: str
    line: int


def _without_fences(text: str) -> str:
    """The text with its fences blanked out, every position kept."""
    return _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def blocks(text: str) -> list[Block]:
    """What is run of a page, in its order."""
    found = [
        (match.start(2), match[1], match[2])
        for match in _FENCE.finditer(text)
        if match[1] in ("bash", "python")
    ]
    for match in _SPAN.finditer(_without_fences(text)):
        if _COMMAND.match(match[1]):
            found.append((match.start(), "bash", " ".join(match[1].split()) + "\n"))
    return [Block(kind, code, text.count("\n", 0, at) + 1) for at, kind, code in sorted(found)]


def stray_commands(text: str) -> list[str]:
    """Lines that look like commands, and are where no test finds them."""
    other = "".join(m[2] for m in _FENCE.finditer(text) if m[1] not in ("bash", "python"))
    lines = _without_fences(text).splitlines()
    indented = [line for line in lines if line.startswith("    ")]
    return [line for line in [*other.splitlines(), *indented] if _COMMAND.match(line)]


def links(text: str) -> list[tuple[str, str]]:
    """(text, target) of every link and picture."""
    return re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", _without_fences(text))


def name_links(text: str) -> list[tuple[str, str]]:
    """(name, target) of every link from a name to the file that defines it."""
    code = [(name.strip("`"), target) for name, target in links(text) if target.endswith(".py")]
    return [pair for pair in code if re.fullmatch(r"[\w.]*\w(?<!\.py)", pair[0])]


def defines(code: str, name: str) -> bool:
    """Whether code defines a function, class, variable or key of this name."""
    last, whole = re.escape(name.rpartition(".")[2]), re.escape(name)
    pattern = rf"^\s*(?:(?:def|class) {last}\b|(?:cfg\.)?{whole}(?:: [^=]+)? = )"
    return bool(re.search(pattern, code, re.M))


def anchors(text: str) -> set[str]:
    """The names under which GitHub offers the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", _without_fences(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
