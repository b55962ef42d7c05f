// Weights packed once for any number of calls, from any thread.
#pragma once

#include <functional>
#include <memory>
#include <new>

#include "arrays.hpp"

namespace mulfree {

// The sizes of weights (filters, channels per group, rows, columns).
struct Filters {
    index all, channels, rows, columns, groups;

    Filters(const py::array& w, index groups_) : groups(groups_) {
        require(w.ndim() == 4, "w must have 4 dimensions");
        require(w.size() > 0, "expected no empty arrays");
        all = w.shape(0), channels = w.shape(1), rows = w.shape(2), columns = w.shape(3);
        require(groups > 0 && all % groups == 0, "groups must divide the filters");
    }
    // Throws if the channels of x or y do not match.
    void check(index x_channels, index y_channels) const {
        require(x_channels % groups == 0 && channels == x_channels / groups && all == y_channels,
                "the channels of x, w, y and groups do not match");
    }
    index each() const { return all / groups; }
    index taps() const { return channels * rows * columns; }
};

// Returns the kernel of the instruction set in use. Of one type for all operations, so that their bindings are compiled
// once.
template <class X, class Y>
using KernelInUse = std::function<const ConvolutionKernel<X, Y>&()>;

class PackedWeights {
public:
    const py::array array;  // the original weights; kept, and read-only
    const Filters filters;

    template <class X, class Y>
    PackedWeights(const ConvolutionKernel<X, Y>& kernel, const Array<X>& w, index groups)
        : array(w), filters(w, groups), kernel_(&kernel) {
        const Filters& f = filters;
        Convolution<X, Y> p{};
        p.groups = groups, p.channels = f.channels, p.filters = f.each();
        p.height = {1, 1, 0, f.rows, 1, f.rows, 0, 1}, p.width = {1, 1, 0, f.columns, 1, f.columns, 0, 1};
        p.w = contiguous(w, "w");
        p.w_group = f.each() * f.taps(), p.w_filter = f.taps(), p.w_channel = f.rows * f.columns;
        p.w_row = f.columns, p.w_column = 1;
        bytes_ = kernel.packed_bytes(p);
        memory_.reset(::operator new(std::size_t(bytes_), std::align_val_t(ALIGNMENT)));
        WithoutGil others_run;
        kernel.pack(p, memory_.get());
    }

    index bytes() const { return bytes_; }

    // The argument `packed` of a convolution by this kernel; throws if they were packed for another one.
    template <class X, class Y>
    const void* data(const ConvolutionKernel<X, Y>& kernel) const {
        require(kernel_ == &kernel, "w was packed for another operation, another dtype or other CPU features");
        return memory_.get();
    }

private:
    static constexpr std::size_t ALIGNMENT = 64;
    struct Delete {
        void operator()(void* p) const { ::operator delete(p, std::align_val_t(ALIGNMENT)); }
    };

    const void* kernel_;
    index bytes_;
    std::unique_ptr<void, Delete> memory_;
};

}  // namespace mulfree
