// The memory that a kernel may access, and its last accesses.
//
// Every array passed, every __shared__ variable and every variable of the kernel's text is a Region;
// nothing else may be accessed. A region has a shadow: for each of its cells (a word, or less once a kernel goes
// below words) the last write and the last read, each stamped with thread and time (ordering.h).
#pragma once

#include <sys/mman.h>

#include "ordering.h"
#include "trace.h"

extern "C" {
// The module's image, from the linker.
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}

namespace mulfree_emulator {

struct Cell {
    Stamp write, read;
};

// The launcher reads this layout in emulator/runtime.py.
struct Region {
    uintptr_t base;
    size_t size;
    uintptr_t origin;         // of the allocation that it is part of
    const char *name, *file;  // of a variable
    int32_t line, array;      // of an array passed: the launcher's number for it, else -1
    int32_t shared, writable;
    int32_t counted, shadow;  // in a trace; index of its shadow
    Shape shape;              // of a __shared__ variable
};

struct Shadow {
    uintptr_t base;
    size_t size;
    unsigned shift;  // log2 of the bytes in a cell
    Cell *cells;
};

constexpr uintptr_t guard_size = 4096;  // at the low end of every stack, at least (runtime.py)
constexpr size_t red_zone = 256;  // between __shared__ variables; keeps their banks as they are
constexpr size_t arena_size = 4 << 20;  // 227 KiB at most, as a thousand variables far apart

inline Rows<Region> regions;
inline Rows<Shadow> shadows;
inline uint32_t hint_of_pc[1024];
inline char *arena_end;

// Zeros that take memory only where they are touched; null if there is none.
inline char *map_zeros(size_t size) {
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<char *>(p);
}

// Where the __shared__ variables of a block lie; dynamic shared memory comes first.
inline char *arena() {
    static char *const memory = map_zeros(arena_size);
    return memory;
}

inline char *dynamic_shared() { return arena() + red_zone; }

inline uintptr_t module_base() { return reinterpret_cast<uintptr_t>(&__ehdr_start); }

// ---- regions ------------------------------------------------------------------------------------

inline Cell *new_cells(size_t bytes, unsigned shift) {
    return reinterpret_cast<Cell *>(map_zeros(((bytes >> shift) + 1) * sizeof(Cell)));
}

inline void free_cells(Shadow &s) {
    if (s.cells) munmap(s.cells, ((s.size >> s.shift) + 1) * sizeof(Cell));
    s.cells = nullptr;
}

// Arrays that overlap share one shadow, so that a race through two views of one array is seen.
MULFREE_RARE inline int shadow_for(uintptr_t base, size_t size) {
    for (size_t i = 0; i < shadows.count; ++i) {
        Shadow &s = shadows[i];
        if (base >= s.base + s.size || s.base >= base + size) continue;
        const uintptr_t end = s.base + s.size > base + size ? s.base + s.size : base + size;
        s.base = (s.base < base ? s.base : base) & ~uintptr_t(3);
        s.size = end - s.base;
        return static_cast<int>(i);
    }
    shadows.add({base & ~uintptr_t(3), size + (base & 3), 2, nullptr});
    return static_cast<int>(shadows.count - 1);
}

MULFREE_RARE inline void add_region(Region r) {
    r.shadow = shadow_for(r.base, r.size);
    regions.add(r);
}

MULFREE_RARE inline void add_shared(const char *place, const SharedVariable &v) {
    const uintptr_t base = reinterpret_cast<uintptr_t>(place);
    add_region({base, v.size, base, v.name, v.file, v.line, -1, true, true, true, -1, v.shape});
}

inline char *after(const char *end, size_t align) {
    if (align < red_zone) align = red_zone;
    return reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(end) + red_zone + align - 1) / align * align);
}

MULFREE_RARE inline void *place_shared(const SharedVariable &v) {
    char *place = after(arena_end, v.align);
    arena_end = place + v.size;
    add_shared(place, v);
    return place;
}

// __shared__ variables at file scope get their place when the module is loaded, above the others.
constexpr int max_file_scope = 64;
inline SharedVariable file_scope[max_file_scope];
inline int file_scope_count;

MULFREE_RARE inline void *place_for_good(SharedVariable v) {
    if (file_scope_count == max_file_scope) return nullptr;
    const char *end = arena() + arena_size / 2;
    if (file_scope_count) {
        const SharedVariable &last = file_scope[file_scope_count - 1];
        end = static_cast<char *>(last.place) + last.size;
    }
    v.place = after(end, v.align);
    file_scope[file_scope_count++] = v;
    return v.place;
}

