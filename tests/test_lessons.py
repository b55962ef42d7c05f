"""The kernels one at a time: each on its case, traced, and as an exercise."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import rehearsal

from mulfree_cupy import cli, lessons
from mulfree_cupy.launch.source import cuda_directory, kernels
from mulfree_cupy.lessons.exercises import _stands_alone

EVERY = pytest.mark.parametrize("kernel", kernels(), ids=lambda k: f"{k.operation}/{k.name}")
SHARED_TILE = cuda_directory() / "adder/2_shared_tile.cu"


@EVERY
def test_every_kernel_is_launched_and_right_on_its_case(kernel):
    trial = lessons.attempt(kernel, check=True, trace=True)
    assert trial.passed and trial.own
    assert kernel.path in {launch.path for launch in trial.report.launches}
    assert trial.total.global_loads + trial.total.shared_loads > 0


@pytest.mark.gpu
@EVERY
def test_every_kernel_is_right_on_a_gpu(kernel):
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    trial = lessons.attempt(kernel, device="cuda")
    assert trial.outputs and (rehearsal.active() or trial.passed)  # which runs no kernel


def test_a_kernel_has_several_names():
    for name in ("adder/2_shared_tile", "adder/2", "adder 2", "cuda/adder/2_shared_tile.cu"):
        assert lessons.find(name).path == "adder/2_shared_tile.cu"
    assert lessons.find("winograd").name == "1_input_transform"
    assert lessons.find("shift/strided").rung == 0
    for name, message in (
        ("addr", "no operation called 'addr': did you mean 'adder'"),
        ("adder/9", "no kernel is called 'adder/9': there are adder/1_naive"),
        ("winograd/1", "2 kernels are called 'winograd/1': there are winograd/1_input_transform"),
    ):
        with pytest.raises(ValueError, match=message):
            lessons.find(name)


def test_a_trace_counts_what_the_idea_saves():
    answer = lessons.trace("adder/2")
    products, m, p, length = 3 * 2, 20, 10 * 14, 9 * 9  # one for each image and group
    counts = answer.trial.report.counts["adder_matmul"]
    rows, columns, steps = -(-m // 16) * 16, -(-p // 16) * 16, -(-length // 16)
    of_a, of_b = m * length * columns // 16, p * length * rows // 16
    assert counts.global_loads == products * (of_a + of_b)
    assert counts.shared_loads == products * 2 * rows * columns * steps * 16
    naive = answer.before.report.counts["adder_matmul"]
    assert naive.global_loads == products * 2 * m * p * length
    text = str(answer)
    assert "1_naive  2_shared_tile" in text and "cuda/adder/2_shared_tile.cu:31" in text
    assert repr(answer) == text
    assert lessons.trace("adder/1").before is None
    assert lessons.trace("winograd/3").before.kernel.name == "2_sparse"


@pytest.mark.parametrize(
    "kernel",
    [k for k in kernels() if k.rung and _stands_alone(k)],
    ids=lambda k: f"{k.operation}/{k.name}",
)
def test_an_exercise_is_solved_by_the_kernel_itself_alone(kernel, tmp_path):
    name = f"{kernel.operation}/{kernel.name}"
    file = lessons.exercise(name, tmp_path / "mine.cu")
    assert len(max(file.read_text().splitlines(), key=len)) < 200
    text = (cuda_directory() / kernel.path).read_text()
    opening = text[text.index("\n") : re.search(r"^(?!//)", text, re.MULTILINE).start()]
    assert opening in file.read_text()  # with the formula, and what the parameters are
    empty = lessons.check(file)
    assert not empty.solved and "numbers are wrong" in str(empty)
    verdict = lessons.check(cuda_directory() / kernel.path, name)
    assert verdict.solved and str(verdict).startswith("solved")


@pytest.mark.parametrize(
    "kernel", [k for k in kernels() if _stands_alone(k)], ids=lambda k: f"{k.operation}/{k.name}"
)
def test_an_exercise_says_what_its_parameters_are(kernel):
    """In the opening comment, but for what `shape` and the like have by their types."""
    text = (cuda_directory() / kernel.path).read_text()
    opening = text[: re.search(r"^(?!//)", text, re.MULTILINE).start()]
    bounds = r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)"
    declared = re.sub(rf"//.*|<[^>]*>|{bounds}", "", text[text.index("__global__") :])
    parameters = re.search(r"\(([^{]*?)\)\s*\{", declared)[1]
    for name in re.findall(r"(\w+)\s*(?:,|$)", parameters):
        assert re.search(rf"\b{name}\b", opening), name


def test_lines_behind_an_include_are_the_files_own(tmp_path, capsys):
    text = (cuda_directory() / "winograd/2_sparse.cu").read_text()
    assert '#include "' in text
    lines = text.splitlines()
    number = max(i for i, line in enumerate(lines, 1) if "values[e]" in line)
    file = tmp_path / "mine.cu"
    file.write_text(text.replace("values[e]", "values[e + 100000]"))
    (finding, *_) = lessons.check(file, "winograd/2").trial.report.findings
    assert (finding.kind, finding.line) == ("out_of_bounds", number)
    (tmp_path / "own.cuh").write_text("#define EVERY 1\n")
    file.write_text('#include "own.cuh"\n' + text.replace("values[e]", "values[e * EVERY]"))
    assert lessons.check(file, "winograd/2").solved
    file.write_text(text + '#include "nowhere.cuh"\n')
    with pytest.raises(FileNotFoundError, match=rf"mine.cu:{len(lines) + 1}: there is no header"):
        lessons.check(file, "winograd/2")


def test_other_parameters_are_no_traceback(tmp_path, capsys):
    file = tmp_path / "mine.cu"
    file.write_text(SHARED_TILE.read_text().replace("int a_batch)", "int a_batch, int more)"))
    assert cli.main(["kernels", "check", str(file), "--as", "adder", "2"]) == 1
    assert re.search(r"mulfree: .*mine.cu: .* takes 8 arguments", capsys.readouterr().err)


def test_what_is_right_but_not_the_idea_is_told(tmp_path):
    verdict = lessons.check(cuda_directory() / "adder/1_naive.cu", "adder/2")
    assert verdict.trial.passed and not verdict.solved
    assert "right, but it takes more than the kernel: global loads per output 166 for 16.9" in str(
        verdict
    )


@pytest.mark.parametrize(
    ("given", "instead", "kind", "line"),
    [
        ("    __syncthreads();\n#pragma", "\n#pragma", "race", 35),
        ("a_column < L ?", "a_column <= L ?", "out_of_bounds", 31),
        ("T a_tile[TILE][TILE]", "T a_tile[TILE][TILE - 1]", "out_of_row", 31),
        ("a_tile[ty][tx] = m", "if (tx) a_tile[ty][tx] = m", "uninitialised", 35),
        ("    __syncthreads();\n#pragma", "    if (ty) __syncthreads();\n#pragma", None, None),
    ],
)
def test_a_fault_is_found_on_its_line(given, instead, kind, line, tmp_path):
    text = SHARED_TILE.read_text()
    assert given in text
    file = tmp_path / "mine.cu"
    file.write_text(text.replace(given, instead, 1))
    verdict = lessons.check(file, "adder/2")
    assert not verdict.solved
    if kind:
        found = [f for f in verdict.trial.report.findings if f.kind == kind]
        assert any(f.line == line and f.file == str(file) for f in found), str(verdict)
    assert "mine.cu" in str(verdict)


@pytest.mark.parametrize(
    ("name", "given", "instead"),
    [
        ("adder/1", " % a_batch", ""),
        ("adder/2", "p < P && b_row", "b_row"),
        ("adder/2", "m < M && p < P", "m < M"),
        ("adder/4", "first_p + p < P && ", ""),
        ("adder/5", "if (p >= pixels) continue;", ""),
        ("adder/pack_channels", "n += gridDim.z", "n += 1000"),
        ("binary/ones", "c < length", "c < 1"),
        ("binary/fragments", "at >= (long long)groups * tiles * steps * 128", "false"),
        ("convolution/im2col", "column >= count", "false"),
        ("convolution/col2im", " || ow >= out.w", ""),
        ("shift/1", "t += gridDim.x", "t += tiles"),
        ("shift/1", "column >= halo && ", ""),
        ("shift/1", "if (c < shifted)", "if (true)"),
        ("shift/1", "    }\n    __syncthreads();", "    }"),
        ("shift/3", "start >= planes.total", "false"),
        ("shift/strided", "start + i < total ? x", "true ? x"),
        ("winograd/1_input_transform", "tile < tiles.count && ", ""),
        ("winograd/2", "k += gridDim.y", "k += 1000"),
    ],
)
def test_what_is_left_out_is_told(name, given, instead, tmp_path):
    """Every check, tail, halo and loop counts on a kernel's case."""
    text = (cuda_directory() / lessons.find(name).path).read_text()
    assert given in text
    file = tmp_path / "mine.cu"
    file.write_text(text.replace(given, instead))
    assert not lessons.check(file, name).solved


