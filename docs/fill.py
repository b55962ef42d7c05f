"""Insert the kernels' code and the emulator's counts into docs/lessons/*.md, between markers.

    python -m docs.fill             # rewrite the pages
    python -m docs.fill --check     # only say which are out of date, as the tests do

Between ``<!-- code:FILE "from" to "until" -->`` and ``<!-- /code -->`` are lines of ``cuda/FILE``:
from the first that contains one text to the next that contains the other. Between ``<!-- counts:
KERNEL ... -->`` and ``<!-- /counts -->`` are the memory counts of kernels.
"""

import functools
import re
import sys
from pathlib import Path

from mulfree_cupy import lessons
from mulfree_cupy.launch.source import cuda_directory
from mulfree_cupy.lessons import counts

PAGES = Path(__file__).parent / "lessons"
CODE = re.compile(r'(<!-- code:(\S+) "(.+?)" to "(.+?)" -->\n).*?(<!-- /code -->)', re.DOTALL)
COUNTS = re.compile(r"(<!-- counts: (.+?) -->\n).*?(<!-- /counts -->)", re.DOTALL)


def code(path: str, first: str, last: str) -> str:
    """The lines of a CUDA file from one that contains a text to the next that contains another."""
    lines = (cuda_directory() / path).read_text(encoding="utf-8").splitlines()
    start = next((i for i, line in enumerate(lines) if first in line), None)
    if start is None:
        raise ValueError(f"cuda/{path}: no line has {first!r}")
    end = next((i for i in range(start, len(lines)) if last in lines[i]), None)
    if end is None:
        raise ValueError(f"cuda/{path}: no line behind {first!r} has {last!r}")
    shown = lines[start : end + 1]
    indents = [len(line) - len(line.lstrip()) for line in shown if line and line[0] != "#"]
    margin = min(indents, default=0)
    text = "\n".join(line if line.startswith("#") else line[margin:] for line in shown)
    return f"[cuda/{path}](../../cuda/{path}):\n\n```cuda\n{text}\n```\n"


@functools.cache
def trial(name: str) -> lessons.Trial:
    """A kernel traced on its case, with all checks."""
    return lessons.attempt(lessons.find(name), check=True, trace=True)


def table(names: list[str]) -> str:
    """The counts of kernels, one column each, without rows that are all empty."""
    trials = [trial(name) for name in names]
    rows = [["", *(f"`{t.kernel.name}`" for t in trials)], ["---", *["---:"] * len(trials)]]
    for label, measure in counts.MEASURES.items():
        values = [counts.number(measure(t)) for t in trials]
        if set(values) != {"-"}:
            rows.append([label, *values])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def filled(text: str) -> str:
    """The page with what belongs between its markers."""
    text = CODE.sub(lambda m: m[1] + code(m[2], m[3], m[4]) + m[5], text)
    return COUNTS.sub(lambda m: m[1] + table(m[2].split()) + m[3], text)


def main(check: bool) -> int:
    stale = []
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    what = "out of date" if check else "rewritten"
    print(f"{what}: {', '.join(stale)}" if stale else "up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
