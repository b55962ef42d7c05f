// Fibers: one stack per CUDA thread, switched in assembly where possible.
//
// On x86-64 a switch saves six registers (about 10 ns); elsewhere ucontext does the work, which asks
// the kernel for the signal mask each time and is some forty times slower.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(MULFREE_UCONTEXT)
#define MULFREE_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace mulfree_emulator {

#ifdef MULFREE_OWN_SWITCH

struct Fiber {
    void *stack_pointer;
};

extern "C" void mulfree_switch(void **save, void *load);
asm(R"(
.text
.hidden mulfree_switch
.globl mulfree_switch
.type mulfree_switch, @function
mulfree_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size mulfree_switch, .-mulfree_switch
)");

inline void switch_fiber(Fiber &from, Fiber &to) { mulfree_switch(&from.stack_pointer, to.stack_pointer); }

inline void prepare_fiber(Fiber &fiber, char *stack, size_t size, void (*entry)()) {
    // entry() starts as if called: the stack pointer is 8 below a multiple of 16.
    void **top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t(15)));
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(entry);
    fiber.stack_pointer = top - 6;
}

// Below it a fiber that waits has nothing on its stack; null if that is not known.
inline char *lowest_used(const Fiber &fiber) { return static_cast<char *>(fiber.stack_pointer); }

#else

struct Fiber {
    ucontext_t context;
};

inline char *lowest_used(const Fiber &) { return nullptr; }

inline void switch_fiber(Fiber &from, Fiber &to) { swapcontext(&from.context, &to.context); }

inline void prepare_fiber(Fiber &fiber, char *stack, size_t size, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = size;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

#endif

}  // namespace mulfree_emulator
