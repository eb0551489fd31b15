"""Puts what the documentation copies up to date: `python -m tests.docs.refresh`.

The numbers in links to lines, [name](../detco_d2/file.py#L12), and the paper's tables.
"""

import re
from pathlib import Path

from .pages import PAGES, defines, line_links
from .published import published_tables

_TABLES = re.compile(r"(<!-- the paper's tables -->\n).*?(<!-- end -->)", re.S)


def refreshed(page: Path) -> str:
    """The page as it should be.

    Raises:
        ValueError: a link's name that is defined nowhere in its file, or more than once.
    """
    text = page.read_text()
    for name, target, _ in line_links(text):
        path = target.partition("#")[0]
        lines = (page.parent / path).read_text().splitlines()
        hits = [i for i, line in enumerate(lines, start=1) if defines(line, name)]
        if len(hits) != 1:
            raise ValueError(f"{page.name}: {name} is defined at lines {hits} of {path}")
        text = text.replace(f"[{name}]({target})", f"[{name}]({path}#L{hits[0]})")
    return _TABLES.sub(lambda match: match[1] + published_tables() + match[2], text)


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(refreshed(each))
