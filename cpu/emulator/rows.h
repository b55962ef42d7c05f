// A growing array of plain values, which it moves by copying bytes: what std::vector is here needed for,
// in a tenth of the time to compile.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace mulfree_emulator {

__attribute__((cold, noinline)) inline void *grow(void *data, size_t &capacity, size_t size) {
    capacity = capacity ? 2 * capacity : 16;
    return std::realloc(data, capacity * size);
}

template <class T>
struct Rows {
    T *data;
    size_t count, capacity;

    T *begin() const { return data; }
    T *end() const { return data + count; }
    T &operator[](size_t i) const { return data[i]; }
    void clear() { count = 0; }
    T &add(const T &row) {
        if (count == capacity) data = static_cast<T *>(grow(data, capacity, sizeof(T)));
        return data[count++] = row;
    }
    void free() {
        std::free(data);
        *this = {};
    }
};

}  // namespace mulfree_emulator
