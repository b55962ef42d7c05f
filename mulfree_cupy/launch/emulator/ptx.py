"""Translation of inline PTX to C++: the few instructions that CUDA C++ lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OWN = "mulfree_emulator::ptx::"
_LANE, _BELOW = f"{_OWN}lane_bit()", f"{_OWN}lane_mask_below()"
_SPECIAL = {
    "laneid": "mulfree_lane()",
    "warpid": f"{_OWN}warp_in_block()",
    "nwarpid": f"{_OWN}warps_in_block()",
    "lanemask_eq": _LANE,
    "lanemask_lt": _BELOW,
    "lanemask_le": f"({_BELOW} | {_LANE})",
    "lanemask_gt": f"~({_BELOW} | {_LANE})",
    "lanemask_ge": f"~{_BELOW}",
    "smid": "0",
    "nsmid": "1",
    "clock": "(unsigned)clock64()",
    "clock64": "clock64()",
    "globaltimer": "clock64()",
    "dynamic_smem_size": "mulfree_dynamic_shared_size()",
} | {
    f"{register}.{axis}": f"{variable}.{axis}"
    for register, variable in (
        ("tid", "threadIdx"),
        ("ntid", "blockDim"),
        ("ctaid", "blockIdx"),
        ("nctaid", "gridDim"),
    )
    for axis in "xyz"
}
_MMA = r"mma\.sync\.aligned\.m16n8"
_ELEMENTS = {
    "f32.f16.f16.f32": "Shorts<mulfree_emulator::Half>",
    "f32.bf16.bf16.f32": "Shorts<mulfree_emulator::Bfloat>",
    "s32.s8.s8.s32": "Bytes<signed char, signed char>",
    "s32.u8.u8.s32": "Bytes<unsigned char, unsigned char>",
    "s32.b1.b1.s32.and.popc": "BitsAnd",
    "s32.b1.b1.s32.xor.popc": "BitsXor",
}
# How long k is where A has four registers, and two.
_K = {"f16": (16, 8), "bf16": (16, 8), "s8": (32, 16), "u8": (32, 16), "b1": (256, 128)}


def _matrix_instructions() -> Iterator[tuple[str, int, str]]:
    for types, elements in _ELEMENTS.items():
        whole, half = _K[types.split(".")[1]]
        name, call = types.replace(".", r"\."), f"{_OWN}mma<{_OWN}{elements}>"
        yield rf"{_MMA}k{whole}\.row\.col\.{name}", 14, f"{call}({{operands}})"
        of_half = "({0}, {1}, {2}, {3}, {4}, {5}, 0, 0, {6}, 0, {7}, {8}, {9}, {10})"
        yield rf"{_MMA}k{half}\.row\.col\.{name}", 11, call + of_half
    halves = rf"{_MMA}k16\.row\.col\.f16\.f16\.f16\.f16"
    yield halves, 10, f"{_OWN}mma_half({{operands}})"
    for n, words in ((1, "{0}"), (2, "{0}, {1}"), (4, "{0}, {1}, {2}, {3}")):
        for order, transposed in (("", "false"), (r"\.trans", "true")):
            # Texts have both orders, and NVIDIA's assembler takes both.
            shape = rf"(m8n8\.x{n}{order}|x{n}{order}\.m8n8)"
            load = rf"ldmatrix\.sync\.aligned\.{shape}\.shared(::cta)?\.b16"
            here = "__builtin_FILE(), __builtin_LINE()"
            yield load, n + 1, f"{_OWN}load_matrices<{transposed}>({here}, {{{n}}}, {words})"


# An instruction, the number of its operands (of a list each one counts), and what it is in C++.
_INSTRUCTIONS = [
    (r"mov\.[busf](16|32|64)|cvt\.u(32\.u64|64\.u32)", 2, f"{_OWN}move({{0}}, {{1}})"),
    (r"cvta\.to\.shared\.u64", 2, f"{_OWN}move({{0}}, __cvta_generic_to_shared((void *){{1}}))"),
    (r"cvta\.to\.global\.u64", 2, f"{_OWN}move({{0}}, {{1}})"),
    (r"setp\.ne\.[bus]32", 3, "{0} = {1} != {2}"),
    (r"setp\.eq\.[bus]32", 3, "{0} = {1} == {2}"),
    (
        r"cp\.async\.(ca|cg)\.shared(::cta)?\.global(\.L2::\d+B)?",
        3,
        f"{_OWN}copy({{0}}, {{1}}, {{2}})",
    ),
    (
        r"cp\.async\.(ca|cg)\.shared(::cta)?\.global(\.L2::\d+B)?",
        4,
        f"{_OWN}copy({{0}}, {{1}}, {{2}}, {{3}})",
    ),
    (r"cp\.async\.(commit_group|wait_all)", 0, ""),
    (r"cp\.async\.wait_group", 1, ""),
    (r"membar\.cta|fence\.(acq_rel|sc)\.cta", 0, "__threadfence_block()"),
    (r"membar\.(gl|sys)|fence\.(acq_rel|sc)\.(gpu|sys)", 0, "__threadfence()"),
    (r"bar\.warp\.sync", 1, "__syncwarp({0})"),
    (r"ex2\.approx(\.ftz)?\.f32", 2, "{0} = exp2f({1})"),
    (r"lg2\.approx(\.ftz)?\.f32", 2, "{0} = log2f({1})"),
    (r"rcp\.approx(\.ftz)?\.f32", 2, "{0} = 1.0f / {1}"),
    (r"rsqrt\.approx(\.ftz)?\.f32", 2, "{0} = rsqrtf({1})"),
    (r"sqrt\.approx(\.ftz)?\.f32", 2, "{0} = sqrtf({1})"),
    (r"tanh\.approx\.f32", 2, "{0} = tanhf({1})"),
    *_matrix_instructions(),
]
_TYPES = {"pred": "bool", "f32": "float", "f64": "double"} | {
    f"{kind}{bits}": f"uint{bits}_t" for kind in "bus" for bits in (16, 32, 64)
}
_LITERAL = re.compile(r'R"([^()\\\s]*)\((.*?)\)\1"|"((?:[^"\\\n]|\\.)*)"', re.DOTALL)
_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")


class UnknownInstruction(Exception):
    """An instruction, or an operand of it, that is not in the tables; the argument names it."""


def statement(text: str, blank: str) -> str:
    """Translate the operands of an ``asm`` to a C++ statement.

    Parameters
    ----------
    text, blank : str
        The source, and the same with the insides of strings blanked out.

    Returns
    -------
    str

    Raises
    ------
    UnknownInstruction
        If it contains an unsupported instruction.
    """
    start, *operands = _split(text, blank, ":")
    assembly = "".join(raw or _unescaped(plain) for _, raw, plain in _LITERAL.findall(start))
    declarations = []
    for is_output, group in zip((True, False), operands, strict=False):
        for operand in _split(group, _blanked(group), ","):
            if operand.strip():
                kind = "auto &" if is_output else "const auto "
                value = operand[_blanked(operand).index("(") :]
                declarations.append(f"{kind}mulfree_{len(declarations)} = {value};")
    return f"do {{ {' '.join(declarations)} {_instructions(assembly)} }} while (0)"


def _instructions(assembly: str) -> str:
    plain = re.sub(r"//[^\n]*|/\*.*?\*/", " ", assembly, flags=re.DOTALL).strip()
    if plain.startswith("{") and plain.endswith("}"):
        plain = plain[1:-1]
    out, registers = [], set()
    for row in filter(None, map(str.strip, plain.split(";"))):
        if declared := re.fullmatch(r"\.reg\s*\.(\w+)\s+([\w$%,\s]+)", row):
            names = [name.strip() for name in declared[2].split(",")]
            if declared[1] not in _TYPES or not all(
                re.fullmatch(r"[A-Za-z_]\w*", n) for n in names
            ):
                raise UnknownInstruction(f".reg .{declared[1]}")
            registers.update(names)
            out.append(f"{_TYPES[declared[1]]} {', '.join(f'ptx_{name}' for name in names)};")
            continue
        condition, opcode, rest = re.fullmatch(
            r"(?:@(!?\w+)\s+)?(\S+)\s*(.*)", row, re.DOTALL
        ).groups()
        guard = ""
        try:
            if condition:
                holds = _operand(condition.lstrip("!"), registers)
                guard = f"if ({holds} == {'false' if condition[0] == '!' else 'true'}) "
            out.append(f"{guard}{{ {_instruction(opcode, _split(rest, rest, ','), registers)}; }}")
        except LookupError as error:
            raise UnknownInstruction(opcode) from error
    return " ".join(out)


def _instruction(opcode: str, operands: list[str], registers: set[str]) -> str:
    lists = [o.strip().removeprefix("{").removesuffix("}").split(",") for o in operands]
    operands = [o.strip() for row in lists for o in row if o.strip()]
    if re.fullmatch(r"bar(rier)?\.sync(\.aligned)?", opcode) and operands == ["0"]:
        return "__syncthreads()"
    for pattern, count, cpp in _INSTRUCTIONS:
        if count == len(operands) and re.fullmatch(pattern, opcode):
            values = [_operand(o, registers) for o in operands]
            return cpp.format(*values, operands=", ".join(values))
    raise LookupError(opcode)


def _operand(text: str, registers: set[str]) -> str:
    if found := re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(\d+)\s*)?\]", text):
        base = _operand(found[1], registers)
        return f"((size_t){base} + {found[2]})" if found[2] else base
    if re.fullmatch(r"%\d+", text):
        return f"mulfree_{text[1:]}"
    if text.startswith("%") and text.lstrip("%") in _SPECIAL:
        return _SPECIAL[text.lstrip("%")]
    if text in registers:
        return f"ptx_{text}"
    if _INTEGER.fullmatch(text):
        return text
    raise LookupError(text)


def _split(text: str, blank: str, separator: str) -> list[str]:
    """Split at separators outside of all brackets."""
    pieces, depth, start = [], 0, 0
    for i, c in enumerate(blank):
        depth += (c in "([{") - (c in ")]}")
        if c == separator and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    return [*pieces, text[start:]]


def _blanked(text: str) -> str:
    return _LITERAL.sub(lambda m: '"' + " " * (len(m[0]) - 2) + '"', text)


def _unescaped(text: str) -> str:
    """A string literal's text, as far as PTX has use for escapes."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)
