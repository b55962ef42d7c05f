// Signals during a launch: Ctrl-C leaves it at once, the crash of an unchecked kernel becomes a finding.
#pragma once

#include <pthread.h>
#include <ucontext.h>

#include <csignal>

#include "memory.h"

namespace mulfree_emulator {

constexpr int caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGINT};
inline struct sigaction former[4];
inline pthread_t launching;
alignas(16) inline char signal_stack[32768];

inline uint64_t faulting_pc(void *context) {
    uintptr_t pc = 0;
#if defined(__x86_64__) && defined(__linux__)
    pc = static_cast<uintptr_t>(static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__) && defined(__linux__)
    pc = static_cast<uintptr_t>(static_cast<ucontext_t *>(context)->uc_mcontext.pc);
#endif
    const bool ours = pc - module_base() < static_cast<uintptr_t>(&_end - &__ehdr_start);
    return ours ? pc - module_base() + 1 : 0;  // as if it were a return address
}

inline void on_signal(int number, siginfo_t *info, void *context) {
    int which = 0;
    while (caught[which] != number) ++which;
    const struct sigaction &old = former[which];
    const bool ours = pthread_equal(pthread_self(), launching);
    if (number == SIGINT || !ours) {
        if (number == SIGINT && old.sa_handler == SIG_IGN) return;
        if (number == SIGINT) now.interrupted = true;
        if (old.sa_flags & SA_SIGINFO) old.sa_sigaction(number, info, context);
        else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) old.sa_handler(number);
        else if (number != SIGINT) sigaction(number, &old, nullptr);  // again, and for good
        if (number != SIGINT || !ours || now.busy) return;
    } else {
        Finding f = here(Kind::crash);
        f.text = number == SIGFPE ? "an integer division by zero" : "an access outside of all memory";
        f.pc = faulting_pc(context);
        add_finding(f);
    }
    siglongjmp(now.abandon, 1);
}

inline void catch_signals(stack_t &former_stack) {
    stack_t mine{};
    mine.ss_sp = signal_stack;
    mine.ss_size = sizeof signal_stack;
    sigaltstack(&mine, &former_stack);
    launching = pthread_self();
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < 4; ++i) sigaction(caught[i], &action, &former[i]);
}

inline void restore_signals(const stack_t &former_stack) {
    for (int i = 0; i < 4; ++i) sigaction(caught[i], &former[i], nullptr);
    sigaltstack(&former_stack, nullptr);
}

}  // namespace mulfree_emulator
