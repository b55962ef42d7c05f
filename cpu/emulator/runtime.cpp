// Runs a grid: blocks one after another, the threads of a block as fibers in a fixed order.
//
// A thread runs until it waits (at a barrier, for its warp) or ends; then the next one runs.
#include "state.h"

#include <unwind.h>

#include <cfenv>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <utility>

#include "collectives.h"
#include "grid.h"
#include "instrumentation.h"
#include "meetings.h"
#include "signals.h"
#include "xorwow.h"

namespace mulfree_emulator {

Launcher now;

constexpr int max_findings = 256;
static Finding findings[max_findings];
static int finding_count;

// The same finding made before; null if there is none.
static Finding *find_finding(const Finding &finding) {
    for (int i = 0; i < finding_count; ++i) {
        Finding &f = findings[i];
        if (f.kind == finding.kind && f.pc == finding.pc && f.other_pc == finding.other_pc &&
            f.line == finding.line && f.other_line == finding.other_line && f.guard == finding.guard)
            return &f;
    }
    return nullptr;
}

void add_finding(const Finding &finding) {
    if (Finding *same = find_finding(finding)) {
        ++same->count;
    } else if (finding_count < max_findings) {
        findings[finding_count] = finding;
        findings[finding_count++].count = 1;
    }
}

namespace {

double clock_seconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// ---- threads ----------------------------------------------------------------------------------

// Leaves the current thread for the scheduler.
void leave() {
    if (pending.size) settle_pending();
    switch_fiber(now.threads[now.current].fiber, now.scheduler);
}

void wait(State state) {
    Thread &me = now.threads[now.current];
    me.state = state;
    leave();
}

void end_thread() {
    ++now.exited;
    now.threads[now.current].state = State::exited;
    finish_collectives(now.current / warp_size);
    leave();
}

// Says if other lanes still wait for the current thread, which ends.
void check_deserted() {
    const Thread *waiting = deserted_lane();
    if (!waiting) return;
    Finding f = here(Kind::divergent_collective);
    f.thread = static_cast<uint32_t>(waiting - now.threads);
    f.file = waiting->file;
    f.line = waiting->line;
    f.other_thread = now.current;
    report(f);
}

void run_thread() {
    now.kernel->run(now.launch->arguments);
    if (now.launch->check) check_deserted();
    end_thread();
}

void resume(unsigned index) {
    now.current = index;
    threadIdx = {now.threads[index].x, now.threads[index].y, now.threads[index].z};
    now.stack = now.launch->stacks + index * now.launch->stack_size;
    switch_fiber(now.scheduler, now.threads[index].fiber);
}

// ---- blocks -----------------------------------------------------------------------------------

Finding waiting_thread(Kind kind, State state) {
    Finding f{};
    f.kind = kind;
    f.block = now.block;
    f.region = -1;
    for (unsigned i = 0; i < now.thread_count; ++i) {
        const Thread &t = now.threads[i];
        if (t.state != state) continue;
        f.thread = i;
        f.file = t.file;
        f.line = t.line;
        break;
    }
    return f;
}

// Says which threads do not wait where the others wait, if there are any.
void check_barrier() {
    Finding f = waiting_thread(Kind::divergent_barrier, State::at_barrier);
    for (unsigned i = 0; i < now.thread_count; ++i) {
        const Thread &t = now.threads[i];
        if (t.stopped) continue;
        if (t.state == State::exited) {
            f.text = "has returned";
        } else if (t.line != f.line || std::strcmp(t.file, f.file) != 0) {
            f.text = "waits at another barrier";
            f.other_file = t.file;
            f.other_line = t.line;
        } else {
            continue;
        }
        f.other_thread = i;
        report(f);
        return;
    }
}

void release_barrier() {
    if (now.launch->check && now.launch->guide && (now.exited || now.barrier_diverged)) check_barrier();
    if (now.stopping) abandon_launch();
    if (now.launch->trace) count_barrier(now.threads[waiting_thread(Kind::trap, State::at_barrier).thread]);
    int sum = 0;
    for (unsigned i = 0; i < now.thread_count; ++i) {
        Thread &t = now.threads[i];
        if (t.state != State::at_barrier) continue;
        t.state = State::ready;
        t.steps = 0;
        t.passed = t.passed_beyond_warp = {t.file, t.line};
        sum += t.value != 0;
    }
    now.barrier_result = sum;
    now.waiting = 0;
    ++now.interval;
    now.barrier_diverged = false;
    now.busy = true;  // it may allocate: no signal may leave from here
    pass_block_barrier();
    now.busy = false;
}

// Threads wait for a phase of a meeting that nobody is left to end; says which other thread does not come.
bool report_deserted_meeting() {
    Finding f = waiting_thread(Kind::divergent_barrier, State::at_meeting);
    if (!f.file) return false;
    for (unsigned i = 0; i < now.thread_count; ++i) {
        const Thread &t = now.threads[i];
        if (t.stopped || (t.state == State::at_meeting && t.waits_at == now.threads[f.thread].waits_at)) continue;
        f.other_thread = i;
        f.text = t.state == State::exited ? "has returned" : "waits at another barrier";
        if (t.state != State::exited) f.other_file = t.file, f.other_line = t.line;
        break;
    }
    if (!f.text) f.kind = Kind::trap, f.text = "waits at a barrier that expects more threads than come";
    report(f);
    now.exited = now.thread_count;  // nobody can go on: the block ends here
    return true;
}

// No thread can go on: some lanes of a warp wait for others that wait elsewhere, or have ended.
void report_deadlock() {
    if (report_deserted_meeting()) return;
    Finding f = waiting_thread(Kind::divergent_collective, State::in_collective);
    const Thread &waiting = now.threads[f.thread];
    const unsigned first = f.thread / warp_size * warp_size;
    int together = 0, at_barrier = 0;  // the fewer are those that went astray
    for (unsigned i = 0; i < lanes_of(first / warp_size); ++i) {
        together += now.threads[first + i].state == State::in_collective;
        at_barrier += now.threads[first + i].state == State::at_barrier;
    }
    for (unsigned i = 0; i < lanes_of(first / warp_size); ++i) {
        const Thread &t = now.threads[first + i];
        if (!(waiting.mask >> i & 1) || t.state == State::exited) continue;
        if (t.state == State::in_collective && t.mask == waiting.mask && t.what == waiting.what) continue;
        const bool astray = t.state == State::at_barrier && at_barrier < together;
        const Thread &here = astray ? t : waiting, &there = astray ? waiting : t;
        f.thread = static_cast<uint32_t>(&here - now.threads);
        f.file = here.file;
        f.line = here.line;
        f.other_thread = static_cast<uint32_t>(&there - now.threads);
        f.other_file = there.file;
        f.other_line = there.line;
        if (astray) {
            f.kind = Kind::divergent_barrier;
            f.text = "waits for other lanes of its warp";
        }
        break;
    }
    report(f);
    now.exited = now.thread_count;  // nobody can go on: the block ends here
}

}  // namespace

// Says that the time is up, and where: at `pc`, where the calls come from, where a thread waits.
void add_timeout(uintptr_t pc) {
    unsigned i = now.current;
    for (unsigned k = 0; k < now.thread_count && now.threads[i].state == State::exited; ++k) i = k;
    const Thread &t = now.threads[i];
    Finding f = here(Kind::timeout);
    f.thread = i;
    f.pc = pc ? pc - module_base() : 0;
    add_calls(f);
    if (t.spin && (t.state == State::yielded || t.state == State::ready)) f.other_pc = t.spin - module_base();
    else f.other_file = t.file, f.other_line = t.line;
    add_finding(f);
}

void stop_if_out_of_time(uintptr_t pc) {
    if (!now.interrupted && clock_seconds() < now.deadline) return;
    if (!now.interrupted) add_timeout(pc);
    abandon_launch();
}

namespace {

bool run_warps() {
    bool ran = false;
    for (unsigned warp = 0; warp < now.warp_count; ++warp) {
        const unsigned first = warp * warp_size, last = first + lanes_of(warp);
        bool again = true;
        while (again) {
            again = false;
            for (unsigned i = first; i < last; ++i) {
                if (now.threads[i].state != State::ready) continue;
                resume(i);
                again = ran = true;
            }
            if (again && now.launch->trace) count_requests(warp);
            for (unsigned i = first; !again && i < last; ++i)
                if (now.threads[i].state == State::converging) again = converge(warp);
        }
        for (unsigned i = first; i < last; ++i)
            if (now.threads[i].state == State::yielded) {
                now.threads[i].state = State::ready;
                ran = true;
            }
    }
    return ran;
}

void start_block() {
    const uint32_t *dim = now.launch->block;
    blockIdx = {now.block_x, now.block_y, now.block_z};
    now.exited = now.waiting = now.at_grid = now.interval = 0;
    now.barrier_diverged = false;
    unsigned i = 0;
    for (unsigned z = 0; z < dim[2]; ++z)
        for (unsigned y = 0; y < dim[1]; ++y)
            for (unsigned x = 0; x < dim[0]; ++x, ++i) {
                Thread &t = now.threads[i];
                t.state = State::ready;
                t.stopped = false;
                t.steps = 0;
                t.spin = 0;
                t.file = nullptr;
                t.passed = t.passed_beyond_warp = {};
                t.x = x; t.y = y; t.z = z;
                prepare_fiber(t.fiber, now.launch->stacks + i * now.launch->stack_size,
                              now.launch->stack_size, run_thread);
            }
    now.busy = true;  // it may allocate: no signal may leave from here
    begin_block_of_time();
    close_meetings();
    now.busy = false;
}

// Runs the block until its threads have ended, or wait for the whole grid.
void run_block() {
    unsigned rounds = 0;
    while (now.exited < now.thread_count) {
        const bool ran = run_warps();
        if (now.at_grid && now.at_grid + now.exited == now.thread_count) break;
        if (now.waiting && now.waiting + now.exited == now.thread_count) release_barrier();
        else if (!ran) report_deadlock();
        if ((++rounds & 255) == 0) stop_if_out_of_time();
    }
    if (now.stopping) abandon_launch();
}

void pause_if_it_waits() {
    if (!now.at_grid) return;
    now.busy = true;  // it may allocate: no signal may leave from here
    pause_block(paused_blocks.add({}));
    now.busy = false;
}

// Some blocks wait for the whole grid, but others have ended.
void report_grid_deadlock() {
    now.busy = true;
    resume_block(paused_blocks[0]);
    now.busy = false;
    Finding f = waiting_thread(Kind::trap, State::ready);
    f.text = "waits for all blocks of the grid, and one has ended without this barrier";
    report(f);
    abandon_launch();
}

void run_grid() {
    const uint32_t *grid = now.launch->grid;
    for (now.block_z = 0; now.block_z < grid[2]; ++now.block_z)
        for (now.block_y = 0; now.block_y < grid[1]; ++now.block_y)
            for (now.block_x = 0; now.block_x < grid[0]; ++now.block_x) {
                if (now.interrupted) return;
                start_block();
                run_block();
                pause_if_it_waits();
                if ((++now.block & 255) == 0) stop_if_out_of_time();
            }
    while (paused_blocks.count) {
        if (paused_blocks.count != uint64_t(grid[0]) * grid[1] * grid[2]) report_grid_deadlock();
        now.busy = true;  // it may allocate: no signal may leave from here
        pass_grid_barrier();
        std::swap(paused_blocks, resuming_blocks);
        paused_blocks.clear();
        for (PausedBlock &paused : resuming_blocks) {
            now.busy = true;
            resume_block(paused);
            blockIdx = {now.block_x, now.block_y, now.block_z};
            now.busy = false;
            if (now.interrupted) return;
            run_block();
            pause_if_it_waits();
        }
    }
}

}  // namespace

void abandon_launch() { siglongjmp(now.abandon, 1); }

void leave_thread() {
    now.threads[now.current].stopped = true;
    end_thread();
}

void yield() {
    wait(State::yielded);
    if (now.interrupted) abandon_launch();
}

Finding here(Kind kind) {
    Finding f{};
    f.kind = kind;
    f.region = -1;
    f.thread = now.current;
    f.block = now.block;
    return f;
}

static _Unwind_Reason_Code add_call(_Unwind_Context *context, void *finding) {
    Finding &f = *static_cast<Finding *>(finding);
    const uintptr_t offset = _Unwind_GetIP(context) - module_base();
    if (offset < static_cast<uintptr_t>(&_end - &__ehdr_start)) f.calls[f.call_count++] = offset;
    return f.call_count < max_calls ? _URC_NO_REASON : _URC_END_OF_STACK;
}

void add_calls(Finding &finding) {
    if (finding.call_count) return;
    now.unwinding = &finding;
    _Unwind_Backtrace(add_call, &finding);
    now.unwinding = nullptr;
}

void report(const Finding &finding) {
    Finding f = finding;
    if (!find_finding(f)) add_calls(f);
    add_finding(f);
    if (now.launch->check == 2) return;
    const Kind kind = finding.kind;
    if (kind == Kind::same_value) return;
    now.stopping |= kind == Kind::race || kind == Kind::uninitialised;
    if (kind != Kind::race && kind != Kind::uninitialised) abandon_launch();
}

}  // namespace mulfree_emulator

