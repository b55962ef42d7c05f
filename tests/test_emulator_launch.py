"""The launch protocol: arguments, dimensions, settings, the cache and the compiler."""

import os
import shutil
import signal
import threading

import numpy as np
import pytest

from mulfree_cupy.launch import emulator, source
from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, compiler, emulated_cuda

F32, I32 = np.float32, np.int32
CODE = """
struct Pair { int a; float b; };
extern "C" __global__ void all(const float* x, float* y, long long n, double a, bool flag,
                               float b, int c, const unsigned char* bytes, Pair p,
                               const unsigned int* words) {
    int i = threadIdx.x;
    float sum = a + flag + b + c + p.a + p.b + (words ? words[0] : 0);
    if (i < n) y[i] = (x ? x[i] : 0.0f) + bytes[i] + sum;
}"""
INCLUDING = """
#include "value.h"
extern "C" __global__ void f(int* x) { x[0] = VALUE + X + (__cplusplus > 202000); }"""
STORE = 'extern "C" __global__ void store(int* x) { x[0] = %s; }'
PAIR = np.array((3, 0.5), np.dtype([("a", I32), ("b", F32)]))[()]
ARGS = (
    np.ones(4, F32),
    np.zeros(4, F32),
    4,
    0.25,
    True,
    F32(2),
    I32(1),
    np.arange(4, dtype=np.uint8),
    PAIR,
    None,
)
kernel = RawKernel(CODE, "all")


def changed(index, value):
    return (*ARGS[:index], value, *ARGS[index + 1 :])


def test_every_kind_of_argument():
    y = np.zeros(4, F32)
    kernel((1,), (8,), changed(1, y))
    np.testing.assert_array_equal(y, 8.75 + np.arange(4))
    kernel((1,), (8,), (ARGS[0], y, *ARGS[2:6], -2, *ARGS[7:]))  # a Python int fits any integer
    np.testing.assert_array_equal(y, 5.75 + np.arange(4))
    words = np.array([1, 0, 0, 0], np.uint8)  # four bytes are a word
    kernel(1, 8, (None, y, *ARGS[2:9], words))
    np.testing.assert_array_equal(y, 8.75 + np.arange(4))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            ARGS[:-1],
            TypeError,
            r"takes 10 arguments \(x, y, n, a, flag, b, c, bytes, p, words\), 9 were given",
        ),
        (
            changed(0, np.ones(4)),
            TypeError,
            r"argument 0 \(x\).*floating-point number of 4 bytes, got an array of float64",
        ),
        (changed(0, np.ones(4, I32)), TypeError, r"argument 0 \(x\).*got an array of int32"),
        (
            changed(9, np.ones(4, np.int64)),
            TypeError,
            r"argument 9 \(words\).*integer of 4 bytes.*int64",
        ),
        (changed(0, [1.0]), TypeError, r"argument 0 \(x\): the kernel takes a pointer.*got list"),
        (
            changed(0, np.ones(8, F32)[::2]),
            ValueError,
            r"argument 0 \(x\): expected a C-contiguous array.*strides \(8,\)",
        ),
        (
            changed(2, I32(4)),
            TypeError,
            r"argument 2 \(n\): the kernel takes an integer of 8 bytes, got int32",
        ),
        (changed(3, F32(1)), TypeError, r"argument 3 \(a\).*got float32 of 4 bytes"),
        (changed(5, 2.0), TypeError, r"argument 5 \(b\).*double, wrap it in numpy.float32"),
        (changed(6, 2**32), ValueError, r"argument 6 \(c\): 4294967296 does not fit.* 4 bytes"),
        (changed(6, -(2**31) - 1), ValueError, r"argument 6 \(c\): .* does not fit"),
        (changed(3, 1), TypeError, r"argument 3 \(a\).*floating-point number of 8 bytes, got int"),
        (changed(6, F32(1)), TypeError, r"argument 6 \(c\).*integer of 4 bytes, got float32"),
        (changed(8, I32(1)), TypeError, r"argument 8 \(p\).*struct of 8 bytes"),
        (changed(6, "1"), TypeError, r"argument 6 \(c\).*got str"),
    ],
)
def test_bad_arguments(args, error, message):
    with pytest.raises(error, match=message):
        kernel((1,), (8,), args)


