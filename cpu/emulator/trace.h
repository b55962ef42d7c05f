// Counts memory requests: the addresses of a warp's lanes at one execution of an instruction are one request. A GPU's
// lanes run in lockstep; here lanes run sequentially, so the n-th accesses of the lanes at an instruction, since the
// warp last synchronised, are one request.
#pragma once

#include <cstdlib>
#include <cstring>

#include "rows.h"
#include "state.h"

namespace mulfree_emulator {

// Totals of one instruction (the launcher reads this layout in emulator/runtime.py).
struct Site {
    uint64_t pc;
    int32_t kind;     // Access
    int32_t shared;
    uint64_t accesses, bytes, requests;
    uint64_t sectors;     // 32-byte pieces of global memory that its requests touch
    uint64_t wavefronts;  // passes over the 32 banks that its shared requests need
    uint64_t conflicts;   // wavefronts beyond the fewest possible
};

struct BarrierSite {
    const char *file;
    int64_t line;
    uint64_t count;
};

// A request of the block that the launch follows (the same layout in emulator/runtime.py).
struct Event {
    uint32_t site, warp;
    uint32_t interval;  // the barriers that the block had passed
    uint32_t lanes, size;
    uint32_t region[32];   // of each lane's access,
    uint64_t address[32];  // and where, from the origin of the region
};

constexpr size_t max_events = 100000;
constexpr unsigned max_sites = 4096, max_barrier_sites = 256;
constexpr unsigned run_length = 256;  // accesses of a lane before it waits for its warp

struct Request {
    unsigned site;
    uint32_t lanes;
    unsigned size;
    uint32_t region[warp_size];
    uintptr_t address[warp_size];
};

struct Trace {
    Site sites[max_sites];
    unsigned site_count;
    uint16_t site_of[2 * max_sites];  // hashed by pc, kind and space; 0 is empty
    uint16_t occurrence[max_sites][warp_size];
    uint16_t request_of[max_sites][run_length];  // 0: none yet
    Request requests[warp_size * run_length + 1];
    unsigned request_count;
    unsigned run[warp_size];
    BarrierSite barriers[max_barrier_sites];
    unsigned barrier_count;
};

inline Trace *trace;
inline Rows<Event> events;

inline void open_trace() {
    events.clear();
    std::free(trace);
    trace = static_cast<Trace *>(std::calloc(1, sizeof(Trace)));
}

inline unsigned site_index(uintptr_t pc, Access kind, bool shared) {
    const uint64_t key = (uint64_t(pc) << 3 | uint64_t(kind) << 1 | uint64_t(shared));
    unsigned slot = static_cast<unsigned>(key * 0x9E3779B97F4A7C15u >> 51);  // 13 bits: 2 * max_sites
    for (;; slot = (slot + 1) % (2 * max_sites)) {
        unsigned index = trace->site_of[slot];
        if (!index) {
            if (trace->site_count + 1 == max_sites) return max_sites - 1;  // the rest share one line
            index = trace->site_of[slot] = static_cast<uint16_t>(++trace->site_count);
            trace->sites[index] = {pc, int32_t(kind), shared, 0, 0, 0, 0, 0, 0};
            return index;
        }
        const Site &site = trace->sites[index];
        if (site.pc == pc && site.kind == int32_t(kind) && site.shared == int32_t(shared)) return index;
    }
}

inline void record(uintptr_t address, size_t size, Access kind, int region, bool shared, uintptr_t pc) {
    const unsigned lane = now.current % warp_size;
    if (trace->run[lane] == run_length) yield();
    const unsigned index = site_index(pc, kind, shared);
    uint16_t &request = trace->request_of[index][trace->occurrence[index][lane]++];
    if (!request) {
        request = static_cast<uint16_t>(++trace->request_count);
        trace->requests[request].site = index;
        trace->requests[request].lanes = 0;
    }
    Request &r = trace->requests[request];
    r.lanes |= 1u << lane;
    r.size = static_cast<unsigned>(size);
    r.region[lane] = static_cast<uint32_t>(region);
    r.address[lane] = address;
    ++trace->run[lane];
}

// Distinct pieces of `grain` bytes that the lanes first .. last touch.
inline unsigned distinct(const Request &r, unsigned first, unsigned last, unsigned grain, uintptr_t *found) {
    unsigned n = 0;
    for (unsigned lane = first; lane < last; ++lane) {
        if (!(r.lanes >> lane & 1)) continue;
        const uintptr_t end = (r.address[lane] + r.size - 1) / grain;
        for (uintptr_t piece = r.address[lane] / grain; piece <= end; ++piece) {
            unsigned i = n;
            while (i && found[i - 1] != piece) --i;
            if (!i) found[n++] = piece;
        }
    }
    return n;
}

inline void count_request(const Request &r, Site &site) {
    const unsigned accesses = static_cast<unsigned>(__builtin_popcount(r.lanes));
    uintptr_t pieces[warp_size * 5];  // 16 bytes touch five words at most
    ++site.requests;
    site.accesses += accesses;
    site.bytes += uint64_t(accesses) * r.size;
    if (!site.shared) {
        site.sectors += distinct(r, 0, warp_size, 32, pieces);
        return;
    }
    // 8-byte accesses go by half warps, 16-byte ones by quarters; each part is one pass at least.
    const unsigned part = r.size <= 4 ? 32 : r.size <= 8 ? 16 : 8;
    for (unsigned first = 0; first < warp_size; first += part) {
        const unsigned words = distinct(r, first, first + part, 4, pieces);
        unsigned banks[32] = {}, passes = 0;
        for (unsigned i = 0; i < words; ++i) {
            const unsigned n = ++banks[pieces[i] % 32];
            if (n > passes) passes = n;
        }
        site.wavefronts += passes;
        if (passes) site.conflicts += passes - 1;
    }
}

inline void keep_request(const Request &r, unsigned warp) {
    if (events.count == max_events) return;
    Event e{r.site, warp, now.interval, r.lanes, r.size, {}, {}};
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(r.lanes >> lane & 1)) continue;
        e.region[lane] = r.region[lane];
        e.address[lane] = r.address[lane];
    }
    events.add(e);
}

// Called when all lanes of a warp have stopped.
inline void count_requests(unsigned warp) {
    const bool followed = int64_t(now.block) == now.launch->followed;
    for (unsigned i = 1; i <= trace->request_count; ++i) {
        const Request &r = trace->requests[i];
        count_request(r, trace->sites[r.site]);
        if (followed) keep_request(r, warp);
        std::memset(trace->occurrence[r.site], 0, sizeof trace->occurrence[r.site]);
    }
    for (unsigned i = 1; i <= trace->request_count; ++i) {
        uint16_t *slots = trace->request_of[trace->requests[i].site];
        for (unsigned n = 0; n < run_length && slots[n]; ++n) slots[n] = 0;
    }
    trace->request_count = 0;
    std::memset(trace->run, 0, sizeof trace->run);
}

inline void count_barrier(const Thread &t) {
    for (unsigned i = 0; i < max_barrier_sites; ++i) {
        BarrierSite &b = trace->barriers[i];
        if (i == trace->barrier_count) {
            b = {t.file, t.line, 0};
            ++trace->barrier_count;
        }
        if (b.line != t.line || std::strcmp(b.file, t.file) != 0) continue;
        ++b.count;
        return;
    }
}

}  // namespace mulfree_emulator
