"""The machine code (SASS) of a compiled kernel, without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

_LABEL = re.compile(r"^\s*(\.L\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"\bBRA\b.*?\(?(\.L\w+)")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")


def disassemble(cubin: bytes) -> str:
    """The output of nvdisasm, from the wheel nvidia-cuda-nvdisasm."""
    import nvidia

    program = next(
        (p for root in nvidia.__path__ if (p := Path(root, "cu13", "bin", "nvdisasm")).is_file()),
        None,
    )
    if program is None:
        raise ImportError("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [str(program), "-c", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops(text: str) -> list[list[str]]:
    """The instructions of every loop: from the target of a backward branch to the branch."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            instructions.append(_PREDICATE.sub("", match[1]))
    found = []
    for end, instruction in enumerate(instructions):
        branch = _BRANCH.search(instruction)
        if branch and labels.get(branch[1], end) < end:
            found.append(instructions[labels[branch[1]] : end + 1])
    return found


def instructions(text: str) -> list[str]:
    """All instructions, without their predicates."""
    found = (_INSTRUCTION.match(line) for line in text.splitlines())
    return [_PREDICATE.sub("", match[1]) for match in found if match]


def opcode(instruction: str) -> str:
    """``FADD`` of ``FADD.FTZ R1, R2, |R3|``."""
    return re.split(r"[ .]", instruction, maxsplit=1)[0]


def inner_loop(text: str, arithmetic: tuple[str, ...]) -> tuple[list[str], Counter]:
    """The (shortest) loop with the most of some opcodes, and its opcode counts."""
    counted = [(loop, Counter(map(opcode, loop))) for loop in loops(text)]
    return max(counted, key=lambda c: (sum(c[1][op] for op in arithmetic), -len(c[0])))
