"""The CUDA sources seen by NVIDIA's compiler, on a machine without a GPU."""

import re

import pytest

from mulfree_cupy.launch import source
from mulfree_cupy.report import resources, sass

pytest.importorskip("cuda.core", reason="needs the extra 'static': pip install .[static]")

LOOKED_INTO = ("sm_75", "sm_90", "sm_120")
FORWARD = re.compile(r"adder/\d_|shift/fused_adder")
FLOAT_MULTIPLY = {"FMUL", "FFMA", "DMUL", "DFMA", "HMUL2", "HFMA2", "FMUL2", "FFMA2"}
MATRIX_MULTIPLY = re.compile(r"[A-Z]*MMA\b")
ADDS = ("FADD", "DADD", "VABSDIFF4")
HALF_ADDS = ("HADD2", "HFMA2")


@pytest.fixture(scope="module")
def rows():
    """Every tile for one architecture, the first of every file and type for all."""
    variants = resources.variants()
    firsts = {(v.path, dict(v.defines).get("T")): v for v in reversed(variants)}.values()
    others = [a for a in resources.ARCHITECTURES if a != "sm_90"]
    return resources.compile_all(["sm_90"], variants) + resources.compile_all(others, firsts)


def test_variants_cover_every_file():
    rooms = (
        "adder", "batch", "batch_norm", "binary", "convolution", "cross_entropy", "sgd", "shift",
        "winograd",
    )  # fmt: skip
    assert {v.path for v in resources.variants()} == {
        k.path for k in source.kernels() if k.operation in rooms
    }


# Bytes that some tiles spill all the same, other bounds of threads making it worse or no better.
KNOWN_SPILLS = {
    ("adder/sign_grad_w.cu", "double", 16, 64): (28, ("sm_75", "sm_80", "sm_86", "sm_89")),
    ("adder/distance_uint8.cu", None, 16, 256): (72, ("sm_120",)),
    ("adder/grad_w.cu", "float", 32, 144): (24, ("sm_120",)),
    ("adder/grad_w.cu", "float", 16, 144): (48, ("sm_120",)),
}


def test_no_warning_and_no_spill(rows):
    assert_clean(rows)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_no_warning_and_no_spill_of_any_tile(architecture):
    assert_clean(resources.compile_all([architecture]))


def assert_clean(rows):
    assert [(r.variant, r.architecture, r.warnings) for r in rows if r.warnings] == []
    spilled = [(r.variant, r.architecture, r.spills) for r in rows if r.spills > known_spill(r)]
    assert spilled == []


def known_spill(row):
    defines = dict(row.variant.defines)
    tile = (row.variant.path, *(defines.get(name) for name in ("T", "F", "P")))
    size, architectures = KNOWN_SPILLS.get(tile, (0, ()))
    return size if row.architecture in architectures else 0


def test_every_kernel_can_be_resident(rows):
    assert all(row.occupancy > 0 for row in rows)


def multiplies(instruction):
    """Is this a floating-point multiplication, rather than a constant moved by its pipe?"""
    opcode = sass.opcode(instruction)
    if MATRIX_MULTIPLY.match(opcode):
        return True
    # HFMA2 R1, -RZ, RZ, a, b is how the compiler writes two 16-bit constants: 0 * 0 + (a, b), and
    # HFMA2 R1, R2, 1, 1, |R3| an addition of two halves each, on another pipe than HADD2's.
    return opcode in FLOAT_MULTIPLY and not re.search(r"-?RZ, -?RZ,|, 1, 1, ", instruction)


@pytest.mark.parametrize("architecture", LOOKED_INTO)
def test_inner_loops_of_the_forward_add_and_never_multiply(rows, architecture):
    seen = set()
    for row in rows:
        v = row.variant
        if row.architecture != architecture or not FORWARD.match(v.path) or v.path in seen:
            continue
        seen.add(v.path)
        adds = HALF_ADDS if v.path == "adder/7_half2.cu" else ADDS
        loop, counts = sass.inner_loop(sass.disassemble(row.cubin), adds)
        assert [i for i in loop if multiplies(i)] == [], v
        if v.path in ("adder/6_uint8.cu", "adder/7_half2.cu"):
            continue
        add = "DADD" if dict(v.defines)["T"] == "double" else "FADD"
        absolute = sum(sass.opcode(i) == add and "|" in i for i in loop)
        assert counts[add] == 2 * absolute > 0, v