// ---- what a kernel calls ------------------------------------------------------------------------

using namespace mulfree_emulator;

extern "C" {

Coordinates threadIdx, blockIdx, blockDim, gridDim;

int mulfree_barrier(int predicate, const char *file, int line) {
    Thread &me = now.threads[now.current];
    me.value = predicate;
    me.file = file;
    me.line = line;
    if (!now.waiting++) {
        now.barrier_file = file;
        now.barrier_line = line;
    } else if (line != now.barrier_line || file != now.barrier_file) {
        now.barrier_diverged = true;
    }
    wait(State::at_barrier);
    return now.barrier_result;
}

uint64_t mulfree_collective(Collective what, unsigned mask, uint64_t value, int source, const char *file, int line) {
    Thread &me = now.threads[now.current];
    me.what = what;
    me.mask = mask;
    me.value = value;
    me.source = source;
    me.file = file;
    me.line = line;
    if (now.launch->check && !(mask >> (now.current % warp_size) & 1)) {
        Finding f = here(Kind::divergent_collective);
        f.text = "is not in the mask it passes";
        f.file = file;
        f.line = line;
        report(f);
        leave_thread();
    }
    if (now.launch->check && what == Collective::shuffle && !(mask >> source & 1)) {
        Finding f = here(Kind::divergent_collective);
        f.text = "reads from a lane that is not in the mask it passes";
        f.file = file;
        f.line = line;
        report(f);
    }
    me.state = State::in_collective;
    finish_collectives(now.current / warp_size);
    if (me.state == State::in_collective) leave();
    return me.result;
}

void mulfree_exchange(const void *mine, size_t size, void *all, const char *file, int line) {
    static char slots[max_warps][warp_size * 128];
    char *slot = slots[now.current / warp_size];
    std::memcpy(slot + now.current % warp_size * size, mine, size);
    if (mulfree_collective(Collective::ballot, ~0u, 1, 0, file, line) != ~0u)
        mulfree_trap("a matrix operation needs all 32 lanes of the warp", file, line);
    std::memcpy(all, slot, warp_size * size);
    mulfree_collective(Collective::ballot, ~0u, 1, 0, file, line);  // before the next exchange
}

unsigned mulfree_active_mask(const char *file, int line) {
    Thread &me = now.threads[now.current];
    me.file = file;
    me.line = line;
    wait(State::converging);
    return static_cast<unsigned>(me.result);
}

int mulfree_lane() { return static_cast<int>(now.current % warp_size); }

void *mulfree_malloc(size_t size) {
    if (!now.launch) return std::malloc(size);  // an initialiser, while the module is loaded
    if (pending.size) settle_pending();
    return heap_allocate(size, MULFREE_CALLER);
}

void mulfree_free(void *p) {
    if (!p) return;
    if (!now.launch) return std::free(p);
    if (pending.size) settle_pending();
    if (heap_free(p, MULFREE_CALLER)) return;
    Finding f = here(Kind::trap);
    f.text = "frees a pointer that malloc did not return, or that was freed before";
    f.pc = MULFREE_CALLER - module_base();
    report(f);
    leave_thread();
}

void mulfree_meeting_open(const void *at, unsigned expected) {
    now.busy = true;  // it may allocate: no signal may leave from here
    open_meeting(at, expected);
    now.busy = false;
}

uint64_t mulfree_meeting_arrive(const void *at, unsigned count, bool leave, const char *file, int line) {
    Meeting *m = meeting_at(at);
    if (!m) mulfree_trap("arrives at a barrier that the block has not initialised", file, line);
    if (count > m->pending) mulfree_trap("arrives at a barrier that expects fewer threads", file, line);
    const uint64_t phase = m->phase;
    now.busy = true;
    add_arrival(*m);
    m->expected -= leave;
    m->pending -= count;
    const bool over = !m->pending;
    if (over) finish_phase(*m);
    now.busy = false;
    if (!over) yield();  // the others arrive before this one goes on
    return phase;
}

bool mulfree_meeting_over(const void *at, uint64_t phase, const char *file, int line) {
    const Meeting *m = meeting_at(at);
    if (!m) mulfree_trap("waits at a barrier that the block has not initialised", file, line);
    if (m->phase <= phase) return false;
    now.busy = true;
    learn_arrivals(*m, phase);
    now.busy = false;
    Thread &me = now.threads[now.current];
    me.passed = me.passed_beyond_warp = {file, line};
    return true;
}

void mulfree_meeting_wait(const void *at, uint64_t phase, const char *file, int line) {
    Thread &me = now.threads[now.current];
    me.waits_at = at;
    me.value = phase;
    me.file = file;
    me.line = line;
    while (!mulfree_meeting_over(at, phase, file, line)) wait(State::at_meeting);
}

void mulfree_meet(const void *at, unsigned expected, bool orders, const char *file, int line) {
    now.busy = true;  // it may allocate: no signal may leave from here
    if (!meeting_at(at)) open_meeting(at, expected);
    Meeting &m = *meeting_at(at);
    const uint64_t phase = m.phase;
    if (orders) add_arrival(m);
    if (!--m.pending) finish_phase(m);
    now.busy = false;
    Thread &me = now.threads[now.current];
    me.waits_at = at;
    me.value = phase;
    me.file = file;
    me.line = line;
    while (meeting_at(at)->phase <= phase) wait(State::at_meeting);
    if (orders) mulfree_meeting_over(at, phase, file, line);
}

char *mulfree_room() {
    static char room[max_threads * 128];
    return room;
}

void mulfree_grid_barrier(const char *file, int line) {
    if (!now.launch->cooperative)
        mulfree_trap("waits for the grid in a launch that is not cooperative: "
                     "RawKernel(..., enable_cooperative_groups=True)", file, line);
    mulfree_barrier(0, file, line);
    ++now.at_grid;
    wait(State::at_grid);
}

bool mulfree_is_cooperative() { return now.launch->cooperative; }

void mulfree_fence(bool device) { fence(device); }

void *mulfree_shared(SharedVariable *variable) {
    if (!now.launch) return place_for_good(*variable);
    if (variable->launch != now.number) {
        variable->place = place_shared(*variable);
        variable->launch = now.number;
    }
    return variable->place;
}

void *mulfree_dynamic_shared() { return dynamic_shared(); }

char *mulfree_shared_window() { return arena(); }

unsigned mulfree_dynamic_shared_size() { return now.launch->dynamic_shared; }

void mulfree_trap(const char *what, const char *file, int line) {
    Finding f = here(Kind::trap);
    f.text = what;
    f.file = file;
    f.line = line;
    report(f);
    leave_thread();
    __builtin_unreachable();
}

void mulfree_xorwow_skip(unsigned *v, unsigned long long n, int power) {
    for (; n; n >>= 1, ++power)
        if (n & 1) xorwow_matrix(power).apply(v);
}

int mulfree_printf(const char *format, ...) {
    now.busy = true;  // stdio holds a lock: no signal may leave from here
    va_list arguments;
    va_start(arguments, format);
    const int n = std::vprintf(format, arguments);
    va_end(arguments);
    std::fflush(stdout);
    now.busy = false;
    return n;
}

// ---- what the launcher calls --------------------------------------------------------------------

__attribute__((visibility("default"))) int mulfree_launch(const Kernel *kernel, const Launch *launch) {
    static unsigned long launches;
    now.launch = launch;
    now.kernel = kernel;
    blockDim = {launch->block[0], launch->block[1], launch->block[2]};
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    now.number = ++launches;
    now.thread_count = launch->block[0] * launch->block[1] * launch->block[2];
    now.warp_count = (now.thread_count + warp_size - 1) / warp_size;
    now.block = 0;
    now.current = 0;
    now.interrupted = now.stopping = false;
    now.unwinding = nullptr;
    now.busy = true;
    now.accesses = 0;
    now.deadline = clock_seconds() + launch->seconds;
    finding_count = 0;
    pending.size = 0;
    open_guards();
    open_ordering();
    open_memory();
    if (launch->trace) open_trace();
    stack_t former_stack;
    catch_signals(former_stack);
    if (sigsetjmp(now.abandon, 1) == 0) {
        now.busy = false;
        run_grid();
    }
    restore_signals(former_stack);
    forget_paused_blocks();
    close_guards();
    std::fesetround(FE_TONEAREST);  // a signal may leave from an operation in another mode
    close_memory();
    now.launch = nullptr;
    return now.interrupted ? -1 : finding_count;
}

__attribute__((visibility("default"))) uintptr_t mulfree_base() { return module_base(); }

__attribute__((visibility("default"))) const Site *mulfree_sites(int *count) {
    *count = static_cast<int>(trace->site_count);
    return trace->sites + 1;
}

__attribute__((visibility("default"))) const BarrierSite *mulfree_barriers(int *count) {
    *count = static_cast<int>(trace->barrier_count);
    return trace->barriers;
}

__attribute__((visibility("default"))) const Event *mulfree_events(int *count) {
    *count = static_cast<int>(events.count);
    return events.data;
}

__attribute__((visibility("default"))) const Finding *mulfree_findings() { return findings; }
__attribute__((visibility("default"))) const uint32_t *mulfree_guards(int *count) {
    *count = static_cast<int>(guards.count);
    return guards.data;
}
__attribute__((visibility("default"))) const Region *mulfree_regions(int *count) {
    *count = static_cast<int>(regions.count);
    return regions.data;
}

}  // extern "C"
