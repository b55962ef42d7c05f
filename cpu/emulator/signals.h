// Signals during a launch: Ctrl-C leaves it at once, the crash of an unchecked kernel becomes a finding,
// and so does, on Linux, the loop that is still running when the time is up.
#pragma once

#include <pthread.h>
#include <ucontext.h>

#include <csignal>
#include <ctime>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "memory.h"

namespace mulfree_emulator {

constexpr int caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGINT};
constexpr int caught_count = sizeof caught / sizeof caught[0];
inline struct sigaction former[caught_count];
inline pthread_t launching;
alignas(16) inline char signal_stack[32768];

// The address of the instruction that a signal came at; 0 if that is not known.
inline uintptr_t interrupted_address(void *context) {
#if defined(__x86_64__) && defined(__linux__)
    return static_cast<uintptr_t>(static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__) && defined(__linux__)
    return static_cast<uintptr_t>(static_cast<ucontext_t *>(context)->uc_mcontext.pc);
#else
    return 0;
#endif
}

// Where a call that went to no code returns to.
inline uintptr_t return_address(void *context) {
#if defined(__x86_64__) && defined(__linux__)
    return *reinterpret_cast<uintptr_t *>(static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_RSP]);
#elif defined(__aarch64__) && defined(__linux__)
    return static_cast<uintptr_t>(static_cast<ucontext_t *>(context)->uc_mcontext.regs[30]);
#else
    return 0;
#endif
}

// An address in the kernel's text as an offset in the module; 0 in other code.
inline uint64_t offset_of(uintptr_t pc) {
    const uintptr_t offset = pc - module_base();
    return offset < static_cast<uintptr_t>(&_end - &__ehdr_start) ? offset : 0;
}

// Where in the kernel's text a signal came, as if it were a return address; 0 in other code.
inline uint64_t interrupted_pc(void *context) { return offset_of(interrupted_address(context) + 1); }

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
        if (Finding *known = now.unwinding) {
            add_finding(*known);
            siglongjmp(now.abandon, 1);
        }
        Finding f = here(Kind::crash);
        const uintptr_t fault = reinterpret_cast<uintptr_t>(info->si_addr);
        const uintptr_t above_guard = fault - reinterpret_cast<uintptr_t>(now.stack);
        const bool jumped = number == SIGSEGV && interrupted_address(context) == fault;
        f.text = number == SIGFPE                        ? "an integer division by zero, or of the lowest number by -1"
                 : number == SIGILL || number == SIGTRAP ? "an instruction that is none"
                 : jumped                                ? "a jump to no code, by a pointer to no function or on return "
                                                           "from one that has written beyond a local array"
                 : above_guard < guard_size              ? "a stack overflow: its local variables take too much"
                                                         : "an access outside of all memory";
        f.pc = jumped ? offset_of(return_address(context)) : interrupted_pc(context);
        if (!f.pc) add_calls(f);
        add_finding(f);
    }
    siglongjmp(now.abandon, 1);
}

// Time is up also in a loop in which nothing calls the runtime and so looks at the clock.
#ifdef __linux__
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

inline timer_t timer;
inline bool timer_runs;
inline struct sigaction former_timer_action;

inline int timer_signal() { return SIGRTMAX - 2; }

inline void on_timer(int, siginfo_t *info, void *context) {
    if (info->si_code != SI_TIMER || now.busy) return;  // the timer comes again
    const uint64_t pc = interrupted_pc(context);
    add_timeout(pc ? pc + module_base() : 0);
    siglongjmp(now.abandon, 1);
}

inline void start_timer() {
    struct sigaction action{};
    action.sa_sigaction = on_timer;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(timer_signal(), &action, &former_timer_action);
    struct sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = timer_signal();
    event.sigev_notify_thread_id = static_cast<pid_t>(syscall(SYS_gettid));
    timer_runs = timer_create(CLOCK_MONOTONIC, &event, &timer) == 0;
    if (!timer_runs) return;
    const double limit = now.launch->seconds, seconds = limit < 0 ? 0 : limit < 1e9 ? limit : 1e9;
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(seconds);
    when.it_value.tv_nsec = static_cast<long>(1e9 * (seconds - static_cast<double>(when.it_value.tv_sec))) | 1;
    when.it_interval.tv_nsec = 100'000'000;
    timer_settime(timer, 0, &when, nullptr);
}

inline void stop_timer() {
    if (timer_runs) timer_delete(timer);
    sigaction(timer_signal(), &former_timer_action, nullptr);
}
#else
inline void start_timer() {}
inline void stop_timer() {}
#endif

inline void catch_signals(stack_t &former_stack) {
    stack_t mine{};
    mine.ss_sp = signal_stack;
    mine.ss_size = sizeof signal_stack;
    sigaltstack(&mine, &former_stack);
    launching = pthread_self();
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < caught_count; ++i) {
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | (caught[i] == SIGINT ? 0 : SA_NODEFER);
        sigaction(caught[i], &action, &former[i]);
    }
    start_timer();
}

inline void restore_signals(const stack_t &former_stack) {
    now.busy = true;  // no signal may leave from here
    stop_timer();
    for (int i = 0; i < caught_count; ++i) sigaction(caught[i], &former[i], nullptr);
    sigaltstack(&former_stack, nullptr);
}

}  // namespace mulfree_emulator