def test_uint8_is_one_instruction_for_four_taps(rows):
    for row in rows:
        v = row.variant
        if v.path != "adder/6_uint8.cu" or row.architecture == "sm_120":
            continue
        defines = dict(v.defines)
        loop, counts = sass.inner_loop(sass.disassemble(row.cubin), ADDS)
        assert all(".ACC" in i for i in loop if sass.opcode(i) == "VABSDIFF4")
        words = defines["DEPTH"] * defines["EACH_F"] * defines["EACH_P"]
        assert counts["VABSDIFF4"] == words, row.architecture


# Instructions a term of 7_half2's inner loop on sm_90; the limit is 1, two for a word of two terms.
MOST_A_HALF_TERM = {
    (128, 64, 8, 8): 1.26,
    (64, 128, 8, 8): 1.26,
    (32, 256, 8, 8): 1.30,
    (16, 256, 8, 4): 1.45,
    (64, 64, 8, 4): 1.34,
}


def test_halves_take_two_packed_additions_for_two_terms(rows):
    seen = set()
    for row in rows:
        d = dict(row.variant.defines)
        if row.variant.path != "adder/7_half2.cu":
            continue
        tile = d["F"], d["P"], d["EACH_F"], d["EACH_P"]
        terms = 2 * d["DEPTH"] * d["EACH_F"] * d["EACH_P"]
        loop, _ = sass.inner_loop(sass.disassemble(row.cubin), HALF_ADDS)
        added = [i for i in loop if sass.opcode(i) in HALF_ADDS and "RZ, RZ," not in i]
        to_float = sum(".F32" in i for i in added)
        absolute = sum("|" in i for i in added)
        assert len(added) - to_float == terms == 2 * absolute, (tile, row.architecture)
        assert to_float * d["DEPTH"] == terms
        if row.architecture == "sm_90" and tile in MOST_A_HALF_TERM:
            assert len(loop) / terms <= MOST_A_HALF_TERM[tile], tile
            # Half of them on either pipe.
            assert abs(sum(".MMA" in i for i in added) / terms - 0.5) < 0.01, tile
            assert row.occupancy * 64 >= 8, tile  # warps, to hide latencies
            seen.add(tile)
    assert seen == MOST_A_HALF_TERM.keys()


# Instructions a float32 term of 5_implicit_conv's inner loop on sm_90; the limit is 2.
MOST_A_TERM = {
    (128, 128, 16, 8): 2.20,
    (64, 256, 16, 8): 2.22,
    (64, 128, 8, 8): 2.32,
    (32, 256, 8, 8): 2.41,
    (16, 256, 16, 8): 2.56,  # 78 % of the limit
    (64, 64, 8, 4): 2.51,
}


def test_instructions_a_term_are_those_of_the_docs(rows):
    seen = set()
    for row in rows:
        d = dict(row.variant.defines)
        if row.variant.path != "adder/5_implicit_conv.cu" or row.architecture != "sm_90":
            continue
        tile = d["F"], d["P"], d["EACH_F"], d["EACH_P"]
        if d["T"] != "float" or tile not in MOST_A_TERM:
            continue
        loop, counts = sass.inner_loop(sass.disassemble(row.cubin), ADDS)
        terms = d["DEPTH"] * d["EACH_F"] * d["EACH_P"]
        assert counts["FADD"] == 2 * terms
        assert len(loop) / terms <= MOST_A_TERM[tile], tile
        assert row.occupancy * 64 >= 8, tile  # warps, to hide latencies
        seen.add(tile)
    assert seen == MOST_A_TERM.keys()


def binary_rows(rows, name, architectures):
    return [
        (r, dict(r.variant.defines), *sass.inner_loop(sass.disassemble(r.cubin), ("BMMA", "POPC")))
        for r in rows
        if r.variant.path == f"binary/{name}.cu" and r.architecture in architectures
    ]


def test_the_register_tile_counts_each_word_once(rows):
    """At most: an exclusive or, a POPC and half an addition for 32 terms."""
    found = binary_rows(rows, "2_register_tile", resources.ARCHITECTURES)
    for row, d, loop, counts in found:
        words = d["DEPTH"] * d["EACH_F"] * d["EACH_P"]
        assert counts["POPC"] == words, row.variant
        if row.architecture == "sm_90" and d["F"] == 64:
            assert len(loop) / words <= 3.2, row.variant
    assert found