// ---- the heap -----------------------------------------------------------------------------------

// The memory of malloc and new: pieces with gaps between them. Addresses are not reused within a launch, so that
// dangling pointers are found; everything is released when the launch ends.
constexpr size_t heap_size = 64 << 20, heap_limit = 8 << 20;  // the limit is a GPU's, for what is in use
constexpr size_t granule = 16, heap_gap = 64;

struct Heap {
    char *memory;
    uint8_t *valid;  // bytes of each granule that belong to a piece
    size_t used, in_use;
    int region;      // -1: nothing was asked for
};
inline Heap heap = {nullptr, nullptr, 0, 0, -1};
inline Rows<Piece> pieces;  // by ascending start

MULFREE_RARE inline void *heap_allocate(size_t size, uintptr_t pc) {
    if (heap.region < 0) {
        heap.memory = map_zeros(heap_size);
        heap.valid = reinterpret_cast<uint8_t *>(map_zeros(heap_size / granule));
        heap.region = static_cast<int>(regions.count);
        const uintptr_t base = reinterpret_cast<uintptr_t>(heap.memory);
        now.busy = true;  // it may allocate: no signal may leave from here
        add_region({base, heap_size, base, "the heap of malloc and new", nullptr, 0, -1, false, true, true, -1});
        now.busy = false;
    }
    if (!size) size = 1;
    if (size > heap_limit - heap.in_use || heap.used + size + 2 * heap_gap > heap_size) return nullptr;
    const size_t start = heap.used + heap_gap;
    now.busy = true;
    pieces.add({start, size, pc - module_base(), 0});
    now.busy = false;
    for (size_t done = 0; done < size; done += granule)
        heap.valid[(start + done) / granule] = static_cast<uint8_t>(size - done < granule ? size - done : granule);
    heap.used = (start + size + granule - 1) / granule * granule;
    heap.in_use += size;
    return heap.memory + start;
}

// Bytes from `offset` on that belong to one piece, at most `size`.
inline size_t heap_valid(size_t offset, size_t size) {
    size_t valid = 0;
    while (valid < size) {
        const size_t at = offset + valid, in_granule = at % granule;
        const size_t here = heap.valid[at / granule];
        if (here <= in_granule) break;
        valid += here - in_granule;
        if (here < granule) break;
    }
    return valid;
}

// The piece that an offset in the heap is in or nearest to.
MULFREE_RARE inline Piece &piece_at(size_t offset) {
    size_t low = 0, high = pieces.count;
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        (pieces[middle].start <= offset ? low : high) = middle;
    }
    const size_t end = pieces[low].start + pieces[low].size;
    const bool next_is_nearer = high < pieces.count && offset > end && pieces[high].start - offset < offset - end;
    return pieces[next_is_nearer ? high : low];
}

MULFREE_RARE inline bool heap_free(void *p, uintptr_t pc) {
    const size_t start = static_cast<size_t>(static_cast<char *>(p) - heap.memory);
    if (heap.region < 0 || start >= heap.used) return false;
    Piece &piece = piece_at(start);
    if (piece.start != start || piece.freed) return false;
    std::memset(heap.valid + start / granule, 0, (piece.size + granule - 1) / granule);
    piece.freed = pc - module_base();
    heap.in_use -= piece.size;
    return true;
}

MULFREE_RARE inline void close_heap() {
    if (heap.region < 0) return;
    munmap(heap.memory, heap_size);
    munmap(heap.valid, heap_size / granule);
    pieces.clear();
    heap = {nullptr, nullptr, 0, 0, -1};
}

// Checked kernels work on copies of the arrays that lie far apart and begin as CuPy's allocations do:
// an overrun lands in no other array, and alignment is what it would be on a GPU. Arrays that overlap
// are one copy.
struct Copy {
    char *memory;
    size_t mapped;
    uintptr_t low, high, start;  // what was copied, and whereto
};

inline Rows<Copy> copies;
constexpr size_t gap = 1 << 20;

