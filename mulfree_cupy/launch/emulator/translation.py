"""Translation of CUDA to C++: the few things that a header cannot express.

The source is preprocessed first, with the emulator's headers, so that macros and ``#ifdef`` are
resolved. Then ``__shared__`` declarations and three function attributes are rewritten, and
unsupported features become calls that the linker reports as undefined if they are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mulfree_cupy.launch.emulator import ptx

_LINE_MARKER = re.compile(r'# (\d+) "((?:[^"\\]|\\.)*)"((?: \d)*)$')
# Numbers come first, for the sake of 1'000.
_STRING = re.compile(
    r"(?<!\w)\.?\d(?:'?[\w.])*"
    r'|(?<!\w)R"([^()\\\s]*)\((?:.|\n)*?\)\1"'
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'(?:[^'\\\n]|\\.)*'"
)
_ATTRIBUTES = {
    "__global__": "__attribute__((noinline))",
    "__noinline__": "__attribute__((noinline))",
    "__forceinline__": "__attribute__((always_inline)) inline",
    "__inline_hint__": "inline",
    "__constant__": "__attribute__((used))",  # the host may fill it
}
_INLINE_TWICE = re.compile(
    r"\b(?:__forceinline__\s+(?:static\s+)?inline|inline\s+__forceinline__)\b"
)
_DECLARATOR = re.compile(r"([*\s]*)\b(\w+)\s*((?:\[[^\]]*\]\s*)*)$")
_ALIGNMENT = re.compile(
    r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)|alignas\s*(\((?:[^()]|\([^()]*\))*\))"
)

_NOT_A_NAME = ("__attribute__", "alignas", "decltype")  # before the parenthesis of a function

# Unsupported features: patterns of source text and of linker errors for what refused.h declares.
_REFUSED = [
    (r"\bbmma_sync\b", "tensor-core fragments of bits"),
    (r"\bCUtensorMap\b|\bcuda\s*::\s*ptx\b", "the tensor memory accelerator"),
    (r"\btex[123]D\w*|\bsurf[123]D\w*|\btexture\s*<", "textures and surfaces"),
    (r"\b__nv_fp8\w*|\b__nv_cvt_\w*fp8\w*", "floating point of 8 bits"),
    (r"\bthis_cluster\b|\bcluster_group\b", "thread block clusters"),
    (r"<<<|mulfree_refused_launch", "a kernel launch inside a kernel"),
]
_ASM = re.compile(r"\b(?:asm|__asm__|__asm)\b(?:\s*(?:volatile|__volatile__))?\s*\(")


def refusal(words: str) -> str | None:
    """The unsupported feature in a text, or None."""
    return next((what for pattern, what in _REFUSED if re.search(pattern, words)), None)


@dataclass(frozen=True)
class Translation:
    """C++ text, and names in it as far as they can be read."""

    text: str
    parameters: tuple[str, ...]  # of the kernel
    constants: tuple[str, ...]  # the __constant__ variables
    refused: dict[tuple[str, int], str]  # by file and line, what the emulator does not run


def translate(preprocessed: str, name: str | None, headers: tuple[str, ...]) -> Translation:
    """The C++ text of a preprocessed CUDA text.

    Parameters
    ----------
    preprocessed : str
        What ``g++ -E`` wrote, with its line markers.
    name : str
        The kernel, perhaps with template arguments: ``"scale<float, 4>"``. None: no kernel is asked
        for.
    headers : tuple of str
        The folders of the emulator's headers; what comes from there is left alone.

    Raises
    ------
    ValueError
        If the text has no such kernel.
    """
    parts, code, refused = [], [], {}
    for is_user, file, line, text in _segments(preprocessed, headers):
        if is_user:
            blank = _blank(text)
            for pattern, what in _REFUSED:
                for found in re.finditer(pattern, blank):
                    refused[file, _line_at(blank, found.start(), line)] = what
            code.append(blank)
            text = _rewrite(text, blank, file, line, refused)
        parts.append(text)
    whole = "".join(code)
    parameters = () if name is None else _parameters(whole, name)
    return Translation("".join(parts), parameters, _constants(whole), refused)


def _segments(preprocessed: str, headers: tuple[str, ...]):
    """Runs of lines of one file: (whether the user's, file, first line, text)."""
    is_user, file, line, lines, user_files = False, "", 1, [], set()
    for row in preprocessed.splitlines(keepends=True):
        marker = _LINE_MARKER.match(row.rstrip("\n"))
        if not marker:
            lines.append(row)
            continue
        if lines:
            yield is_user, file, line, "".join(lines)
        lines = []
        yield False, "", 0, row
        line, file = int(marker[1]), marker[2]
        # Flag 3 marks system headers, and also a user's line where a macro of theirs is expanded.
        if "3" not in marker[3].split() and not file.startswith((*headers, "<")):
            user_files.add(file)
        is_user = file in user_files
    if lines:
        yield is_user, file, line, "".join(lines)


def _blank(text: str) -> str:
    """The text with the insides of strings and pragmas blanked out, in the same length."""

    def blank(m: re.Match[str]) -> str:
        if m[0][0] not in "\"'R":
            return m[0]
        return '"' + re.sub(r"[^\n]", " ", m[0][1:-1]) + '"'

    text = _STRING.sub(blank, text)
    return re.sub(r"^[ \t]*#.*$", lambda m: " " * (len(m[0]) - 1) + ";", text, flags=re.MULTILINE)


def _line_at(text: str, position: int, first: int) -> int:
    return first + text.count("\n", 0, position)


def _rewrite(
    text: str, blank: str, file: str, line: int, refused: dict[tuple[str, int], str]
) -> str:
    out, end = [], 0
    for found in re.finditer(r"\b__shared__\b|<<<|" + _ASM.pattern, blank):
        if found.start() < end:
            continue  # a second __shared__ in one declaration
        start = found.start()
        if found[0] == "__shared__":
            start = max((blank.rfind(c, end, start) for c in ";{}"), default=-1) + 1
            start = max(start, end)
            start = re.compile(r"\s*").match(blank, start).end()  # a pragma keeps its line
            stop = _end_of_statement(blank, found.end())
            place = f'"{file}", {_line_at(blank, found.start(), line)}'
            new = _shared(blank[start:stop], place)
            stop += 1
        elif found[0] == "<<<":
            stop = blank.find(">>>", start) + 3
            new = ", mulfree_refused_launch "
        else:
            stop = _closing(blank, found.end()) + 1
            inside = slice(found.end(), stop - 1)
            try:
                new = ptx.statement(text[inside], blank[inside]).replace("\n", " ")
            except ptx.UnknownInstruction as unknown:
                new = "mulfree_refused_ptx()"
                refused[file, _line_at(blank, start, line)] = f"inline PTX with {unknown}"
        if found[0] != "__shared__":
            new += "\n" * blank.count("\n", start, stop)
        out += [_attributes(text[end:start]), new]
        end = stop
    out.append(_attributes(text[end:]))
    return "".join(out)


def _attributes(text: str) -> str:
    text = _INLINE_TWICE.sub("__forceinline__", text)
    for cuda, gnu in _ATTRIBUTES.items():
        text = re.sub(rf"\b{cuda}\b", gnu, text)
    return text


def _end_of_statement(blank: str, position: int) -> int:
    depth = 0
    for i in range(position, len(blank)):
        depth += (blank[i] in "({[") - (blank[i] in ")}]")
        if blank[i] == ";" and depth == 0:
            return i
    return len(blank)


def _shared(declaration: str, place: str) -> str:
    """Rewrite a ``__shared__`` declaration as references into the block's shared memory."""
    newlines = "\n" * declaration.count("\n")
    alignments = []

    def keep(attribute: re.Match[str]) -> str:
        if attribute[1]:
            alignments.append(f"__attribute__((aligned{attribute[1]}))")
        else:
            alignments.append(attribute[0])
        return " "

    words = re.sub(r"\b(?:__shared__|static)\b", " ", _ALIGNMENT.sub(keep, declaration))
    dynamic = re.search(r"\bextern\b", words)
    first, *others = _split(re.sub(r"\bextern\b", " ", words))
    match = _DECLARATOR.search(first)
    specifier = first[: match.start()].strip() if match else ""
    if not specifier:
        raise NotImplementedError(
            f"{place.replace(chr(34), '').replace(', ', ':')}: the emulator cannot read the "
            f"declaration '{' '.join(declaration.split())}'; "
            "declare one variable a line, by its type's name"
        )
    out = []
    for declarator in [match, *map(_DECLARATOR.search, others)]:
        stars, name, dims = declarator.groups()
        kind = f"mulfree_type_of_{name}"
        if dynamic:
            dims = dims.partition("]")[2]
            out.append(
                f"typedef {specifier} {' '.join(alignments)} {kind} {stars}{dims}; "
                f"{kind} *const {name} = ({kind} *)mulfree_dynamic_shared();"
            )
        else:
            slot = f"mulfree_place_of_{name}"
            out.append(
                f"typedef {specifier} {stars} {kind} {dims} {' '.join(alignments)}; "
                f"static mulfree_emulator::SharedVariable {slot} = "
                f'{{"{name}", {place}, sizeof({kind}), alignof({kind}), '
                f"mulfree_emulator::Shape::of<{kind}>(), 0, nullptr}}; "
                f"{kind} &{name} = *({kind} *)mulfree_shared(&{slot});"
            )
    return " ".join(out).replace("\n", " ") + newlines


def _split(text: str) -> list[str]:
    """Split at the commas outside of all brackets."""
    pieces, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    return [*pieces, text[start:]]


def _constants(code: str) -> tuple[str, ...]:
    """The names of the ``__constant__`` variables."""
    names = []
    for found in re.finditer(r"\b__constant__\b", code):
        declaration = _ALIGNMENT.sub(" ", code[found.end() : _end_of_statement(code, found.end())])
        for declarator in _split(declaration):
            before = re.split(r"[=\[{(]", declarator, maxsplit=1)[0]
            names += re.findall(r"\w+", before)[-1:]
    return tuple(names)


def _parameters(code: str, name: str) -> tuple[str, ...]:
    picked = overload(name)
    base = re.match(r"[\w:]*", picked or name)[0].rpartition("::")[2]
    kernels: dict[str, str] = {}
    for found in re.finditer(r"\b__global__\b", code):
        position = found.end()
        while header := re.compile(r"(\w+)\s*\(").search(code, position):
            position = _closing(code, header.end())
            if header[1] not in _NOT_A_NAME:
                kernels.setdefault(header[1], code[header.end() : position])
                break
    if base not in kernels:
        known = ", ".join(kernels) or "none"
        raise ValueError(f"no __global__ function named {base!r} in the text; there are: {known}")
    if picked:  # the compiler knows which one it is
        return ()
    pieces = [p.partition("=")[0].strip() for p in _split(kernels[base])]
    names = [re.search(r"(\w+)\s*(?:\[[^\]]*\]\s*)*$", p) for p in pieces if p and p != "void"]
    return tuple(n[1] if n else "" for n in names)


def overload(name: str) -> str | None:
    """The function of which a name expression picks an overload by a cast, or None."""
    cast = re.fullmatch(r"static_cast\s*<.*>\s*\(\s*&?\s*([\w:]+).*\)", name, re.DOTALL)
    return cast and cast[1]


def _closing(code: str, position: int) -> int:
    depth = 1
    while position < len(code) and depth:
        depth += (code[position] == "(") - (code[position] == ")")
        position += 1
    return position - 1
