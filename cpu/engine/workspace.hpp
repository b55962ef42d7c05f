// The memory of a call.
#pragma once

#include <cstdint>
#include <new>

#include "threads.hpp"
#include "isa.hpp"

namespace mulfree::MULFREE_ISA {

class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    ~Workspace() { ::operator delete(base_, std::align_val_t(64)); }
    void allocate(index bytes) {
        // With AddressSanitizer only this form of new can fail.
        base_ = static_cast<char*>(::operator new(std::size_t(bytes), std::align_val_t(64), std::nothrow));
        if (!base_) throw std::bad_alloc();
    }
    char* data() const { return base_; }

private:
    char* base_ = nullptr;
};

// Bump allocator of cache-line aligned pieces; with null it only measures their size.
class Carver {
public:
    explicit Carver(char* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}
    template <class T>
    T* take(index count) {
        const std::uintptr_t at = base_ + used_;
        used_ += round_up(count * index(sizeof(T)), 64);
        return reinterpret_cast<T*>(at);
    }
    index used() const { return used_; }

private:
    std::uintptr_t base_;
    index used_ = 0;
};

}  // namespace mulfree::MULFREE_ISA