def test_a_read_only_array_is_not_written():
    y = np.zeros(4, F32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match=r"argument 1 \(y\).*read-only"):
        kernel((1,), (8,), changed(1, y))
    x = np.ones(4, F32)
    x.flags.writeable = False
    kernel((1,), (8,), changed(0, x))


TABLE = """
struct Table { const float* from[3]; float* to[1]; int size; };
extern "C" __global__ void gather(Table t, int beyond) {
    const float* x = t.from[blockIdx.x];
    float* y = t.to[0] + 3 * threadIdx.x + blockIdx.x;
    if (threadIdx.x < t.size) *y = x ? x[threadIdx.x + beyond] : 0;
}"""


def table(*arrays):
    fields = [("from", object, 3), ("to", object, (1,)), ("size", I32)]
    answer = np.empty((), np.dtype(fields, align=True))
    for i, array in enumerate(arrays):
        answer["from" if i < 3 else "to"][i % 3] = array
    answer["size"] = 2
    return answer[()]


@pytest.mark.parametrize("check", [True, False])
def test_a_struct_may_hold_arrays(check):
    gather, to = RawKernel(TABLE, "gather"), np.full(6, 9, F32)
    first = np.arange(4, dtype=F32)
    first.flags.writeable = False
    with emulated_cuda(check=check):
        gather((3,), (2,), (table(first[:2], None, first[1:3], to), I32(0)))
    np.testing.assert_array_equal(to, [0, 0, 1, 1, 0, 2])


def test_arrays_of_a_struct_are_checked():
    gather, to = RawKernel(TABLE, "gather"), np.zeros(6, F32)
    held = table(np.ones(2, F32), None, None, to)
    with pytest.raises(
        EmulationFault,
        match=r"t\.from\[0\]\[2\], beyond the end of argument 0 \(t\)\.from\[0\], float32",
    ):
        gather((3,), (2,), (held, I32(1)))
    to.flags.writeable = False
    with pytest.raises(EmulationFault, match=r"\(t\)\.to\[0\], .*, which is read-only"):
        gather((3,), (2,), (held, I32(0)))
    with pytest.raises(ValueError, match=r"argument 0 \(t\)\.from\[1\]: expected a C-contig"):
        gather((3,), (2,), (table(None, np.ones(4, F32)[::2], None, to), I32(0)))
    with pytest.raises(TypeError, match=r"argument 0 \(t\)\.to\[0\]: .* got float"):
        gather((3,), (2,), (table(None, None, None, 1.0), I32(0)))


@pytest.mark.parametrize(
    ("grid", "block", "shared_mem", "message"),
    [
        ((0,), (8,), 0, "grid must be within"),
        ((1,), (0,), 0, "block must be within"),
        ((1,), (1025,), 0, "block must be within"),
        ((1,), (1, 1, 65), 0, "block must be within"),
        ((1,), (32, 64), 0, "1024 threads at most"),
        ((1, 65536), (8,), 0, "grid must be within"),
        ((1, 1, 1, 1), (8,), 0, "1 to 3 dimensions"),
        ((1.5,), (8,), 0, "grid must be within"),
        ((1,), (8,), 49153, "set max_dynamic_shared_size_bytes"),
        ((1,), (8,), -1, "shared_mem must be"),
    ],
)
def test_bad_launches(grid, block, shared_mem, message):
    with pytest.raises(ValueError, match=message):
        kernel(grid, block, ARGS, shared_mem=shared_mem)


