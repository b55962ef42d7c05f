// The calls that -fsanitize=thread and -fsanitize=bounds put into a kernel. Nothing of the sanitizers'
// own runtimes is linked: these functions are the emulator's.
#pragma once

#include "memory.h"

namespace mulfree_emulator {

#define MULFREE_CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

extern "C" {

#define MULFREE_CALLBACKS(size)                                                                             \
    void __tsan_read##size(void *p) { on_access(uintptr_t(p), size, size, Access::read, MULFREE_CALLER); }  \
    void __tsan_write##size(void *p) { on_access(uintptr_t(p), size, size, Access::write, MULFREE_CALLER); } \
    void __tsan_unaligned_read##size(void *p) { on_access(uintptr_t(p), size, 1, Access::read, MULFREE_CALLER); }   \
    void __tsan_unaligned_write##size(void *p) { on_access(uintptr_t(p), size, 1, Access::write, MULFREE_CALLER); } \
    void __tsan_volatile_read##size(void *p) { on_volatile(p, size, Access::read, MULFREE_CALLER); }        \
    void __tsan_volatile_write##size(void *p) { on_volatile(p, size, Access::write, MULFREE_CALLER); }      \
    void __tsan_unaligned_volatile_read##size(void *p) { on_volatile(p, size, Access::read, MULFREE_CALLER); }      \
    void __tsan_unaligned_volatile_write##size(void *p) { on_volatile(p, size, Access::write, MULFREE_CALLER); }

static void spin(uintptr_t pc) {
    if ((++now.spins & 63) != 0) return;
    now.threads[now.current].spin = pc;
    yield();
}

// A volatile access to global memory is how a block waits for another: it counts as atomic. In shared
// memory it is no substitute for __syncwarp and counts as the plain access it is.
static void on_volatile(void *p, size_t size, Access access, uintptr_t pc) {
    if (access == Access::read) spin(pc);
    const uintptr_t address = uintptr_t(p);
    const int index = region_at(address, pc);
    const bool global = index >= 0 && !regions[index].shared;
    on_access(address, size, size, global ? Access::atomic : access, pc, access == Access::write);
}

MULFREE_CALLBACKS(1)
MULFREE_CALLBACKS(2)
MULFREE_CALLBACKS(4)
MULFREE_CALLBACKS(8)
MULFREE_CALLBACKS(16)
#undef MULFREE_CALLBACKS

void __tsan_read_range(void *p, size_t size) { on_access(uintptr_t(p), size, 1, Access::read, MULFREE_CALLER); }
void __tsan_write_range(void *p, size_t size) { on_access(uintptr_t(p), size, 1, Access::write, MULFREE_CALLER); }
// A constructor sets the pointer to the table of its class's virtual functions.
void __tsan_vptr_update(void **p, void *) { on_access(uintptr_t(p), sizeof *p, sizeof *p, Access::write, MULFREE_CALLER); }
void __tsan_vptr_read(void **p) { on_access(uintptr_t(p), sizeof *p, sizeof *p, Access::read, MULFREE_CALLER); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// The announcements of emulator.h: atomics and copies that are not plain loads and stores.
void mulfree_atomic(void *p, int size, bool decides) {
    if (now.launch->check || now.launch->trace)
        on_access(uintptr_t(p), size_t(size), size_t(size), Access::atomic, MULFREE_CALLER, true, decides);
}

void mulfree_spin() { spin(MULFREE_CALLER); }

static void on_copy(const void *p, size_t size, Access access, uintptr_t pc) {
    if (size && now.launch && (now.launch->check || now.launch->trace)) on_access(uintptr_t(p), size, 1, access, pc);
}

void *mulfree_memcpy(void *to, const void *from, size_t size) {
    on_copy(from, size, Access::read, MULFREE_CALLER);
    on_copy(to, size, Access::write, MULFREE_CALLER);
    return std::memcpy(to, from, size);
}

void *mulfree_memmove(void *to, const void *from, size_t size) {
    on_copy(from, size, Access::read, MULFREE_CALLER);
    on_copy(to, size, Access::write, MULFREE_CALLER);
    return std::memmove(to, from, size);
}

void *mulfree_memset(void *to, int value, size_t size) {
    on_copy(to, size, Access::write, MULFREE_CALLER);
    return std::memset(to, value, size);
}

// The linker leads some functions of the C library here (compiler.py): those that write through a pointer, ...
static void on_result(void *p, size_t size, uintptr_t pc) {
    if (now.launch && (now.launch->check || now.launch->trace)) on_access(uintptr_t(p), size, size, Access::write, pc);
}

#define MULFREE_WRAP(T)                                                \
    void MULFREE_NAME(__real_sincos)(T, T *, T *);                     \
    T MULFREE_NAME(__real_modf)(T, T *);                               \
    T MULFREE_NAME(__real_frexp)(T, int *);                            \
    T MULFREE_NAME(__real_remquo)(T, T, int *);                        \
    void MULFREE_NAME(__wrap_sincos)(T x, T *s, T *c) {                \
        on_result(s, sizeof *s, MULFREE_CALLER);                       \
        on_result(c, sizeof *c, MULFREE_CALLER);                       \
        MULFREE_NAME(__real_sincos)(x, s, c);                          \
    }                                                                  \
    T MULFREE_NAME(__wrap_modf)(T x, T *whole) {                       \
        on_result(whole, sizeof *whole, MULFREE_CALLER);               \
        return MULFREE_NAME(__real_modf)(x, whole);                    \
    }                                                                  \
    T MULFREE_NAME(__wrap_frexp)(T x, int *exponent) {                 \
        on_result(exponent, sizeof *exponent, MULFREE_CALLER);         \
        return MULFREE_NAME(__real_frexp)(x, exponent);                \
    }                                                                  \
    T MULFREE_NAME(__wrap_remquo)(T x, T y, int *quotient) {           \
        on_result(quotient, sizeof *quotient, MULFREE_CALLER);         \
        return MULFREE_NAME(__real_remquo)(x, y, quotient);            \
    }
#define MULFREE_NAME(name) name
MULFREE_WRAP(double)
#undef MULFREE_NAME
#define MULFREE_NAME(name) name##f
MULFREE_WRAP(float)
#undef MULFREE_NAME
#undef MULFREE_WRAP

// ... those of which a number and a NaN give the number, which would hide that a lane read from nowhere, ...
#define MULFREE_PASS_ON(name, T, before)                                              \
    T __real_##name(T, T);                                                            \
    T __wrap_##name(T a, T b) {                                                       \
        if (!__builtin_isunordered(a, b)) return a before b ? a : b;                  \
        return is_from_nowhere(a) ? a : is_from_nowhere(b) ? b : __real_##name(a, b); \
    }
MULFREE_PASS_ON(fmaxf, float, >)
MULFREE_PASS_ON(fminf, float, <)
MULFREE_PASS_ON(fmax, double, >)
MULFREE_PASS_ON(fmin, double, <)
#undef MULFREE_PASS_ON

// ... and those that end the process.
static void leave_by(const char *text, Kind kind, uintptr_t pc) {
    Finding f = here(kind);
    f.text = text;
    f.pc = pc - module_base();
    report(f);
    leave_thread();
}

#define MULFREE_ENDS(name) \
    void __wrap_##name(int) { leave_by("calls " #name "(), which a GPU has not", Kind::trap, MULFREE_CALLER); }
MULFREE_ENDS(exit)
MULFREE_ENDS(_exit)
MULFREE_ENDS(_Exit)
MULFREE_ENDS(quick_exit)
MULFREE_ENDS(abort)
#undef MULFREE_ENDS

// A function of an instrumented kernel finds on its return what lies above its local arrays changed.
void __stack_chk_fail() {
    leave_by("has written beyond the end of a local array of the function", Kind::out_of_bounds, MULFREE_CALLER);
}

struct SourceLocation { const char *file; uint32_t line, column; };
struct TypeDescriptor { uint16_t kind, info; char name[1]; };
struct OutOfBounds { SourceLocation location; const TypeDescriptor *array, *index; };

void __ubsan_handle_out_of_bounds(OutOfBounds *data, uintptr_t index) {
    if (!now.launch->check) return;
    Finding f = here(Kind::out_of_row);
    f.file = data->location.file;
    f.line = static_cast<int>(data->location.line);
    f.column = static_cast<int>(data->location.column);
    f.text = data->array->name;
    f.offset = static_cast<int64_t>(index);
    report(f);
    leave_thread();  // the access follows, and nothing looks at it if it is to local memory
}

}  // extern "C"

}  // namespace mulfree_emulator