MULFREE_RARE inline void place_copy(const Array &a) {
    const uintptr_t base = reinterpret_cast<uintptr_t>(a.base);
    if (!copies.count || base >= copies[copies.count - 1].high) {
        uintptr_t high = base + a.size;
        for (const Array *b = &a; b != now.launch->arrays + now.launch->array_count; ++b) {
            const uintptr_t start = reinterpret_cast<uintptr_t>(b->base);
            if (start >= high) break;
            if (start + b->size > high) high = start + b->size;
        }
        Copy c = {nullptr, 2 * gap + 256 + (high - base), base, high, 0};
        c.memory = map_zeros(c.mapped);
        c.start = reinterpret_cast<uintptr_t>(c.memory) + gap + ((base - reinterpret_cast<uintptr_t>(a.origin)) & 255);
        copies.add(c);
    }
    const Copy &c = copies[copies.count - 1];
    *a.pointer = c.start + (base - c.low);
}

MULFREE_RARE inline void write_back() {
    for (int i = 0; i < now.launch->array_count && copies.count; ++i) {
        const Array &a = now.launch->arrays[i];
        if (a.writable) std::memcpy(a.base, reinterpret_cast<void *>(*a.pointer), a.size);
    }
    for (const Copy &c : copies) munmap(c.memory, c.mapped);
    copies.clear();
}

// Unchecked kernels have copies if one of the arrays is read-only: they may cast its const away.
inline bool needs_copies() {
    bool needed = now.launch->check;
    for (int i = 0; i < now.launch->array_count; ++i) needed |= !now.launch->arrays[i].writable;
    return needed;
}

MULFREE_RARE inline void open_memory() {
    regions.clear();
    shadows.clear();
    std::memset(hint_of_pc, 0, sizeof hint_of_pc);
    const Array *arrays = now.launch->arrays, *end = arrays + now.launch->array_count;
    if (needs_copies()) {
        for (const Array *a = arrays; a != end; ++a) place_copy(*a);
        // Now that every pointer is what the kernel shall find, also those in an array of pointers.
        for (const Copy &c : copies)
            std::memcpy(reinterpret_cast<void *>(c.start), reinterpret_cast<void *>(c.low), c.high - c.low);
    }
    for (const Array *a = arrays; a != end; ++a) {
        const uintptr_t base = *a->pointer;
        const uintptr_t before = reinterpret_cast<uintptr_t>(a->base) - reinterpret_cast<uintptr_t>(a->origin);
        add_region({base, a->size, base - before, nullptr, nullptr, 0, a->name, false, a->writable, true, -1});
    }
    for (int i = 0; i < now.launch->variable_count; ++i) {
        const Variable &v = now.launch->variables[i];
        const uintptr_t base = module_base() + v.offset;
        add_region({base, v.size, base, v.name, nullptr, 0, -1, false, v.writable, false, -1});
    }
    for (int i = 0; i < now.kernel->parameter_count; ++i) {  // a large struct is copied from there
        const Parameter &p = now.kernel->parameters[i];
        const uintptr_t base = reinterpret_cast<uintptr_t>(now.launch->arguments[i]);
        if (p.kind == 's') add_region({base, size_t(p.size), base, "a parameter", nullptr, 0, -1, false, false, false, -1});
    }
    const Coordinates *built_in[] = {&threadIdx, &blockIdx, &blockDim, &gridDim};
    for (const Coordinates *c : built_in) {
        const uintptr_t base = reinterpret_cast<uintptr_t>(c);
        add_region({base, sizeof *c, base, "a built-in variable", nullptr, 0, -1, false, false, false, -1});
    }
    const size_t dynamic_size = now.launch->dynamic_shared;
    add_shared(dynamic_shared(), {"dynamic shared memory", nullptr, 0, dynamic_size, 0, {}, 0, nullptr});
    arena_end = dynamic_shared() + dynamic_size;
    for (int i = 0; i < file_scope_count; ++i) {
        const SharedVariable &v = file_scope[i];
        add_shared(static_cast<char *>(v.place), v);
    }
}

MULFREE_RARE inline void close_memory() {
    write_back();
    close_heap();
    for (Shadow &s : shadows) free_cells(s);
}

inline int region_at(uintptr_t address, uintptr_t pc) {
    uint32_t &hint = hint_of_pc[(pc ^ pc >> 10) & 1023];
    const Region &hinted = regions[hint];
    if (address - hinted.base < hinted.size) return static_cast<int>(hint);
    for (size_t i = 0; i < regions.count; ++i)
        if (address - regions[i].base < regions[i].size) {
            hint = static_cast<uint32_t>(i);
            return static_cast<int>(i);
        }
    return -1;
}

// ---- findings -----------------------------------------------------------------------------------