def test_more_dynamic_shared_memory_must_be_asked_for():
    code = """extern "C" __global__ void last(float* x, int n) {
        extern __shared__ float s[];
        s[n - 1] = 5;
        x[0] = s[n - 1];
    }"""
    large, x = RawKernel(code, "last"), np.zeros(1, F32)
    with pytest.raises(ValueError, match="49152"):
        large((1,), (1,), (x, I32(20000)), shared_mem=80000)
    large.max_dynamic_shared_size_bytes = 80000
    large((1,), (1,), (x, I32(20000)), shared_mem=80000)
    assert x[0] == 5
    with pytest.raises(ValueError, match="232448"):
        large.max_dynamic_shared_size_bytes = 300000


def test_names_and_options():
    with pytest.raises(ValueError, match=r"no __global__ function named 'some'.* there are: all"):
        RawKernel(CODE, "some")((1,), (1,), ())
    with pytest.raises(TypeError, match="options must be a tuple"):
        RawKernel(CODE, "all", "-DX=1")
    x = np.zeros(1, I32)
    with pytest.raises(emulator.CompilationError, match=r"value\.h"):
        RawKernel(INCLUDING, "f", ("-DX=2",))((1,), (1,), (x,))


def test_include_folders_macros_and_standard(tmp_path):
    (tmp_path / "value.h").write_text("#define VALUE 40\n")
    x = np.zeros(1, I32)
    options = ("-D", "X=2", f"-I{tmp_path}", "--std=c++20", "-lineinfo")
    RawKernel(INCLUDING, "f", options)((1,), (1,), (x,))
    assert x[0] == 43
    (tmp_path / "value.h").write_text("#define VALUE 100\n")
    RawKernel(INCLUDING, "f", options)((1,), (1,), (x,))
    assert x[0] == 103


def test_settings_nest_and_end():
    assert emulator.active() is None
    with emulated_cuda(check=False) as outer:
        assert emulator.active().check is False
        with emulated_cuda(check="collect", trace=True) as inner:
            assert emulator.active().report is inner is not outer
        assert emulator.active().report is outer
        seen = []
        other = threading.Thread(target=lambda: seen.append(emulator.active()))
        other.start()
        other.join()
        assert seen == [None]
    assert emulator.active() is None
    with (
        pytest.raises(ValueError, match="check must be True, False or 'collect'"),
        emulated_cuda(check="all"),
    ):
        pass