def test_an_earlier_answer_is_not_taken_for_one(tmp_path):
    """Unwritten output is wrong, even if memory holds a right earlier result."""
    text = SHARED_TILE.read_text()
    (tmp_path / "mine.cu").write_text(text.replace("if (m < M && p < P) out", "if (m < 0) out"))
    plain = np.empty
    for _ in range(3):
        assert lessons.attempt(lessons.find("adder/2")).passed
        trial = lessons.attempt(lessons.find("adder/2"), file=tmp_path / "mine.cu")
        assert "16800 of 16800 numbers are wrong" in trial.wrong
    assert np.empty is plain


def test_commands(tmp_path, monkeypatch, capsys):
    def run(*words):
        status = cli.main(["kernels", *words])
        return status, capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    status, printed = run("show", "adder", "2")
    assert (status, printed.out) == (0, SHARED_TILE.read_text())
    status, printed = run("run", "adder", "2")
    assert status == 0 and "16800 numbers right, largest relative error 0.0e+00" in printed.out
    status, printed = run("trace", "adder", "2")
    assert status == 0 and "global loads per output" in printed.out
    status, printed = run("exercise", "adder", "2")
    assert (status, printed.out.split(":")[0]) == (0, "adder_2_shared_tile.cu")
    status, printed = run("exercise", "adder", "2")
    assert status == 1 and "is there already, perhaps with an answer" in printed.err
    status, printed = run("check", "adder_2_shared_tile.cu")
    assert status == 1 and "numbers are wrong; the first, [0, 0, 0, 0]" in printed.out
    status, printed = run("check", str(SHARED_TILE), "--as", "adder", "2")
    assert status == 0 and printed.out.startswith("solved")
    status, printed = run("check", str(SHARED_TILE))
    assert status == 1 and "does not say which exercise it is" in printed.err
    status, printed = run("exercise", "adder", "6")
    assert status == 1 and "is in a header that other kernels include" in printed.err
    assert run("check", "missing.cu")[0] == 1
    (tmp_path / "text.cu").write_text("\nnothing\n" + SHARED_TILE.read_text())
    status, printed = run("check", "text.cu", "--as", "adder")
    assert status == 1 and "text.cu:2" in printed.err
    (tmp_path / "text.cu").write_bytes(bytes(range(256)))
    status, printed = run("check", "text.cu", "--as", "adder")
    assert status == 1 and "text.cu is no CUDA text" in printed.err
    asm = SHARED_TILE.read_text().replace("T sum = 0;", 'T sum = 0; asm("nanosleep.u32 1;");')
    (tmp_path / "text.cu").write_text(asm)
    status, printed = run("check", "text.cu", "--as", "adder")
    assert status == 1 and "text.cu:28: inline PTX" in printed.err