MULFREE_RARE inline Finding access_finding(Kind kind, uintptr_t address, size_t size, Access access, uintptr_t pc, int region) {
    Finding f = here(kind);
    f.access = access;
    f.size = static_cast<int>(size);
    f.pc = pc - module_base();
    f.region = region;
    f.offset = static_cast<int64_t>(address - (region < 0 ? 0 : regions[region].base));
    if (region >= 0 && region == heap.region && pieces.count) {
        f.piece = piece_at(static_cast<size_t>(f.offset < 0 ? 0 : f.offset));
        f.offset -= static_cast<int64_t>(f.piece.start);
    }
    return f;
}

// An access that must not be executed: this thread ends here.
MULFREE_RARE inline void refuse_access(Kind kind, uintptr_t address, size_t size, Access access, uintptr_t pc, int region) {
    if (region < 0) {
        // The nearest array is the one most likely meant; beyond a megabyte none is.
        uintptr_t nearest = 1 << 20;
        for (int i = 0; i < static_cast<int>(regions.count); ++i) {
            const Region &r = regions[i];
            const uintptr_t distance = address < r.base ? r.base - address : address - (r.base + r.size);
            if (distance < nearest) {
                nearest = distance;
                region = i;
            }
        }
    }
    Finding f = access_finding(kind, address, size, access, pc, region);
    const uintptr_t above_stack = address - reinterpret_cast<uintptr_t>(now.stack) - now.launch->stack_size;
    if (region < 0 && above_stack < guard_size) f.text = "goes beyond the end of a local array and of the thread's stack";
    report(f);
    leave_thread();
}

MULFREE_RARE inline Finding race_finding(const Stamp &other, uintptr_t address, size_t size, Access access, uintptr_t pc,
                            int region) {
    Finding f = access_finding(Kind::race, address, size, access, pc, region);
    f.other_pc = other.pc;
    f.other_access = static_cast<Access>(other.kind);
    f.other_thread = other.thread;
    f.other_block = block_of(other.time);
    f.atomic_between = atomic_between(other);
    const Thread &me = now.threads[now.current];
    f.passed = other.thread / warp_size == now.current / warp_size ? me.passed : me.passed_beyond_warp;
    return f;
}

// Two writes of one instruction to one place that nothing orders: harmless if the value is the same,
// which shows once the second is done, when its thread next calls the runtime.
struct Pending {
    Finding finding;
    size_t size;  // 0: none
    uintptr_t address;
    char before[16];
};
inline Pending pending;

MULFREE_RARE inline void settle_pending() {
    const bool same = std::memcmp(reinterpret_cast<void *>(pending.address), pending.before, pending.size) == 0;
    pending.size = 0;
    if (same) pending.finding.kind = Kind::same_value;
    report(pending.finding);
}

// Plain reads that guard an atomic access, as in `if (*d > v) atomicMin(d, v)` or before a loop around
// atomicCAS: what they read is a hint, and the atomic access decides. Findings with reads of such a
// line are dropped in the end (reading.py).
inline Rows<uint32_t> guards;

// The last plain reads of each thread, each of another place, in pairs by a hash of the address; older
// ones get lost.
struct Look {
    uintptr_t address;  // 0: none
    uint32_t pc, time;  // time 0: an atomic access has followed
};
constexpr size_t look_pairs = 16;
inline Look looks[max_threads][look_pairs][2];

// The current thread's last read of a place, or the one to forget for it.
inline Look &look_at(uintptr_t address) {
    Look *pair = looks[now.current][(address >> 2 ^ address >> 6) % look_pairs];
    if (pair[0].address != address) {
        const Look former = pair[0];
        pair[0] = pair[1];
        pair[1] = former;
    }
    return pair[0];
}

// Reads before an atomicAdd or an exchange, which write whatever the place holds: these guard only if some
// thread went without, as in `if (*count < limit) i = atomicAdd(count, 1)`.
inline Rows<uint32_t> conditions;
inline bool went_without[4096];  // by a hash of the read's pc

// Two plain reads of one place by one thread with no barrier between them: the first guards what the
// second guards.
struct Reread {
    uint32_t first, then;
};
inline Rows<Reread> rereads;
inline Reread last_rereads[256];  // those that need not be added again

MULFREE_RARE inline void add_reread(uint32_t first, uint32_t then) {
    Reread &last = last_rereads[(first * 31 + then) & 255];
    if (last.first == first && last.then == then) return;
    last = {first, then};
    if (rereads.count == 4096) return;
    now.busy = true;  // it may allocate: no signal may leave from here
    rereads.add(last);
    now.busy = false;
}