# Instructions of the loop of 3_tensor_cores on sm_90, by a word's type and F / 16. About 80 of them
# decode the taps of 32 words, and run once in as many.
MOST_A_STEP = {("unsigned long long", 4): 195, ("unsigned long long", 2): 185,
               ("unsigned long long", 1): 180, ("unsigned int", 4): 240,
               ("unsigned short", 4): 260, ("unsigned char", 4): 390}  # fmt: skip


def test_tensor_cores_multiply_bits_where_they_can(rows):
    seen = set()
    for row, d, loop, counts in binary_rows(rows, "3_tensor_cores", ("sm_80", "sm_90")):
        products = [i for i in loop if sass.opcode(i) == "BMMA"]
        assert len(products) == 4 * d["TILES"], (row.variant, row.architecture)
        assert all(i.startswith("BMMA.168256.AND.POPC") for i in products)
        assert counts["POPC"] == 8  # the ones of a pixel's 256 bits
        key = d["T"], d["TILES"]
        if row.architecture == "sm_90" and key in MOST_A_STEP:
            assert len(loop) <= MOST_A_STEP[key], (key, len(loop))
            assert row.occupancy * 64 >= 16, key
            seen.add(key)
    assert seen == MOST_A_STEP.keys()


def test_tensor_cores_have_no_such_product_elsewhere(rows):
    for architecture, opcode in (("sm_75", None), ("sm_100", "IMMA"), ("sm_120", "IMMA")):
        for row, *_ in binary_rows(rows, "3_tensor_cores", (architecture,)):
            found = {sass.opcode(i) for i in sass.instructions(sass.disassemble(row.cubin))}
            assert {o for o in found if o.endswith("MMA")} == ({opcode} if opcode else set())


def test_packing_signs_leaves_memory_the_bottleneck(rows):
    """An H100 issues 35 instructions of a thread while it reads 4 bytes."""
    (row,) = (
        r
        for r in rows
        if (r.variant.path, r.architecture) == ("binary/pack.cu", "sm_90")
        and dict(r.variant.defines).items()
        >= {"T": "unsigned int", "WORD": "unsigned long long", "PIXELS": 4}.items()
    )
    text = sass.instructions(sass.disassemble(row.cubin))
    assert sum(sass.opcode(i) != "NOP" for i in text) <= 64 * 4 * 10
    loads = [i for i in text if i.startswith("LDG")]
    assert len(loads) == 64 and all(".128" in i for i in loads)


@pytest.mark.parametrize(
    "path, most", [("adder/depthwise.cu", 58), ("convolution/depthwise.cu", 48)]
)
def test_depthwise_leaves_memory_the_bottleneck(rows, path, most):
    """An H100 issues 71 instructions of a thread while it moves the 8 bytes of an output."""
    (row,) = (
        r
        for r in rows
        if (r.variant.path, r.architecture) == (path, "sm_90")
        and {"T": "float", "KERNEL_H": 3, "STRIDE_H": 1}.items() <= dict(r.variant.defines).items()
    )
    issued = [i for i in sass.instructions(sass.disassemble(row.cubin)) if sass.opcode(i) != "NOP"]
    assert len(issued) <= most * dict(row.variant.defines)["ROWS"]
    assert any(map(multiplies, issued)) == path.startswith("convolution")
    assert row.occupancy >= 0.75


def test_the_shifts_move_bits_and_store_16_bytes_at_once(rows):
    arithmetic = re.compile(r"[DFH](ADD|MUL|FMA|SETP|MNMX)|MUFU|[FI]2[FI]")
    seen = set()
    for row in rows:
        v = row.variant
        if v.path not in ("shift/3_table.cu", "shift/strided.cu"):
            continue
        instructions = sass.instructions(sass.disassemble(row.cubin))
        found = filter(arithmetic.match, instructions)
        assert not any(multiplies(i) or sass.opcode(i) not in FLOAT_MULTIPLY for i in found), v
        assert any(re.match(r"STG\.E\.128(\.SYS)? ", i) for i in instructions), v
        seen.add((v.path, dict(v.defines)["T"], row.architecture))
    assert len(seen) == 2 * 5 * len(resources.ARCHITECTURES)


# Instructions that a thread of shift/3_table issues for its 16 bytes, all in one row of a plane.
STORED = {"unsigned char": 165, "unsigned short": 165, "unsigned int": 125,
          "unsigned long long": 125, "ulonglong2": 120}  # fmt: skip