def stepped(page, folder, script):
    """What Chromium says of a page on which a script ran, as attributes of its body."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    watch = "<script>addEventListener('error', e => document.documentElement.title = e.message)"
    text = page.read_text().replace("<script id", f"{watch}</script><script id", 1)
    text += f"<script>{script}</script>"
    (folder / "watched.html").write_text(text)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", (folder / "watched.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert 'data-ready="yes"' in shown, shown[:1000]
    assert "<html lang" in shown and 'title="' not in shown.partition("<head>")[0]
    return dict(
        re.findall(r'data-([\w-]+)="([^"]*)"', shown.partition("<body")[2].partition(">")[0])
    )


def test_a_page_is_stepped_through_by_keys(tmp_path):
    page = lessons.page("adder/2", tmp_path / "page.html")
    seen = stepped(
        page,
        tmp_path,
        """
        const d = document.body.dataset;
        const key = k => dispatchEvent(new KeyboardEvent("keydown", {key: k}));
        const picture = () => ["threads", "shared", "timeline"].map(i => $(i).toDataURL()).join();
        const first = picture();
        d.start = now;
        key("ArrowRight"); d.right = now; d.changed = picture() !== first;
        key("ArrowLeft"); d.same = picture() === first;
        key("PageDown"); d.interval = steps[now].interval;
        key("End"); d.last = steps.length - 1 - now;
        key("Home"); d.home = now;
        d.conflicts = steps.filter(s => memories[s.memory].shared && conflicts(s).extra).length;
        d.sectors = sectors(steps[0]);
        d.line = $("said").textContent;
        d.tile = $("array" + memories.find(m => m.name === "a_tile").index).textContent;
        d.narrow = document.documentElement.scrollWidth <= innerWidth;
        $("threads").dispatchEvent(new MouseEvent("mousemove"));
        const pressed = k => new KeyboardEvent("keydown", {key: k, bubbles: true});
        const on_threads = k => $("threads").dispatchEvent(pressed(k));
        on_threads("ArrowDown"); on_threads("ArrowDown"); d.chosen = $("chosen-said").textContent;
        on_threads("ArrowUp"); on_threads("ArrowUp"); d.around = chosen - threads;
        on_threads("Escape"); d.none = $("chosen-said").textContent;
        """,
    )
    assert seen["start"] == seen["home"] == seen["last"] == "0" and seen["right"] == "1"
    assert seen["changed"] == seen["same"] == "true" and seen["interval"] == "1"
    # Rows of 324 bytes, 16 floats of each: 2 sectors of every eighth row, else 3; a warp has 2.
    assert seen["conflicts"] == "0" and float(seen["sectors"]) == 5.75
    assert "line 31 loads a" in seen["line"]
    assert seen["chosen"].startswith("thread (1, 0), warp 0, lane 1: line 31 loads a[")
    assert seen["around"] == "-1" and seen["none"] == ""
    assert "in shared memory, of shape (16, 16)" in seen["tile"] and seen["narrow"] == "true"


def test_a_bank_conflict_shows_on_the_page(tmp_path):
    text = SHARED_TILE.read_text()
    for given, instead in (
        ("b_tile[l][tx]", "b_tile[tx][l]"),
        ("b_tile[ty][tx] =", "b_tile[tx][ty] ="),
    ):
        text = text.replace(given, instead)
    (tmp_path / "mine.cu").write_text(text)
    page = lessons.page("adder/2", tmp_path / "page.html", file=tmp_path / "mine.cu")
    counts = lessons.trace("adder/2", file=tmp_path / "mine.cu").trial.total
    seen = stepped(
        page, tmp_path, """show(5); document.body.dataset.said = $("shared-said").textContent;"""
    )
    assert counts.bank_conflicts and "56 bank conflicts in this step" in seen["said"]


def test_a_page_is_one_file_of_real_steps(tmp_path, capsys):
    page = lessons.page("shift/1", tmp_path / "page.html")
    text = page.read_text()
    assert not re.search(r"(src|href)=|https?://|@import", text)
    described = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S)[1])
    names = [m["name"] for m in described["memories"]]
    assert names == ["tile", "x", "y"] and described["block"] == [256, 1, 1]
    kinds = [(s["kind"], names[s["memory"]]) for s in described["steps"]]
    zeros, *of_a_tile = kinds[:5]  # the halo outside the image, by other lanes than x
    assert zeros == ("store", "tile") and kinds == 3 * kinds[:5]  # 112 tiles, 48 blocks
    assert of_a_tile == [("load", "x"), ("store", "tile"), ("load", "tile"), ("store", "y")]
    stored = np.frombuffer(base64.b64decode(described["steps"][-1]["offsets"]), np.int32)
    plane, inner = np.arange(17 * 19).reshape(17, 19), slice(0, 14)  # tile 96 is plane 24's first
    assert set(stored[stored >= 0] // 4) == {*(24 * 17 * 19 + plane[inner, inner]).flat}
    shapes = {m["name"]: m["shape"] for m in described["memories"]}
    assert shapes == {"tile": [16, 16], "x": [28, 323], "y": [28, 323]}
    with pytest.raises(ValueError, match="block must lie in the grid"):
        lessons.page("shift/1", tmp_path / "page.html", (1000,))
    for words, message in (
        (("--block", "1"), "--block is a block on the page of --html"),
        (("--html", str(tmp_path / "p.html"), "--block", "9999"), "block must lie in the grid"),
    ):
        assert cli.main(["kernels", "trace", "shift", "1", *words]) == 1
        assert message in capsys.readouterr().err
    assert cli.main(["kernels", "trace", "shift", "1", "--html", str(tmp_path / "p.html")]) == 0