inline void look(uintptr_t address, uint32_t pc) {
    Look &last = look_at(address);
    if (last.address == address) {
        if (last.time) went_without[last.pc & 4095] = true;
        if (last.pc != pc && last.time >= now.floor) add_reread(last.pc, pc);
    }
    last = {address, pc, now.time};
}

inline bool is_among(const Rows<uint32_t> &pcs, uint32_t pc) {
    for (uint32_t known : pcs)
        if (known == pc) return true;
    return false;
}

MULFREE_RARE inline void add_once(Rows<uint32_t> &pcs, uint32_t pc) {
    if (is_among(pcs, pc)) return;
    now.busy = true;  // it may allocate: no signal may leave from here
    pcs.add(pc);
    now.busy = false;
}

// An atomic access of a thread that may have read there before: the cell says by which pc, or 0.
MULFREE_RARE inline void add_guard(uintptr_t address, uint32_t read, bool decides) {
    Look &last = look_at(address);
    if (last.address == address) {
        if (last.time >= now.floor) add_once(decides ? guards : conditions, last.pc);
        last.time = 0;
    } else if (decides && read) {
        add_once(guards, read);  // which may be another lane's
    }
}

MULFREE_RARE inline void open_guards() {
    guards.clear();
    conditions.clear();
    rereads.clear();
    std::memset(looks, 0, sizeof looks);
    std::memset(went_without, 0, sizeof went_without);
    std::memset(last_rereads, 0, sizeof last_rereads);
}

MULFREE_RARE inline void close_guards() {
    for (const auto &of_thread : looks)
        for (const auto &pair : of_thread)
            for (const Look &last : pair)
                if (last.time) went_without[last.pc & 4095] = true;
    for (uint32_t pc : conditions)
        if (went_without[pc & 4095]) guards.add(pc);
    for (bool more = true; more;) {
        more = false;
        for (const Reread &r : rereads)
            if (is_among(guards, r.then) && !is_among(guards, r.first)) {
                guards.add(r.first);
                more = true;
            }
    }
}

// ---- the shadow ---------------------------------------------------------------------------------

// Halves the cells as long as an access is smaller than one.
MULFREE_RARE inline void refine(Shadow &s, unsigned shift) {
    Shadow fine = s;
    fine.shift = shift;
    fine.cells = new_cells(s.size, shift);
    if (s.cells && fine.cells)
        for (size_t i = 0; i <= s.size >> shift; ++i) {
            const Cell &old = s.cells[i >> (s.shift - shift)];
            if (old.write.time | old.read.time) fine.cells[i] = old;
        }
    free_cells(s);
    s = fine;
}

// Says that nothing orders an access after an earlier one.
MULFREE_RARE inline void report_conflict(const Stamp &other, uintptr_t address, size_t size, Access access, uintptr_t pc,
                            int region) {
    const Access earlier = static_cast<Access>(other.kind);
    Finding f = race_finding(other, address, size, access, pc, region);
    if (access == Access::write && earlier == Access::write && f.pc == f.other_pc && size <= sizeof pending.before) {
        pending.finding = f;
        pending.size = size;
        pending.address = address;
        std::memcpy(pending.before, reinterpret_cast<void *>(address), size);
        return;
    }
    f.guard = access == Access::read && earlier == Access::atomic ? 1
              : access == Access::atomic && earlier == Access::read ? 2 : 0;
    if (f.guard) add_finding(f);  // until the end may show that the read is a guard
    else report(f);
}

