// Which memory a kernel may touch, and who touched it last.
//
// Every array passed, every __shared__ variable and the module's own variables are a Region. A region
// has a shadow: for each of its cells (a word, or less once a kernel goes below words) the last write
// and the last read, each stamped with thread and phase. A phase is the interval between two barriers
// of a block; phases are numbered through the launch, so that a stamp also tells its block.
#pragma once

#include <sys/mman.h>

#include <vector>

#include "state.h"
#include "trace.h"

extern "C" {
// The module's own image, from the linker: __device__ and __constant__ variables lie in it.
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}

namespace mulfree_emulator {

enum class Spread : uint8_t { thread, warp, block, grid };  // who has read the cell

struct Stamp {
    uint32_t phase;  // 0: never
    uint32_t pc;
    uint32_t warp_phase;
    uint16_t thread;
    uint8_t kind;    // Access
    uint8_t detail;  // of a read: Spread; of an atomic access: whether a __threadfence came before
};

struct Cell {
    Stamp write, read;
};

// The launcher reads this layout in emulator/runtime.py.
struct Region {
    uintptr_t base;
    size_t size;
    uintptr_t origin;         // of the allocation that it is part of
    const char *name, *file;  // of a __shared__ variable
    int32_t line, array;      // of an array passed: the launcher's number for it, else -1
    int32_t shared, shadow;   // shadow: index of its shadow
};

struct Shadow {
    uintptr_t base;
    size_t size;
    unsigned shift;  // log2 of the bytes in a cell
    Cell *cells;
};

constexpr unsigned max_regions = 1024, max_shadows = max_regions;
constexpr size_t red_zone = 256;  // between __shared__ variables; keeps their banks as they are
constexpr size_t static_limit = 48 << 10;
constexpr size_t arena_size = 1 << 20;  // 227 KiB of dynamic and 48 KiB of static memory, far apart

inline Region region_table[max_regions];
inline int regions_used;
inline Shadow shadows[max_shadows];
inline int shadows_used;
inline uint16_t hint_of_pc[1024];
inline char *arena_end;
inline size_t static_used;
inline std::vector<uint32_t> first_phase;  // of each block so far

// Where the __shared__ variables of a block lie; dynamic shared memory comes first.
inline char *arena() {
    static char *const memory = static_cast<char *>(mmap(nullptr, arena_size, PROT_READ | PROT_WRITE,
                                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return memory;
}

inline char *dynamic_shared() { return arena() + red_zone; }

inline uintptr_t module_base() { return reinterpret_cast<uintptr_t>(&__ehdr_start); }

// ---- regions ------------------------------------------------------------------------------------

inline Cell *new_cells(size_t bytes, unsigned shift) {
    void *p = mmap(nullptr, ((bytes >> shift) + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<Cell *>(p);
}

inline void free_cells(Shadow &s) {
    if (s.cells) munmap(s.cells, ((s.size >> s.shift) + 1) * sizeof(Cell));
    s.cells = nullptr;
}

// Arrays that overlap share one shadow, so that a race through two views of one array is seen.
inline int shadow_for(uintptr_t base, size_t size) {
    for (int i = 0; i < shadows_used; ++i) {
        Shadow &s = shadows[i];
        if (base >= s.base + s.size || s.base >= base + size) continue;
        const uintptr_t end = s.base + s.size > base + size ? s.base + s.size : base + size;
        s.base = (s.base < base ? s.base : base) & ~uintptr_t(3);
        s.size = end - s.base;
        return i;
    }
    shadows[shadows_used] = {base & ~uintptr_t(3), size + (base & 3), 2, nullptr};
    return shadows_used++;
}

inline void add_region(Region r) {
    if (regions_used == int(max_regions))
        mulfree_trap("has too many __shared__ variables for the emulator", r.file, r.line);
    r.shadow = shadow_for(r.base, r.size);
    region_table[regions_used++] = r;
}

inline void add_shared(const char *place, size_t size, const char *name, const char *file, int line) {
    static_used += file ? size : 0;
    if (static_used > static_limit)
        mulfree_trap("uses too much static shared memory (48 KiB at most)", file, line);
    const uintptr_t base = reinterpret_cast<uintptr_t>(place);
    add_region({base, size, base, name, file, line, -1, true, -1});
}

inline char *after(const char *end, size_t align) {
    if (align < red_zone) align = red_zone;
    return reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(end) + red_zone + align - 1) / align * align);
}

inline void *place_shared(const SharedVariable &v) {
    char *place = after(arena_end, v.align);
    arena_end = place + v.size;
    add_shared(place, v.size, v.name, v.file, v.line);
    return place;
}

// __shared__ variables at file scope get their place when the module is loaded, above the others.
constexpr int max_file_scope = 64;
inline SharedVariable file_scope[max_file_scope];
inline int file_scope_count;

inline void *place_for_good(SharedVariable v) {
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

// Checked kernels work on copies of the arrays that lie far apart and begin as CuPy's allocations do:
// an overrun lands in no other array, and alignment is what it would be on a GPU. Arrays that overlap
// are one copy.
struct Copy {
    char *memory;
    size_t mapped;
    uintptr_t low, high, start;  // what was copied, and whereto
};

inline Copy copies[max_regions];
inline int copies_used;
constexpr size_t gap = 1 << 20;

inline void copy_array(const Array &a) {
    const uintptr_t base = reinterpret_cast<uintptr_t>(a.base);
    Copy *c = copies_used ? &copies[copies_used - 1] : nullptr;
    if (!c || base >= c->high) {
        uintptr_t high = base + a.size;
        for (const Array *b = &a; b != now.launch->arrays + now.launch->array_count; ++b) {
            const uintptr_t start = reinterpret_cast<uintptr_t>(b->base);
            if (start >= high) break;
            if (start + b->size > high) high = start + b->size;
        }
        c = &copies[copies_used++];
        *c = {nullptr, 2 * gap + 256 + (high - base), base, high, 0};
        c->memory = static_cast<char *>(mmap(nullptr, c->mapped, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        c->start = reinterpret_cast<uintptr_t>(c->memory) + gap + ((base - reinterpret_cast<uintptr_t>(a.origin)) & 255);
        std::memcpy(reinterpret_cast<void *>(c->start), a.base, high - base);
    }
    *a.pointer = c->start + (base - c->low);
}

inline void write_back() {
    for (int i = 0; i < now.launch->array_count && copies_used; ++i) {
        const Array &a = now.launch->arrays[i];
        if (a.writable) std::memcpy(a.base, reinterpret_cast<void *>(*a.pointer), a.size);
    }
    for (int i = 0; i < copies_used; ++i) munmap(copies[i].memory, copies[i].mapped);
    copies_used = 0;
}

// Unchecked kernels have copies if one of the arrays is read-only: they may cast its const away.
inline bool needs_copies() {
    bool needed = now.launch->check;
    for (int i = 0; i < now.launch->array_count; ++i) needed |= !now.launch->arrays[i].writable;
    return needed;
}

inline void open_memory() {
    regions_used = shadows_used = 0;
    const bool copied = needs_copies();
    static_used = 0;
    std::memset(hint_of_pc, 0, sizeof hint_of_pc);
    for (int i = 0; i < now.launch->array_count; ++i) {
        const Array &a = now.launch->arrays[i];
        if (copied) copy_array(a);
        const uintptr_t base = *a.pointer;
        const uintptr_t before = reinterpret_cast<uintptr_t>(a.base) - reinterpret_cast<uintptr_t>(a.origin);
        add_region({base, a.size, base - before, nullptr, nullptr, 0, a.name, false, -1});
    }
    const size_t module_size = static_cast<size_t>(&_end - &__ehdr_start);
    add_region({module_base(), module_size, module_base(), nullptr, nullptr, 0, -1, false, -1});
    const size_t dynamic_size = now.launch->dynamic_shared;
    add_shared(dynamic_shared(), dynamic_size, "dynamic shared memory", nullptr, 0);
    arena_end = dynamic_shared() + dynamic_size;
    for (int i = 0; i < file_scope_count; ++i) {
        const SharedVariable &v = file_scope[i];
        add_shared(static_cast<char *>(v.place), v.size, v.name, v.file, v.line);
    }
    first_phase.clear();
}

inline void close_memory() {
    write_back();
    for (int i = 0; i < shadows_used; ++i) free_cells(shadows[i]);
}

inline void begin_block() {
    now.block_phase = now.phase;
    if (!now.launch->check) return;
    now.busy = true;  // it may allocate: no signal may leave from here
    first_phase.push_back(now.phase);
    now.busy = false;
    if (now.interrupted) abandon_launch();
}

inline uint64_t block_of(uint32_t phase) {
    size_t low = 0, high = first_phase.size();
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        (first_phase[middle] <= phase ? low : high) = middle;
    }
    return low;
}

inline int region_at(uintptr_t address, uintptr_t pc) {
    uint16_t &hint = hint_of_pc[(pc ^ pc >> 10) & 1023];
    const Region &hinted = region_table[hint];
    if (address - hinted.base < hinted.size) return hint;
    for (int i = 0; i < regions_used; ++i)
        if (address - region_table[i].base < region_table[i].size) {
            hint = static_cast<uint16_t>(i);
            return i;
        }
    return -1;
}

// ---- findings -----------------------------------------------------------------------------------

inline Finding access_finding(Kind kind, uintptr_t address, size_t size, Access access, uintptr_t pc, int region) {
    Finding f = here(kind);
    f.access = access;
    f.size = static_cast<int>(size);
    f.pc = pc - module_base();
    f.region = region;
    f.offset = static_cast<int64_t>(address - (region < 0 ? 0 : region_table[region].base));
    return f;
}

// An access that must not be executed: this thread ends here.
inline void refuse_access(Kind kind, uintptr_t address, size_t size, Access access, uintptr_t pc, int region) {
    if (region < 0) {
        // The nearest array is the one most likely meant; beyond a megabyte none is.
        uintptr_t nearest = 1 << 20;
        for (int i = 0; i < regions_used; ++i) {
            const Region &r = region_table[i];
            const uintptr_t distance = address < r.base ? r.base - address : address - (r.base + r.size);
            if (distance < nearest && r.size) {
                nearest = distance;
                region = i;
            }
        }
    }
    report(access_finding(kind, address, size, access, pc, region));
    leave_thread();
}

inline void report_race(const Stamp &other, uintptr_t address, size_t size, Access access, uintptr_t pc,
                        int region) {
    Finding f = access_finding(Kind::race, address, size, access, pc, region);
    f.other_pc = other.pc;
    f.other_access = static_cast<Access>(other.kind);
    f.other_thread = other.thread;
    f.other_block = block_of(other.phase);
    report(f);
}

// ---- the shadow ---------------------------------------------------------------------------------

// Halves the cells as long as an access is smaller than one.
inline void refine(Shadow &s, unsigned shift) {
    Shadow fine = s;
    fine.shift = shift;
    fine.cells = new_cells(s.size, shift);
    if (s.cells && fine.cells)
        for (size_t i = 0; i <= s.size >> shift; ++i) {
            const Cell &old = s.cells[i >> (s.shift - shift)];
            if (old.write.phase | old.read.phase) fine.cells[i] = old;
        }
    free_cells(s);
    s = fine;
}

inline Stamp stamp(const Thread &me, uint32_t pc, Access kind, uint8_t detail) {
    return {now.phase, pc, me.warp_phase, static_cast<uint16_t>(now.current), uint8_t(kind), detail};
}

// Whether an earlier access may run at the same time as one by the current thread.
inline bool concurrent(const Stamp &other, const Thread &me, bool shared) {
    if (other.phase < now.block_phase) return other.phase && !shared && !now.acquired;
    if (other.phase != now.phase || other.thread == now.current) return false;
    return other.thread / warp_size != now.current / warp_size || other.warp_phase >= me.warp_phase;
}

inline bool read_by_others(const Stamp &read, const Thread &me, bool shared) {
    if (!read.phase) return false;
    if (read.detail == uint8_t(Spread::grid)) return !now.acquired;
    if (read.phase == now.phase && read.detail == uint8_t(Spread::block)) return true;
    if (read.phase == now.phase && read.detail == uint8_t(Spread::warp))
        return read.thread / warp_size != now.current / warp_size || read.warp_phase >= me.warp_phase;
    return concurrent(read, me, shared);
}

inline void note_read(Stamp &read, const Thread &me, uint32_t pc, bool shared) {
    Spread spread = Spread::thread;
    if (read.phase && read.phase < now.block_phase && !shared) {
        spread = Spread::grid;
    } else if (read.phase >= now.block_phase && read.detail == uint8_t(Spread::grid)) {
        spread = Spread::grid;
    } else if (read.phase == now.phase) {
        spread = static_cast<Spread>(read.detail);
        if (read.thread / warp_size != now.current / warp_size) spread = Spread::block;
        else if (spread != Spread::block && read.warp_phase < me.warp_phase) spread = Spread::thread;
        else if (spread == Spread::thread && read.thread != now.current) spread = Spread::warp;
    }
    read = stamp(me, pc, Access::read, uint8_t(spread));
}

inline void check_cells(int index, uintptr_t address, size_t size, Access access, uintptr_t pc) {
    const Region &region = region_table[index];
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
        if (region.shared && access != Access::write && write.phase < now.block_phase) {
            report(access_finding(Kind::uninitialised, address, size, access, pc, index));
        } else if (both_atomic) {
            if (!region.shared && write.phase < now.block_phase && write.detail) now.acquired = true;
        } else if (concurrent(write, me, region.shared)) {
            report_race(write, address, size, access, pc, index);
        }
        if (access == Access::read) {
            note_read(cell->read, me, offset, region.shared);
            continue;
        }
        if (read_by_others(cell->read, me, region.shared))
            report_race(cell->read, address, size, access, pc, index);
        const bool released = access == Access::atomic && (now.fenced || (both_atomic && write.detail));
        cell->write = stamp(me, offset, access, released);
    }
}

// Of arrays that overlap one may be writable; the arrays are the first regions.
inline bool is_writable(int index, uintptr_t address) {
    const int count = now.launch->array_count;
    if (index >= count || now.launch->arrays[index].writable) return true;
    for (int i = 0; i < count; ++i)
        if (address - region_table[i].base < region_table[i].size && now.launch->arrays[i].writable) return true;
    return false;
}

// Every access of an instrumented kernel comes here before it is executed.
inline void on_access(uintptr_t address, size_t size, size_t align, Access access, uintptr_t pc, bool writes) {
    if (!now.launch) return;  // an initialiser, while the module is loaded
    if (address - reinterpret_cast<uintptr_t>(now.stack) < now.launch->stack_size) return;  // local memory
    if ((++now.accesses & 0xfffff) == 0) stop_if_out_of_time();
    const int index = region_at(address, pc);
    if (index < 0 || address + size > region_table[index].base + region_table[index].size) {
        if (now.launch->check) refuse_access(Kind::out_of_bounds, address, size, access, pc, index);
        return;
    }
    if (now.launch->check) {
        if (address & (align - 1)) refuse_access(Kind::misaligned, address, size, access, pc, index);
        if (writes) {
            if (!is_writable(index, address)) refuse_access(Kind::read_only, address, size, access, pc, index);
            ++now.threads[now.current].steps;
        }
        check_cells(index, address, size, access, pc);
    }
    const bool is_module = index == now.launch->array_count;  // added right after the arrays
    const Region &region = region_table[index];
    if (!now.launch->trace || is_module) return;
    // A GPU moves 16 bytes at a time at most.
    for (size_t done = 0; done < size; done += 16) {
        const size_t piece = size - done < 16 ? size - done : 16;
        record(address - region.origin + done, piece, access, region.shared, pc - module_base());
    }
}

inline void on_access(uintptr_t address, size_t size, size_t align, Access access, uintptr_t pc) {
    on_access(address, size, align, access, pc, access != Access::read);
}

}  // namespace mulfree_emulator
