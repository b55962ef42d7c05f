"""What a kernel may touch: its arrays, its variables, its heap, and nothing of the emulator's."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda, runtime

F32, I32 = np.float32, np.int32


def fault(kernel, block, args, check=True):
    with emulated_cuda(check=check), pytest.raises(EmulationFault) as caught:
        kernel((1,), block, args)
    return caught.value.finding


VARIABLES = """
__device__ int a[8];
__device__ int after[64];
namespace ours { template <class T> __device__ T several[4]; }
static __device__ int counter;
__constant__ float weights[2] = {1, 2};
__constant__ const float table[] = {3, 4, 5};
__device__ const char* const words[] = {"zero", "one"};
extern "C" __global__ void variables(int which, int n, int* out) {
    static int calls[2];
    int* p = which == 0 ? a : which == 1 ? ours::several<int> : which == 2 ? &counter : calls;
    if (which < 4)
        for (int i = 0; i < n; i++) p[i] = i;                 // 13
    const float* q = which == 4 ? weights : table;
    if (which == 4 || which == 5) out[0] = q[n];              // 15
    if (which == 6) ((float*)q)[n] = 7;                       // 16
    if (which == 7) *(float*)(weights + n) = 7;               // 17
    if (which == 8) out[0] = words[n][0];                     // 18
    if (which == 9) out[n] = blockDim.x;                      // 19
}"""
variables = RawKernel(VARIABLES, "variables")


@pytest.mark.parametrize(
    ("which", "size", "name"),
    [(0, 8, "a"), (1, 4, "several"), (2, 1, "counter"), (3, 2, "calls")],
)
def test_past_the_end_of_a_variable(which, size, name):
    out = np.zeros(1, I32)
    variables((1,), (1,), (I32(which), I32(size), out))
    for n in (size + 1, size + 16, 10**6):
        found = fault(variables, (1,), (I32(which), I32(n), out))
        assert (found.kind, found.line, found.offset) == ("out_of_bounds", 13, 4 * size)
        assert found.array.startswith(name)


@pytest.mark.parametrize(
    ("which", "right", "wrong", "kind", "line", "name"),
    [
        (4, 1, 2, "out_of_bounds", 15, "weights"),
        (4, 1, -1, "out_of_bounds", 15, "weights"),
        (5, 2, 3, "out_of_bounds", 15, "table"),
        (6, None, 0, "read_only", 16, "table"),
        (7, None, 0, "read_only", 17, "weights"),
        (8, 1, 2, "out_of_row", 18, None),
    ],
)
def test_constants(which, right, wrong, kind, line, name):
    out = np.zeros(1, I32)
    if right is not None:
        variables((1,), (1,), (I32(which), I32(right), out))
        assert out[0] == {4: 2, 5: 5, 8: ord("o")}[which]
    found = fault(variables, (1,), (I32(which), I32(wrong), out))
    assert (found.kind, found.line) == (kind, line)
    assert name is None or found.array.startswith(name)


WILD = """
extern "C" __global__ void wild(long long at) {
    *(volatile int*)at = 7;
    *(int*)at = 7;
}"""


def test_a_write_to_any_address_is_a_finding_and_no_more():
    """Through the emulator's own variables, stacks, code and tables, wherever they are."""
    wild = RawKernel(WILD, "wild")
    spans = []
    with emulated_cuda(check="collect"):
        wild((1,), (1,), (0,))
    with open("/proc/self/maps") as maps:
        for row in maps:
            low, high = (int(end, 16) for end in row.split()[0].split("-"))
            spans += [low, (low + high) // 2 // 4 * 4, high - 4]
    own = range(runtime.stacks(), runtime.stacks() + runtime.STACK_SIZE)
    for address in spans:
        if address < 2**63 and address not in own:
            assert fault(wild, (1,), (np.int64(address),)).kind in (
                "out_of_bounds",
                "read_only",
                "crash",
            )


def test_a_local_array_overrun_through_a_pointer():
    code = """
__device__ __noinline__ void fill(float* p, int n) { for (int i = 0; i < n; ++i) p[i] = i; }
extern "C" __global__ void overrun(float* x, int n) {
    float s[4];
    fill(s, n);
    x[threadIdx.x] = s[n & 3];
}"""
    overrun, x = RawKernel(code, "overrun"), np.zeros(8, F32)
    overrun((1,), (8,), (x, I32(4)))
    found = fault(overrun, (8,), (x, I32(9)))
    assert (found.kind, found.line) == ("out_of_bounds", 7)
    assert "beyond the end of a local array" in found.text
    for n in (12, 40, 200, 5000, 10**6):
        assert fault(overrun, (8,), (x, I32(n))).kind in ("out_of_bounds", "crash")
    overrun((1,), (8,), (x, I32(4)))


@pytest.mark.parametrize("check", [True, False])
def test_local_arrays_larger_than_the_stack(check):
    code = """
extern "C" __global__ void large(int* x) {
    volatile int a[300000];
    for (int i = *x; i < 300000; i += 999) a[i] = i;
    *x = a[*x];
}"""
    found = fault(RawKernel(code, "large"), (8,), (np.zeros(1, I32),), check)
    assert found.kind == "crash" and "stack overflow" in found.text


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("call", ["exit(1)", "abort()", "_Exit(2)", "__builtin_trap()"])
def test_the_process_is_not_ended(call, check):
    code = f"""
#include <stdlib.h>
extern "C" __global__ void ends(int* x) {{ if (*x == 0) {call}; }}"""
    assert fault(RawKernel(code, "ends"), (8,), (np.zeros(1, I32),), check).kind in (
        "trap",
        "crash",
    )


RESULTS = """
extern "C" __global__ void results(int which, float x, float* out) {
    __shared__ float s[32], c[32];
    __shared__ int e[32];
    __shared__ double d[64];
    int t = threadIdx.x, i = t + (which >= 10);
    float r = 0;
    switch (which % 10) {
        case 0: sincosf(x, &s[i], &c[i]); r = s[t] + c[t]; break;
        case 1: r = modff(x, &s[i]) + s[t]; break;
        case 2: r = frexpf(x, &e[i]) + e[t]; break;
        case 3: r = remquof(x, 3.0f, &e[i]) + e[t]; break;
        case 4: sincos(x, &d[i + 31 * (which >= 10)], &d[i + 32]); r = d[t] + d[t + 32]; break;
        case 5: r = modf((double)x, &d[i + 32]) + d[t + 32]; break;
        case 6: r = frexp((double)x, &e[i]) + e[t]; break;
        case 7: r = remquo((double)x, 3.0, &e[i]) + e[t]; break;
        case 8: r = modf(x, &s[i]) + s[t]; break;
        case 9: __sincosf(x, &s[i], &c[i]); r = s[t] + c[t]; break;
    }
    out[t] = r;
}"""


@pytest.mark.parametrize("which", range(10))
def test_functions_that_answer_through_a_pointer(which):
    results, out = RawKernel(RESULTS, "results"), np.zeros(32, F32)
    results((1,), (32,), (I32(which), F32(7.25), out))
    trigonometric = np.sin(7.25) + np.cos(7.25)
    expected = {1: 7.25, 2: 7.25 / 8 + 3, 3: 1.25 + 2, 5: 7.25, 6: 7.25 / 8 + 3, 7: 3.25, 8: 7.25}
    np.testing.assert_allclose(out, expected.get(which, trigonometric), rtol=1e-6)
    found = fault(results, (32,), (I32(10 + which), F32(7.25), out))
    assert found.kind in ("out_of_bounds", "race", "uninitialised", "out_of_row")


HEAP = """
struct Node { int value; Node* next; };
extern "C" __global__ void heap(int which, int n, int* out) {
    int t = threadIdx.x;
    if (which == 0) {
        Node* head = nullptr;
        for (int i = 0; i < n; ++i) head = new Node{i + t, head};
        int sum = 0;
        while (head) { sum += head->value; Node* next = head->next; delete head; head = next; }
        int* p = (int*)malloc(n * sizeof(int));
        float* q = new float[n];
        for (int i = 0; i < n; ++i) q[i] = p[i] = sum;
        out[t] = p[n - 1] + (int)q[0];
        free(p);
        delete[] q;
        free(nullptr);
    } else {
        int* p = (int*)malloc(10);
        if (which == 1) p[n] = 1;                 // 19
        if (which == 2) { free(p); p[0] = 1; }    // 20
        if (which == 3) free(p + n);              // 21
        if (which == 4) out[t] = malloc(1 << 30) == nullptr;
        if (which == 5) {
            __shared__ int* shared;
            if (t == 0) shared = p;
            __syncthreads();
            shared[0] = t;                        // 27
        }
    }
}"""
heap = RawKernel(HEAP, "heap")


@pytest.mark.parametrize("check", [True, False])
def test_the_heap(check):
    out = np.zeros(64, I32)
    with emulated_cuda(check=check):
        heap((1,), (64,), (I32(0), I32(5), out))
        np.testing.assert_array_equal(out, 2 * (10 + 5 * np.arange(64)))
        heap((1,), (64,), (I32(4), I32(5), out))
    np.testing.assert_array_equal(out, 1)


@pytest.mark.parametrize(
    ("which", "n", "kind", "line"),
    [
        (1, 2, "out_of_bounds", 19),
        (1, 4, "out_of_bounds", 19),
        (1, -1, "out_of_bounds", 19),
        (2, 0, "out_of_bounds", 20),
        (3, 1, "trap", 21),
        (5, 0, "race", 27),
    ],
)
def test_faults_with_the_heap(which, n, kind, line):
    found = fault(heap, (64,), (I32(which), I32(n), np.zeros(64, I32)))
    assert (found.kind, found.line) == (kind, line)


@pytest.mark.parametrize("extra", [4, 20, 40, 1000, 100000])
@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("check", [True, False])
def test_a_local_array_overrun_by_any_length_has_a_line(extra, called, check):
    code = """
__device__ %s void fill(int* y, int n) {
    int a[4], *p = a;
    for (int i = 0; i < n; ++i)
        p[i] = y[0] + i;                // 5
    y[0] = p[y[1]];
}                                       // 7
extern "C" __global__ void local(int* y, int n) {
    fill(y, n);                         // 9
}""" % ("__noinline__" if called else "__forceinline__")
    with emulated_cuda(check=check), pytest.raises(EmulationFault) as caught:
        RawKernel(code, "local")((1,), (1,), (np.zeros(2, I32), I32(4 + extra)))
    found = caught.value.finding
    if check:
        assert (found.kind, "local array" in found.text) == ("out_of_bounds", True), str(found)
        assert found.line in (5, 7, 10), str(found)
    else:  # a return to nowhere, if not an access
        assert found.line in (5, 7, 10) or "beyond a local array" in found.text, str(found)


PIECES = """
extern "C" __global__ void pieces(int which, int n, int* out) {
    int* p = new int[8];                          // 3
    char* q = (char*)malloc(10);                  // 4
    if (which == 0) p[n] = n;
    if (which == 1) *(int*)(q + n) = n;
    if (which == 2) delete[] p;                   // 7
    out[0] = p[n] + q[0];
}"""


@pytest.mark.parametrize(
    ("which", "n", "offset", "words"),
    [
        (0, 8, 32, "byte 32, beyond the end of the 32 bytes from malloc or new at pieces:3"),
        (0, -2, -8, "byte -8, before the start of the 32 bytes from malloc or new at pieces:3"),
        (1, -4, -4, "byte -4, before the start of the 10 bytes from malloc or new at pieces:4"),
        (1, 8, 8, "byte 8, partly beyond the end of the 10 bytes from malloc or new at pieces:4"),
        (2, 5, 20, "byte 20 of the 32 bytes from malloc or new at pieces:3, freed at pieces:7"),
    ],
)
def test_the_piece_of_the_heap_is_named(which, n, offset, words):
    found = fault(RawKernel(PIECES, "pieces"), (1,), (I32(which), I32(n), np.zeros(1, I32)))
    assert found.offset == offset
    assert words in found.text, found.text
    assert found.array in words


@pytest.mark.parametrize("check", [True, False])
def test_what_is_new_and_deleted_in_one_function(check):
    code = """
struct Two { float a, b; Two(float x) : a(x), b(2 * x) {} };
extern "C" __global__ void brief(float* y, int n) {
    int* p = new int[5];
    p[n] = n;
    Two* two = new Two(3);
    float* q = new float(4);
    y[threadIdx.x] = p[n] + two->b + *q;
    delete[] p;
    delete two;
    delete q;
}"""
    y = np.zeros(32, F32)
    with emulated_cuda(check=check):
        RawKernel(code, "brief")((1,), (32,), (y, I32(2)))
    np.testing.assert_array_equal(y, 12)


@pytest.mark.parametrize(
    ("use", "kind"),
    [("int* p = (int*)malloc(20); p[9] = 1; free(p);", "out_of_bounds"),
     ("int* p = (int*)malloc(20); p[n] = 1; y[0] = p[n]; free(p); free(p);", "trap")],
)  # fmt: skip
def test_memory_of_one_function_is_checked(use, kind):
    brief = RawKernel(f'extern "C" __global__ void brief(int* y, int n) {{ {use} }}', "brief")
    assert fault(brief, (1,), (np.zeros(1, I32), I32(2))).kind == kind


def test_more_arrays_than_any_table_has_places_for():
    code = """
struct Many { float* of[1500]; };
extern "C" __global__ void many(Many m) { *m.of[threadIdx.x] += threadIdx.x; }"""
    arrays = [np.zeros(1, F32) for _ in range(1500)]
    held = np.empty((), np.dtype([("of", object, 1500)], align=True))
    for i, array in enumerate(arrays):
        held["of"][i] = array
    RawKernel(code, "many")((1,), (1000,), (held[()],))
    np.testing.assert_array_equal(np.concatenate(arrays)[:1000], np.arange(1000))


POINTERS = """
extern "C" __global__ void rows(float* const* from, float** to, int n) {
    int t = threadIdx.x;
    for (int r = 0; r < n; ++r) if (from[r]) to[r][t] = 2 * from[r][t];
}"""


@pytest.mark.parametrize("check", [True, False])
def test_arrays_of_pointers(check):
    rows = RawKernel(POINTERS, "rows")
    x, first, second = np.arange(4, dtype=F32), np.zeros(4, F32), np.zeros(4, F32)
    source, target = np.array([None, None, None]), np.array([None, None, None])
    source[0], source[2], target[0], target[2] = x, x[::-1].copy(), first, second
    with emulated_cuda(check=check):
        rows((1,), (4,), (source, target, I32(3)))
    np.testing.assert_array_equal(first, 2 * x)
    np.testing.assert_array_equal(second, 2 * x[::-1])


def test_arrays_of_pointers_are_checked():
    rows = RawKernel(POINTERS, "rows")
    x = np.arange(4, dtype=F32)
    source, target = np.array([None, None]), np.array([None, None])
    source[0], target[0] = x, np.zeros(4, F32)
    found = fault(rows, (5,), (source, target, I32(2)))
    assert found.kind == "out_of_bounds" and found.array.startswith("argument 0 (from)[0]")
    assert fault(rows, (4,), (source, target, I32(3))).array.startswith("argument 0 (from)")
    with pytest.raises(TypeError, match=r"\(from\).*array of pointers.*dtype object.*got .*uint64"):
        rows((1,), (4,), (np.zeros(2, np.uint64), target, I32(2)))
    with pytest.raises(TypeError, match=r"\(from\)\[1\]: .* got float"):
        source[1] = 1.5
        rows((1,), (4,), (source, target, I32(2)))