def test_launches_from_several_threads():
    outs = [np.zeros(4, F32) for _ in range(8)]
    threads = [threading.Thread(target=kernel, args=((1,), (8,), changed(1, y))) for y in outs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for y in outs:
        np.testing.assert_array_equal(y, 8.75 + np.arange(4))


@pytest.mark.parametrize("check", [True, False])
def test_ctrl_c_stops_a_launch(check):
    code = """extern "C" __global__ void forever(volatile int* x) { while (x[0] == 0) {} }"""
    endless = RawKernel(code, "forever")
    with emulated_cuda(check=check):
        endless((1,), (1,), (np.ones(1, I32),))
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            endless((1,), (1,), (np.zeros(1, I32),))
        timer.join()
        endless((1,), (1,), (np.ones(1, I32),))


TINY = """extern "C" __global__ void tiny(int* x) { x[0] = 7; }"""


def run_tiny():
    x = np.zeros(1, I32)
    RawKernel(TINY, "tiny")((1,), (1,), (x,))
    return x[0]


def test_the_cache_is_used_and_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("MULFREE_CACHE_DIR", str(tmp_path / "kernels"))
    assert run_tiny() == 7
    (library,) = (tmp_path / "kernels").glob("*.so")
    before = library.stat().st_ino  # another file would take its place
    assert run_tiny() == 7
    assert library.stat().st_ino == before
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes(whole[: len(whole) // 2])
    assert run_tiny() == 7
    assert library.stat().st_size == len(whole)
    left = {p.suffix for p in (tmp_path / "kernels").iterdir()}
    assert left <= {".o", ".so", ".h", ".gch", ".sha256"}
    for damage in (b"", whole[:1000]):
        for file in (tmp_path / "kernels").iterdir():
            file.write_bytes(damage)
        assert run_tiny() == 7


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("MULFREE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"needs GCC's C\+\+ compiler.*apt install g\+\+"):
        run_tiny()


def test_clang_is_not_taken(tmp_path, monkeypatch):
    clang = tmp_path / "clang++"
    clang.write_text("#!/bin/sh\necho Debian clang version 14\n")
    clang.chmod(0o755)
    monkeypatch.setenv("CXX", str(clang))
    assert run_tiny() == 7  # by g++
    clang.rename(tmp_path / "g++")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match=r"\(Clang will not do\): install g\+\+"):
        run_tiny()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CXX", "no-such-compiler", "CXX names no-such-compiler, which is not there"),
        ("CXX", "false", r"false is no C\+\+ compiler: --version fails"),
        ("MULFREE_CACHE_DIR", "/dev/null/kernels", "set MULFREE_CACHE_DIR to another"),
        ("MULFREE_EMULATOR_SECONDS", "long", "MULFREE_EMULATOR_SECONDS must be a number, got 'lo"),
    ],
)
def test_an_environment_that_will_not_do_is_named(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises((RuntimeError, OSError, ValueError), match=message):
        run_tiny()


def test_installs_in_two_places_share_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MULFREE_CACHE_DIR", str(tmp_path / "kernels"))
    code = """extern "C" __global__ void beyond(int* x) {
        x[0] = 1;
        atomicAdd(x + 1 + threadIdx.x, 1);  // through a header's function
    }"""
    places = []
    for install in ("first", "second"):
        headers = tmp_path / install
        shutil.copytree(source.headers(), headers)
        with monkeypatch.context() as patch:
            patch.setattr(source, "headers", lambda folder=headers: folder)
            with pytest.raises(EmulationFault) as caught:
                RawKernel(code, "beyond")((1,), (1,), (np.zeros(1, I32),))
        places.append((caught.value.finding.file, caught.value.finding.line))
    assert places == [("beyond", 3)] * 2
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1


def test_what_a_text_includes_decides_alone(tmp_path, monkeypatch):
    built, build = [], compiler._build
    monkeypatch.setattr(compiler, "_build", lambda *args: (built.append(1), build(*args)))
    (tmp_path / "ours.h").write_text("#define VALUE 1\n")
    code = '#include "ours.h"\n' + STORE % "VALUE"

    def stored():
        x = np.zeros(1, np.int32)
        RawKernel(code, "store", (f"-I{tmp_path}",))((1,), (1,), (x,))
        return int(x[0])

    assert stored() == 1 and len(built) <= 1
    built.clear()
    (tmp_path / "other.h").write_text("int other;\n")
    assert stored() == 1 and not built
    (tmp_path / "ours.h").write_text("#define VALUE 2\n")
    assert stored() == 2 and len(built) == 1


def test_the_cache_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("MULFREE_CACHE_DIR", str(tmp_path))

    def store(value):
        x = np.zeros(1, np.int32)
        RawKernel(STORE % value, "store")((1,), (1,), (x,))
        assert x[0] == value
        return {f: f.stat() for f in tmp_path.glob("*.so")}

    ((first, stat),) = store(1).items()
    monkeypatch.setattr(compiler, "MOST_KEPT", 2 * stat.st_size + stat.st_size // 2)
    (second,) = store(2).keys() - {first}
    for age, file in enumerate((second, first)):  # the first was used last
        os.utime(file, (1e9 + age, 1e9 + age))
    kept = store(3)
    assert first in kept and second not in kept and len(kept) == 2
    os.utime(first, (1e9, 1e9))
    store(1)
    assert first.stat().st_mtime > 1e9
