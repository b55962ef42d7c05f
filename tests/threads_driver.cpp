// Calls of cpu/threads.cpp as kernels make them, for a run under ThreadSanitizer: several callers at once, a
// number of threads that changes, two loops a team. Prints the sums that the loops add up to.
#include <cstdio>
#include <thread>
#include <vector>

#include "../cpu/engine/threads.hpp"

using mulfree::index;

int main() {
    constexpr index CALLERS = 4, CALLS = 300, UNITS = 64;
    std::vector<long> sums(CALLERS);
    std::vector<std::thread> callers;
    for (index caller = 0; caller < CALLERS; ++caller)
        callers.emplace_back([&, caller] {
            for (index call = 0; call < CALLS; ++call) {
                if (caller == 0) mulfree::set_max_threads(1 + call % 6);
                std::vector<index> first(UNITS), second(UNITS);
                mulfree::Team team(1 + call % 5);
                mulfree::for_each_unit(team, UNITS, [&](index unit) { first[unit] = unit; });
                mulfree::for_each_unit(team, UNITS, [&](index unit) { second[unit] = first[UNITS - 1 - unit]; });
                for (index value : second) sums[caller] += value;
            }
        });
    for (std::thread& caller : callers) caller.join();
    for (long sum : sums) std::printf("%ld ", sum);
}