@pytest.mark.parametrize("element", STORED)
def test_the_table_kernel_leaves_memory_the_bottleneck(rows, element):
    """An H100 issues 29.7 T instructions of a thread a second and moves 3.35 TB: 283 for 32 bytes.

    A second row costs one more pass of the innermost loop, a second plane one of the outer.
    """
    (row,) = (
        r
        for r in rows
        if r.variant.path == "shift/3_table.cu"
        and r.architecture == "sm_90"
        and dict(r.variant.defines)["T"] == element
    )
    text = sass.disassemble(row.cubin)
    issued = [i for i in sass.instructions(text) if sass.opcode(i) != "NOP"]
    another_row, another_plane = sorted(map(len, sass.loops(text)))
    assert another_row <= 16 and another_plane <= 120
    assert len(issued) <= STORED[element]
    assert len(issued) + another_row < 283 * 0.65


def test_the_loop_of_im2col_divides_nothing(rows):
    """Of four elements: an H100 issues 35 instructions while it stores 4 bytes."""
    seen = set()
    for row in rows:
        if (row.variant.path, row.architecture) != ("convolution/im2col.cu", "sm_90"):
            continue
        taps, *outer = sorted(sass.loops(sass.disassemble(row.cubin)), key=len)
        assert len(taps) <= 65, row.variant
        assert all(sass.opcode(i) not in ("MUFU", "CALL") for loop in outer for i in loop)
        seen.add(row.variant.defines)
    assert len(seen) == 3 * 2 + 2


def test_the_gradient_through_a_shift_decodes_its_pixels_once(rows):
    """Of 64 filters, in 8 steps: the sums take longer than storing them, 64 a thread."""
    (row,) = (
        r
        for r in rows
        if (r.variant.path, r.architecture) == ("shift/fused_grad_x.cu", "sm_90")
        and dict(r.variant.defines)["T"] == "float"
        and dict(r.variant.defines)["EACH_P"] == 8
    )
    text = sass.disassemble(row.cubin)
    loop = len(max(sass.loops(text), key=len))
    once = sum(sass.opcode(i) != "NOP" for i in sass.instructions(text)) - loop
    assert once < 0.65 * 8 * loop


def test_batch_norm_moves_16_bytes_at_a_time(rows):
    """All but the few numbers of a channel and of a part: mean, variance, weight and bias."""
    for row in rows:
        defines = dict(row.variant.defines)
        if not row.variant.path.startswith("batch_norm/") or defines["VECTOR"] == 1:
            continue
        found = [i for i in sass.instructions(sass.disassemble(row.cubin)) if "G.E" in i]
        narrow = [i for i in found if i.startswith(("LDG", "STG")) and ".128" not in i]
        assert len(narrow) <= 12, (row.variant, row.architecture)
        assert len(found) > len(narrow), row.variant


def test_the_small_winograd_transforms_add_and_never_multiply(rows):
    """32 additions a tile into the Winograd domain; out of it 24, and the bias of 4 outputs."""
    adds = {"winograd/1_input_transform.cu": 32, "winograd/1_output_transform.cu": 28}
    seen = set()
    for row in rows:
        v = row.variant
        defines = dict(v.defines)
        if v.path not in adds or (defines["TILE"], defines["T"]) != (4, "float"):
            continue
        if (defines["SIDE"] == 2) != ("output" in v.path):
            continue  # the gradient's
        loop, counts = sass.inner_loop(sass.disassemble(row.cubin), ("FADD",))
        assert [i for i in loop if multiplies(i)] == [], (v, row.architecture)
        assert counts["FADD"] == adds[v.path], (v, row.architecture)
        seen.add((v.path, row.architecture))
    assert len(seen) >= len(adds) * len(LOOKED_INTO)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("FFMA.FTZ R1, R2, R3, R4", True),
        ("HFMA2.MMA R11, -RZ, RZ, 0, 0", False),
        ("HFMA2.MMA R7, R0.reuse, 1, 1, |R7|", False),
        ("HFMA2 R7, R0, 2, 1, R7", True),
        ("HMUL2 R1, R2, R3", True),
        ("IMAD.WIDE R2, R9, 0x4, R4", False),
        ("HMMA.16816.F32 R4, R8, R2, R4", True),
        ("FADD R1, R2, |R3|", False),
    ],
)
def test_what_counts_as_a_multiplication(text, expected):
    assert multiplies(text) is expected


def test_an_unknown_architecture_is_an_error():
    with pytest.raises(ValueError, match=r"print_table: architectures must be among sm_75.*sm_60"):
        resources.print_table(["sm_60"])
