"""What orders accesses: barriers, fences with atomics, locks; what is a race and what a note."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

F32, I32, U32 = np.float32, np.int32, np.uint32


def findings(code, name, grid, block, args, options=(), shared_mem=0):
    with emulated_cuda(check="collect") as report:
        RawKernel(code, name, options)(grid, block, args, shared_mem=shared_mem)
    return report.findings


def clean(*args, **kwargs):
    found = findings(*args, **kwargs)
    assert not found, "\n".join(map(str, found))


def race(*args, lines=None, **kwargs):
    found = findings(*args, **kwargs)
    assert "race" in {f.kind for f in found}, "\n".join(map(str, found))
    assert lines is None or {f.line for f in found if f.kind == "race"} <= lines, str(found)


# ---- atomics with a plain read before them ------------------------------------------------------

HINTS = """
__device__ double add(double* address, double v) {
    unsigned long long* p = (unsigned long long*)address;
    unsigned long long old = *p, assumed;
    do {
        assumed = old;
        old = atomicCAS(p, assumed, __double_as_longlong(v + __longlong_as_double(assumed)));
    } while (assumed != old);
    return __longlong_as_double(old);
}
extern "C" __global__ void add_all(double* out) { add(out, 1.0); }
extern "C" __global__ void add_shared(double* out) {
    __shared__ double sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    add(&sum, 1.0);
    __syncthreads();
    if (threadIdx.x == 0) add(out, sum);
}
extern "C" __global__ void smallest(int* d, const int* x) {
    int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    if (d[0] > v) atomicMin(d, v);
}
extern "C" __global__ void smallest_shared(int* d, const int* x) {
    __shared__ int s;
    int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    if (threadIdx.x == 0) s = 1000;
    __syncthreads();
    if (s > v) atomicMin(&s, v);
    __syncthreads();
    if (threadIdx.x == 0 && *d > s) atomicMin(d, s);
}
extern "C" __global__ void claim(int* flag, int* winners) {
    int* f = flag + threadIdx.x % 4;
    if (*f == 0 && atomicExch(f, 1) == 0) atomicAdd(winners, 1);
}
extern "C" __global__ void no_barrier(int* out) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, 1);                       // 41
    out[threadIdx.x] = sum;                   // 42
}
extern "C" __global__ void no_barrier_before(int* out) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;            // 46
    atomicAdd(&sum, 1);                       // 47
}
extern "C" __global__ void histogram(int* out) {
    __shared__ int bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[threadIdx.x * 5 % 8], 1); // 53
    if (threadIdx.x < 8) out[threadIdx.x] = bins[threadIdx.x];  // 54
}"""


def test_a_plain_read_that_guards_an_atomic():
    for name in ("add_all", "add_shared"):
        out = np.zeros(1)
        clean(HINTS, name, (3,), (64,), (out,))
        assert out[0] == 192
    x = np.random.default_rng(0).permutation(300)[:256].astype(I32)
    for name in ("smallest", "smallest_shared"):
        d = np.full(1, 999, I32)
        clean(HINTS, name, (4,), (64,), (d, x))
        assert d[0] == x.min()
    flags, winners = np.zeros(4, I32), np.zeros(1, I32)
    clean(HINTS, "claim", (4,), (64,), (flags, winners))
    assert winners[0] == 4


@pytest.mark.parametrize(
    ("name", "lines"),
    [("no_barrier", {41, 42}), ("no_barrier_before", {46, 47}), ("histogram", {53, 54})],
)
def test_a_plain_read_that_guards_nothing(name, lines):
    race(HINTS, name, (1,), (64,), (np.zeros(64, I32),), lines=lines)
    with pytest.raises(EmulationFault, match="data race"):
        RawKernel(HINTS, name)((1,), (64,), (np.zeros(64, I32),))


SPREAD = """
__device__ void raise(float* d, float v) {
    int* bits = (int*)d;
    int old = *bits, assumed;
    do {
        assumed = old;
        if (__int_as_float(assumed) >= v) return;
        old = atomicCAS(bits, assumed, __float_as_int(v));
    } while (assumed != old);
}
extern "C" __global__ void looks_twice(float* d, const float* x) {
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    float known = *d;
    if (v <= known) return;
    raise(d, v);
}
extern "C" __global__ void by_a_leader(float* d, const float* x) {
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    float known = *d;
    for (int k = 16; k; k /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, k));
    if (threadIdx.x % 32 == 3 && v > known) atomicMax((int*)d, __float_as_int(v));
}
extern "C" __global__ void looks_and_tells(float* d, const float* x) {
    float known = *d;                                                                     // 23
    if (x[threadIdx.x] > 100) atomicMax((int*)d, __float_as_int(x[threadIdx.x] + known));  // 24
    __syncthreads();
    atomicAdd(d, known);                                                                  // 26
    if (threadIdx.x == 1) d[1] = *d;                                                      // 27
}"""


@pytest.mark.parametrize("name", ["looks_twice", "by_a_leader"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_guard_some_lines_before_the_atomic(name, order):
    for x in (np.arange(128, dtype=F32), np.random.default_rng(0).permutation(128).astype(F32)):
        d = np.zeros(1, F32)
        clean(SPREAD, name, (2,), (64,), (d, x[::order].copy()))
        assert d[0] == 127


def test_the_value_of_a_read_that_guards_is_not_followed():
    """docs/emulator.md, "Not found": on a GPU two threads may get one i."""
    code = """extern "C" __global__ void append(int* count, int limit, int* out) {
        int i = *count;
        if (i < limit) { atomicAdd(count, 1); out[i] = threadIdx.x; }
    }"""
    count, out = np.zeros(1, np.int32), np.zeros(20, np.int32)
    with emulated_cuda(check="collect") as report:
        RawKernel(code, "append")((2,), (32,), (count, np.int32(20), out))
    assert not report.findings


def test_what_is_read_before_a_barrier_guards_nothing_behind_it():
    race(
        SPREAD, "looks_and_tells", (1,), (64,), (np.ones(2, F32), np.zeros(64, F32)), lines={26, 27}
    )


ADDS = """
extern "C" __global__ void add(int which, int limit, int* d, const int* x, int* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (which == 0) {
        int place = *d;                                     // 5
        atomicAdd(d, 1);                                    // 6
        y[place] = x[i];
    } else if (which == 1) {
        atomicExch(d,                                       // 9
                   *d + x[i]);                              // 10
    } else if (which == 2 && *d < limit) {                  // 11
        int place = atomicAdd(d, 1);                        // 12
        if (place < limit) y[place] = x[i];
    } else if (which == 3) {
        if (!d[x[i] % 4]) atomicExch(d + x[i] % 4, 1);
    } else if (which == 4) {                                // many reads between
        int known = *d, cost = 0;
        for (int k = 0; k < 200; ++k) cost += x[(i + k) % 256];
        if (cost > known) atomicMax(d, cost);
    }
}"""
add = RawKernel(ADDS, "add")


@pytest.mark.parametrize(("grid", "block"), [(1, 64), (64, 1), (4, 48)])
@pytest.mark.parametrize(
    ("which", "limit", "lines"),
    [
        (0, 0, {5, 6}),  # every thread may find the same place
        (1, 0, {9, 10}),  # a sum that loses
        (2, 40, set()),  # the place that the atomic access gives decides
        (3, 0, set()),
        (4, 0, set()),
    ],
)
def test_a_read_before_an_addition_guards_it_only_as_a_condition(grid, block, which, limit, lines):
    x, y = np.random.default_rng(0).integers(1, 99, 256).astype(I32), np.zeros(256, I32)
    with emulated_cuda(check="collect") as report:
        add((grid,), (block,), (I32(which), I32(limit), np.zeros(4, I32), x, y))
    assert {f.kind for f in report.findings} == ({"race"} if lines else set())
    assert {f.line for f in report.findings} == lines


# ---- fences, tickets and locks ------------------------------------------------------------------

TICKETS = """
extern "C" __global__ void in_block(const float* x, float* out) {
    __shared__ float s[128];
    __shared__ unsigned count;
    int t = threadIdx.x;
    if (t == 0) count = 0;
    __syncthreads();
    s[t] = x[t];
    FENCE;
    if (atomicAdd(&count, 1) == blockDim.x - 1) {
        float sum = 0;
        for (int i = 0; i < blockDim.x; ++i) sum += s[i];
        s[0] = *out = sum;
    }
}
extern "C" __global__ void last_block(const float* x, float* parts, unsigned* count, float* out) {
    __shared__ bool last;
    int t = threadIdx.x, n = blockDim.x * gridDim.x;
    parts[blockIdx.x * blockDim.x + t] = 2 * x[blockIdx.x * blockDim.x + t];
    BEFORE;
    if (t == 0) { AFTER; last = atomicInc(count, gridDim.x) == gridDim.x - 1; }
    __syncthreads();
    if (last) {
        float sum = 0;
        for (int i = t; i < n; i += blockDim.x) sum += parts[i];
        atomicAdd(out, sum);
    }
}
extern "C" __global__ void every_thread(const float* x, float* parts, unsigned* count, float* out) {
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t, n = blockDim.x * gridDim.x;
    parts[i] = 2 * x[i];
    BEFORE;
    if (atomicAdd(count, 1) == n - 1) {
        float sum = 0;
        for (int k = 0; k < n; ++k) sum += parts[k];
        *out = sum;
    }
}"""


def test_a_ticket_inside_a_block():
    x, out = np.arange(128, dtype=F32), np.zeros(1, F32)
    for fence in ("__threadfence()", "__threadfence_block()"):
        clean(TICKETS, "in_block", (1,), (128,), (x, out), _ticket(FENCE=fence))
        assert out[0] == x.sum()
    race(TICKETS, "in_block", (1,), (128,), (x, out), _ticket())


def _ticket(**macros):
    names = ("FENCE", "BEFORE", "AFTER")
    return tuple(f"-D{name}={macros.get(name, '')}" for name in names)


@pytest.mark.parametrize(
    ("before", "after", "good"),
    [
        ("__threadfence(); __syncthreads()", "", True),
        ("__syncthreads()", "__threadfence()", True),
        ("__threadfence(); __syncthreads()", "__threadfence()", True),
        ("__syncthreads()", "", False),
        ("__threadfence()", "", False),
        ("", "__threadfence()", False),
        ("__threadfence_block(); __syncthreads()", "", False),
        ("if (t == 0) __threadfence(); __syncthreads()", "", False),
    ],
)
def test_the_last_block_finishes(before, after, good):
    x, parts, count, out = (
        np.arange(256, dtype=F32),
        np.zeros(256, F32),
        np.zeros(1, U32),
        np.zeros(1, F32),
    )
    judge = clean if good else race
    options = _ticket(BEFORE=before, AFTER=after)
    judge(TICKETS, "last_block", (4,), (64,), (x, parts, count, out), options)
    assert out[0] == 2 * x.sum()


def test_the_last_thread_of_all_finishes():
    x, parts, count, out = (
        np.arange(256, dtype=F32),
        np.zeros(256, F32),
        np.zeros(1, U32),
        np.zeros(1, F32),
    )
    for fence, judge in (("__threadfence()", clean), ("__threadfence_block()", race), ("", race)):
        count[:] = 0
        options = _ticket(BEFORE=fence)
        judge(TICKETS, "every_thread", (4,), (64,), (x, parts, count, out), options)
        assert out[0] == 2 * x.sum()


LOCKS = """
__device__ void lock(int* l) { while (atomicCAS(l, 0, 1) != 0) SLEEP; }
__device__ void unlock(int* l) { FENCE; atomicExch(l, 0); }
extern "C" __global__ void count(int* l, int* x) {
    lock(l);
    x[0] += 1;
    x[1 + x[0] % 2] += threadIdx.x;
    unlock(l);
}
extern "C" __global__ void count_shared(int* l, int* x) {
    __shared__ int mutex, sum;
    if (threadIdx.x == 0) mutex = sum = 0;
    __syncthreads();
    lock(&mutex);
    sum += threadIdx.x;
    unlock(&mutex);
    __syncthreads();
    if (threadIdx.x == 0) { lock(l); x[0] += sum; unlock(l); }
}
extern "C" __global__ void two_locks(int* l, int* x) {   // one hands what it knows on to the next
    lock(l); x[0] += 1; unlock(l);
    lock(l + 1); x[1] += 1; unlock(l + 1);
}
extern "C" __global__ void lock_by_turns(int* l, int* x) {
    while (atomicAdd(l, 0) != threadIdx.x + blockIdx.x * blockDim.x) {}
    x[0] = 2 * x[0] % 1001 + threadIdx.x;
    FENCE;
    atomicAdd(l, 1);
}
extern "C" __global__ void flag(volatile int* l, int* x) {
    if (threadIdx.x == blockDim.x - 1) { x[0] = 7; FENCE; *l = 1; }
    else { while (*l == 0) {} x[threadIdx.x + 1] = x[0]; }
}"""


@pytest.mark.parametrize("name", ["count", "count_shared", "two_locks", "lock_by_turns", "flag"])
@pytest.mark.parametrize("sleep", ["{}", "__nanosleep(100)"])
def test_locks(name, sleep):
    grid = (1,) if name == "flag" else (3,)
    options = (f"-DSLEEP={sleep}", "-DFENCE=__threadfence()")
    x = np.zeros(80, I32)
    clean(LOCKS, name, grid, (70,), (np.zeros(2, I32), x), options)
    if name == "count":
        assert (x[0], x[1] + x[2]) == (210, 3 * sum(range(70)))
    if name == "count_shared":
        assert x[0] == 3 * sum(range(70))


@pytest.mark.parametrize("name", ["count", "two_locks", "lock_by_turns", "flag"])
def test_locks_without_a_fence(name):
    x = np.zeros(80, I32)
    race(LOCKS, name, (1,), (70,), (np.zeros(2, I32), x), ("-DSLEEP={}", "-DFENCE="))


IDIOMS = """
extern "C" __global__ void look_back(
    const int* x, int* y, volatile int* flag, volatile int* part, int* ticket
) {
    __shared__ int block, prefix;         // a scan in one pass
    if (threadIdx.x == 0) block = atomicAdd(ticket, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int v = x[block], sum = 0, f;
        part[block] = v;
        __threadfence();
        flag[block] = 1;
        for (int k = block - 1; k >= 0; --k) {
            while ((f = flag[k]) == 0) {}
            sum += part[f == 2 ? 64 + k : k];
            if (f == 2) break;
        }
        part[64 + block] = prefix = sum + v;
        __threadfence();
        flag[block] = 2;
    }
    __syncthreads();
    if (threadIdx.x == 1) y[block] = prefix;
}
extern "C" __global__ void join(int* parent, const int* a, const int* b) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, x = a[i], y = b[i];
    while (true) {                         // the sets of a and b become one
        while (parent[x] != x) x = parent[x];
        while (parent[y] != y) y = parent[y];
        if (x == y) break;
        int high = max(x, y);
        if (atomicCAS(&parent[high], high, min(x, y)) == high) break;
    }
}"""


def test_a_scan_that_looks_back_and_sets_that_join():
    x, y = np.random.default_rng(0).integers(0, 9, 64).astype(I32), np.zeros(64, I32)
    flags, parts, ticket = np.zeros(64, I32), np.zeros(128, I32), np.zeros(1, I32)
    clean(IDIOMS, "look_back", (64,), (32,), (x, y, flags, parts, ticket))
    np.testing.assert_array_equal(y, np.cumsum(x))
    a, b = np.random.default_rng(1).integers(0, 100, (2, 256)).astype(I32)
    clean(IDIOMS, "join", (4,), (64,), (np.arange(100, dtype=I32), a, b))


HANDED_ON = """
extern "C" __global__ void handed_on(int* buffer, volatile int* full, int* out, int n) {
    int t = threadIdx.x, lane = t % 32, sum = 0;
    for (int k = 0; k < n; ++k) {
        if (t < 32) {                      // one warp fills the buffer
            if (lane == 0) while (*full) {}
            __syncwarp();
            buffer[lane] = k * lane;
            SYNC;
            if (lane == 0) { __threadfence_block(); *full = 1; }
        } else {                           // and the other empties it
            if (lane == 0) while (!*full) {}
            __syncwarp();
            sum += buffer[lane];
            __syncwarp();
            if (lane == 0) { __threadfence_block(); *full = 0; }
        }
    }
    if (t >= 32) out[lane] = sum;
}"""


def test_one_lane_waits_and_hands_on_for_its_warp():
    for sync, judge in (("__syncwarp()", clean), ("__syncwarp(1u << lane)", race)):
        out = np.zeros(32, I32)
        args = (np.zeros(32, I32), np.zeros(1, I32), out, I32(5))
        judge(HANDED_ON, "handed_on", (1,), (64,), args, (f"-DSYNC={sync}",))
    np.testing.assert_array_equal(out, 10 * np.arange(32))


WAITS = """
extern "C" __global__ void never(int* l, int n) {
    if (threadIdx.x == 3)
        while (atomicCAS(l, 1, 2) != 1) {}                // 4
}
extern "C" __global__ void next_block(volatile int* l, int n) {
    if (blockIdx.x == 0) while (*l == 0) {}               // 7
    else *l = 1;
}
extern "C" __global__ void in_the_lock(int* l, int n) {
    while (atomicCAS(l, 0, 1) != 0) {}                    // 11
    __syncthreads();                                      // 12
    atomicExch(l, 0);
}
extern "C" __global__ void shared_flag(int* l, int n) {
    __shared__ volatile int ready;
    ready = 0;
    while (ready == n) {}                                 // 18
}
extern "C" __global__ void barriers(int* l, int n) {
    for (int i = 0; i <= n; i = 0)
        __syncthreads();                                  // 22
}
extern "C" __global__ void shuffles(int* l, int n) {
    for (int v = 0; !n; v += 1)
        v &= __shfl_xor_sync(~0u, v, 1);                  // 26
}"""


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("never", {4}),
        ("next_block", {7}),
        ("in_the_lock", {11, 12}),
        ("shared_flag", {18}),
        ("barriers", {22}),
        ("shuffles", {26}),
    ],
)
def test_a_wait_in_vain_names_its_line(monkeypatch, name, lines, check):
    monkeypatch.setenv("MULFREE_EMULATOR_SECONDS", "0.2")
    with emulated_cuda(check=check), pytest.raises(EmulationFault) as caught:
        RawKernel(WAITS, name)((2,), (40,), (np.zeros(1, I32), I32(0)))
    assert caught.value.finding.kind == "timeout"
    assert caught.value.finding.line in lines


# ---- lanes of a warp ----------------------------------------------------------------------------

LANES = """
extern "C" __global__ void tiles(const int* x, int* y) {    // each part of the warp by itself
    __shared__ int s[64];
    int t = threadIdx.x, part = t / 16 * 16;
    unsigned mask = 0xffffu << part % 32;
    s[t] = x[t];
    __syncwarp(mask);
    int sum = 0;
    for (int i = 0; i < 16; ++i) sum += s[part + i];
    __syncwarp(mask);
    s[t] = sum;
    __syncwarp(mask);
    y[t] = s[part + 15 - t % 16];
}
extern "C" __global__ void across(const int* x, int* y) {
    __shared__ int s[64];
    int t = threadIdx.x;
    s[t] = x[t];                                            // 18
    __syncwarp(0xffffu << t / 16 * 16 % 32);
    y[t] = s[t ^ 16];                                       // 20
}
extern "C" __global__ void warps(const int* x, int* y) {
    __shared__ int s[64];
    int t = threadIdx.x;
    s[t] = x[t];                                            // 25
    __syncwarp();
    y[t] = s[t ^ 32];                                       // 27
}"""


def test_a_barrier_of_some_lanes_orders_those():
    x, y = np.arange(64, dtype=I32), np.zeros(64, I32)
    clean(LANES, "tiles", (1,), (64,), (x, y))
    race(LANES, "across", (1,), (64,), (x, y), lines={18, 20})
    race(LANES, "warps", (1,), (64,), (x, y), lines={25, 27})


SAME = """
extern "C" __global__ void same(int which, const int* x, int* out) {
    __shared__ int s;
    int t = threadIdx.x;
    switch (which) {
        case 0: s = 7; break;                               // 6
        case 1: s = x[t]; break;                            // 7
        case 2: out[0] = 1; break;                          // 8
        case 3: if (t % 3 == 0) out[x[t] - x[t]] = x[0]; break;  // 9
        case 4: if (t == 0) out[0] = 1; else if (t == 1) out[0] = 1; break;  // 10
        case 5: *(int4*)out = {1, 2, 3, t / 32}; break;     // 11
    }
}"""
same = RawKernel(SAME, "same")


@pytest.mark.parametrize(
    ("which", "block", "kinds", "line"),
    [
        (0, 32, {"same_value"}, 6),
        (1, 32, {"race"}, 7),
        (2, 32, {"same_value"}, 8),
        (3, 32, {"same_value"}, 9),
        (5, 32, {"same_value"}, 11),
        (5, 64, {"same_value", "race"}, 11),
    ],
)
def test_one_value_written_by_many_in_one_instruction(which, block, kinds, line):
    x = np.arange(64, dtype=I32)
    with emulated_cuda(check="collect") as report:
        same((1,), (block,), (I32(which), x, np.zeros(64, I32)))
    assert {f.kind for f in report.findings} == kinds
    assert {f.line for f in report.findings} == {line}
    for f in report.findings:
        assert f.level == ("note" if f.kind == "same_value" else "error")


def test_a_note_is_reported_and_not_raised():
    with emulated_cuda() as report:
        same((2,), (64,), (I32(2), np.zeros(64, I32), np.zeros(64, I32)))
    (note,) = report.findings
    assert (note.kind, note.level, note.line, note.count) == ("same_value", "note", 8, 127)
    assert "the same value" in str(note) and "note" in str(report)
    with pytest.raises(EmulationFault, match="data race"):
        same((1,), (64,), (I32(4), np.zeros(64, I32), np.zeros(64, I32)))