inline void check_cells(int index, uintptr_t address, size_t size, Access access, uintptr_t pc, bool writes, bool decides) {
    const Region &region = regions[index];
    Shadow &s = shadows[region.shadow];
    const Thread &me = now.threads[now.current];
    if (size < size_t(1) << s.shift || address & ((size_t(1) << s.shift) - 1))
        refine(s, size == 2 && !(address & 1) ? 1 : 0);
    if (!s.cells) s.cells = new_cells(s.size, s.shift);
    if (!s.cells) return;
    const uint32_t offset = static_cast<uint32_t>(pc - module_base());
    Cell *cell = s.cells + ((address - s.base) >> s.shift);
    const Cell *end = s.cells + ((address - s.base + size - 1) >> s.shift);
    for (; cell <= end; ++cell) {
        const Stamp &write = cell->write;
        const bool both_atomic = access == Access::atomic && write.kind == uint8_t(Access::atomic);
        if (region.shared && access != Access::write && write.time < now.block_start) {
            report(access_finding(Kind::uninitialised, address, size, access, pc, index));
        } else if (!both_atomic && !follows(me, write, region.shared)) {
            report_conflict(write, address, size, access, pc, index);
        }
        Stamp &read = cell->read;
        if (writes) {
            // The lanes are those that have read since the last barrier.
            const bool mine = read.time >= now.floor && read.thread / warp_size == now.current / warp_size &&
                              (read.thread == now.current || (read.spread == uint8_t(Spread::warp) &&
                                                              read.lanes >> now.current % warp_size & 1));
            if (access == Access::atomic) add_guard(address, mine ? read.pc : 0, decides);
            if (!(access == Access::atomic && read.kind == uint8_t(Access::atomic)) &&
                !follows_reads(me, read, region.shared))
                report_conflict(read, address, size, access, pc, index);
            else if (access == Access::write)
                read = {};  // who comes after this write comes after these reads
            // A plain write is not made up for by an atomic one of the same thread.
            const bool plain = access == Access::atomic && write.kind == uint8_t(Access::write) &&
                               write.thread == now.current && write.time >= now.floor;
            if (plain) continue;
            cell->write = {now.time, offset, static_cast<uint16_t>(now.current), uint8_t(access), 0, 0};
        } else {
            add_reader(read, me, region.shared);
            // A plain reader is remembered rather than an atomic one: more conflicts with it.
            const bool alone = read.spread == uint8_t(Spread::thread);
            read.time = now.time;
            if (access == Access::atomic && !alone && read.kind == uint8_t(Access::read)) continue;
            read.pc = offset;
            read.thread = static_cast<uint16_t>(now.current);
            read.kind = uint8_t(access);
        }
    }
}

// An atomic access acquires, and releases if it writes.
inline void order_atomic(uintptr_t address, bool shared, bool writes) {
    now.busy = true;  // it may allocate: no signal may leave from here
    acquire(address);
    add_atomic(address);
    if (writes) release(address, shared);
    now.busy = false;
    if (now.interrupted) abandon_launch();
}

// Of arrays that overlap one may be writable; the arrays are the first regions.
inline bool is_writable(int index, uintptr_t address) {
    if (regions[index].writable) return true;
    for (int i = 0; i < now.launch->array_count; ++i)
        if (regions[i].writable && address - regions[i].base < regions[i].size) return true;
    return false;
}

// Every access of an instrumented kernel comes here before it is executed. An atomic one `decides` if what the
// place holds has a say in what is written.
inline void on_access(uintptr_t address, size_t size, size_t align, Access access, uintptr_t pc, bool writes,
                      bool decides = false) {
    if (!now.launch) return;  // an initialiser, while the module is loaded
    if (address - reinterpret_cast<uintptr_t>(now.stack) < now.launch->stack_size) return;  // local memory
    if (pending.size) settle_pending();
    if (now.launch->trace && trace->run[now.current % warp_size] == run_length) yield();
    if ((++now.accesses & 0xfffff) == 0) stop_if_out_of_time(pc);
    const int index = region_at(address, pc);
    if (index < 0 || address + size > regions[index].base + regions[index].size) {
        if (now.launch->check) refuse_access(Kind::out_of_bounds, address, size, access, pc, index);
        return;
    }
    if (index == heap.region && heap_valid(address - regions[index].base, size) < size && now.launch->check)
        refuse_access(Kind::out_of_bounds, address, size, access, pc, index);
    if (now.launch->check) {
        const bool shared = regions[index].shared;
        Thread &me = now.threads[now.current];
        me.touched = now.time;
        if (address & (align - 1)) refuse_access(Kind::misaligned, address, size, access, pc, index);
        if (writes) {
            if (!is_writable(index, address)) refuse_access(Kind::read_only, address, size, access, pc, index);
            ++me.steps;
            if (!shared) me.global_write = now.time;
        }
        if (access == Access::atomic) order_atomic(address, shared, writes);
        if (access == Access::read) look(address, static_cast<uint32_t>(pc - module_base()));
        check_cells(index, address, size, access, pc, writes, decides);
    }
    const Region &region = regions[index];
    if (!now.launch->trace || !region.counted) return;
    // A GPU moves 16 bytes at a time at most.
    for (size_t done = 0; done < size; done += 16) {
        const size_t piece = size - done < 16 ? size - done : 16;
        record(address - region.origin + done, piece, access, index, region.shared, pc - module_base());
    }
}

inline void on_access(uintptr_t address, size_t size, size_t align, Access access, uintptr_t pc) {
    on_access(address, size, align, access, pc, access != Access::read);
}

}  // namespace mulfree_emulator
