// The interface between the bindings (bindings/) and the kernels of every instruction set: plain data only, so that
// the linker cannot merge functions compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "engine/axis.hpp"

namespace mulfree {

// A four-dimensional array with arbitrary strides, in elements.
template <class T>
struct Image {
    T* data;
    index batch, channel, row, column;
};

// An image with displaced channels: pixel p of channel c along an axis is at position // p * step + row (or
//     column)[kind[c]],
// and is zero outside [0, size). The axes have pixels, step and size.
struct Shifts {
    Axis height, width;
    index kinds;                // distinct displacements,
    const index *row, *column;  // and their values
    const index* kind;          // of every channel; its own number where there are MOST_KINDS or more
    // A bit for every pixel of the plane, set if it is inside the image, plane after plane, each of `inside_bytes`;
    // only if pixels and positions are equal in number and contiguous.
    const std::uint8_t* inside;
    index inside_bytes;
};
constexpr index MOST_KINDS = 32;

// Contiguous planes, copied as bytes, with the ends of other rows instead of pixels from outside; masks clear these.
// Channel c is copied in pieces of some rows, each with its mask. A copy reads inside x if the plane it begins in is
// inside.
struct PlaneMoves {
    index bytes, piece_bytes;          // per plane; per piece, of which the last may be shorter
    const index* offset;               // of every channel, to the source of its first pixel
    const std::uint8_t* const* masks;  // of every channel, of every piece
    const std::uint8_t *first, *last;  // planes of x
};

// The epilogue of an output, filter by filter:
//     clip((answer - origin) * scale + offset + residual * residual_scale, low, high),
// with those arrays that are given, in T. Batch normalisation has the mean as origin, and would cancel without one.
// The result is stored in `wide` instead of y, or rounded in `narrow`. These, and the residual of either type, have
// the layout of y.
template <class T>
struct Epilogue {
    using Number = T;
    const T *scale, *origin, *offset;
    const T* residual;
    const std::uint8_t* narrow_residual;
    T residual_scale, low, high;
    T* wide;
    std::uint8_t* narrow;
};
template <class Y>
struct EpilogueOf {
    using type = Epilogue<Y>;
};
template <>
struct EpilogueOf<std::int32_t> {
    using type = Epilogue<float>;
};

// The type of the borders' corrections: an integer as wide as an element of y.
template <class Y>
struct BorderNumberOf {
    using type = std::uint32_t;
};
template <>
struct BorderNumberOf<double> {
    using type = std::uint64_t;
};
template <class Y>
using BorderNumber = typename BorderNumberOf<Y>::type;

// Corrections for taps outside x: pixels at which the same taps are outside are of one kind, and every filter has a
// number for each kind. `kind` has the layout of a plane of y, with `row` elements per row.
template <class W>
struct Borders {
    const W* kind;
    index row;
    const W* number;  // [filter][kind], modulo 2^bits of W
    index kinds;      // whole vectors
};

// y[n, f, pixel] = bias[f] + sum over channels and taps of term(x, w), group by group. With x_shifts the channels of
// x are read displaced, with y_shifts those of y are written displaced; such a convolution has one group and one tap.
template <class X, class Y>
struct Convolution {
    index batch, groups, channels, filters;  // channels and filters of one group
    Axis height, width;
    Image<const X> x;
    const X* w;
    index w_group, w_filter, w_channel, w_row, w_column;
    const Y* bias;  // one value per filter, or null
    Image<Y> y;
    const Shifts *x_shifts = nullptr, *y_shifts = nullptr;
    const void* packed = nullptr;  // the weights packed by the kernel's pack(); then w may be null
    const typename EpilogueOf<Y>::type* epilogue = nullptr;
    const Borders<BorderNumber<Y>>* borders = nullptr;  // for operations that need them
};

// grad_x[c, pixel] = sum over filters and taps of clip(w - x, -1, 1) * grad. The axes are the forward
// pass's; w is C-contiguous. With shifts, the channels of x are read displaced, the axes are those of grad, and there
// is one group and one tap.
template <class T>
struct AdderGradX {
    index batch, groups, channels, filters;  // channels and filters of one group
    Axis height, width;
    Image<const T> grad, x;
    const T* w;
    Image<T> grad_x;
    const Shifts* shifts = nullptr;
};

// grad_w[f, c, tap] = sum over batch and pixels of grad * x (conv) or grad * (x - w) (adder).
// The axes are the forward pass's; w and grad_w are C-contiguous.
template <class T>
struct GradW {
    index batch, groups, channels, filters;
    Axis height, width;
    Image<const T> grad, x;
    const T* w;  // null for conv
    T* grad_w;
    const Shifts* x_shifts = nullptr;
};

// One pass of batch normalisation over x (batch, channels, pixels), C-contiguous as all arrays here; arrays have one
// value per channel unless noted. A pass uses what its formula names.
template <class T>
struct BatchNorm {
    index batch, channels, pixels;
    const T* x;
    const T *mean, *scale, *bias, *constant, *along_x;
    const T* residual;          // like x, or null
    const T *grad, *answer;     // like x; answer is null without a ReLU
    bool relu;
    T *y, *flow;                // like x; flow may be null
    T *first, *second;          // the two results of a sum
};

// Windows over contiguous planes; y is the maximum of each, or NaN if it contains one; or the sum, with zero padding,
// times `share`.
template <class T>
struct Pool {
    index planes;
    Axis height, width;
    const T* x;
    T* y;
    T share;
};

template <class X, class Y>
struct PlaneMeans {
    index planes, pixels;
    const X* x;
    Y* y;  // one value per plane
};

// Winograd weights packed for the kernels (ops/winograd/plan.hpp): for every group of filters, chunk of
// channels and position of the tile, in this order, a section of jobs. A job is a row of weights, or
// ROWS filters that share a row's pattern; its entries are stored in the order in which they are read, and the jobs
// of a section by increasing length. Rows are read two at a time, alternately, until the first ends; a last one
// alone.
constexpr index WINOGRAD_GROUP = 64, WINOGRAD_CHUNK = 128;
constexpr int WINOGRAD_ROWS = 4;
template <int ROWS>
constexpr int WINOGRAD_JOBS = ROWS == 1 ? 2 : 1;  // at a time

template <class T, int ROWS>
struct WinogradEntry {
    T value[ROWS];
    std::int32_t channel;  // in the chunk
};

struct WinogradJob {
    std::int32_t row, count;  // first filter in the group; entries
};

struct WinogradSection {
    index job, entry;  // the first of each
};

template <class T>
struct WinogradWeights {
    index rows;  // of a job: 1 or WINOGRAD_ROWS
    const WinogradSection* sections;
    const WinogradJob* jobs;
    const void* entries;
};

// Winograd's convolution over tiles of (m + 2) x (m + 2) numbers of x, m x m of y; a kernel uses what
// its formula names. The axes count tiles; their taps are the numbers of a tile.
template <class T>
struct Winograd {
    index batch, channels, filters;
    Axis height, width, out_height, out_width;
    Image<const T> x, grad;
    WinogradWeights<T> weights;  // for the gradient by x: of channels by filters
    const T* bias;               // one value per filter, or null
    bool relu;                   // of the transformed x
    Image<const T> residual;     // added to y if it has data,
    bool relu_of_y;              // and then its negative numbers become zero
    const T *bt, *at;            // the transforms' matrices; null for Lavin's points and signs
    Image<T> y;                  // or the gradient by x
    T* grad_u;                   // [position][filter][channel]
};

// Rows of contiguous numbers, `stride` numbers apart.
template <class T>
struct Rows {
    const T* data;
    index count, stride;
};

// out[i, j] = the L1 distance of row i of a from row j of b, rows of `length` numbers.
template <class T, class D>
struct Distances {
    Rows<T> a, b;
    index length;
    D* out;
    index out_row;
};

// Of every row of a, the k nearest rows of b, nearest first, ties by index: distances and indices, both C-contiguous.
template <class T, class D>
struct Nearest {
    Rows<T> a, b;
    index length, k;
    D* distances;
    std::int64_t* indices;
};

// out[y, x] = the sum of |image - pattern| with the pattern placed at (y, x), over all channels. All are C-contiguous,
// channel by channel.
template <class T, class D>
struct Matching {
    index channels, height, width, rows, columns;
    const T *image, *pattern;
    D* out;
};

// An operation's row of the table. pack() writes the weights of a convolution, of which it uses nothing else, for a
// convolution's `packed`: packed_bytes() bytes, aligned to 64.
template <class X, class Y>
struct ConvolutionKernel {
    void (*run)(const Convolution<X, Y>&);
    index (*packed_bytes)(const Convolution<X, Y>&);
    void (*pack)(const Convolution<X, Y>&, void* to);
};

template <class T>
struct FloatKernels {
    ConvolutionKernel<T, T> conv, adder_conv;
    void (*adder_grad_x)(const AdderGradX<T>&);
    void (*grad_w)(const GradW<T>&);
    void (*batch_norm_moments)(const BatchNorm<T>&);
    void (*batch_norm)(const BatchNorm<T>&);
    void (*batch_norm_sums)(const BatchNorm<T>&);
    void (*batch_norm_grad)(const BatchNorm<T>&);
    void (*max_pool)(const Pool<T>&);
    void (*avg_pool)(const Pool<T>&);
    void (*plane_means)(const PlaneMeans<T, T>&);
    void (*magnitude_means)(const PlaneMeans<T, T>&);  // of |x|
    void (*winograd_conv)(const Winograd<T>&);
    void (*winograd_grad_x)(const Winograd<T>&);
    void (*winograd_grad_u)(const Winograd<T>&);
    double (*winograd_seconds)(const WinogradWeights<T>&, index positions, index filters, index channels);
};

// The operations on bits, and their peak throughput on registers.
struct PopcountKernels {
    ConvolutionKernel<float, float> binary_f32;  // whose `bias` is a factor
    ConvolutionKernel<double, double> binary_f64;
    ConvolutionKernel<std::uint8_t, std::int32_t> low_bit_adder[4];  // of 1 to 4 bits
    double (*peak)(index bits, double seconds);  // of terms of 1 or 2 bits
};

// Distances of rows and windows; and their peak rate, in terms per second, for elements of this many bytes.
template <class T, class D>
struct DistanceFunctions {
    void (*all)(const Distances<T, D>&);
    void (*nearest)(const Nearest<T, D>&);
    void (*match_template)(const Matching<T, D>&);
};
struct DistanceKernels {
    DistanceFunctions<float, float> f32;
    DistanceFunctions<double, double> f64;
    DistanceFunctions<std::uint8_t, std::int32_t> u8;
    double (*peak)(int element_bytes, double seconds);
};

// The kernels of one instruction set.
struct Kernels {
    const char* name;
    FloatKernels<float> f32;
    FloatKernels<double> f64;
    ConvolutionKernel<std::uint8_t, std::int32_t> adder_conv_u8, adder_conv_i8;  // int8 by its bits
    ConvolutionKernel<std::uint16_t, std::int32_t> adder_conv_i16;               // and int16
    // Copies channels from `first` on, until `end` or one whose copy would leave x, and returns that one. Their
    // planes are `channel_bytes` apart, and contiguous in the output.
    index (*move_planes)(const PlaneMoves&, const std::uint8_t* from, index channel_bytes, std::uint8_t* to,
                         index first, index end);
    void (*max_pool_u8)(const Pool<std::uint8_t>&);
    void (*plane_means_u8)(const PlaneMeans<std::uint8_t, float>&);
    double (*peak)(int operation, double seconds);
    PopcountKernels popcount;
    const DistanceKernels* distances;
};

enum PeakOperation { PEAK_FMA, PEAK_MAX_ADD, PEAK_SUB_ABS_ADD, PEAK_U8_MAX_DOT };

#if defined(__aarch64__)
extern const Kernels neon_kernels;
extern const Kernels neon_dotprod_kernels;
extern const DistanceKernels neon_distances, neon_dotprod_distances;
#else
extern const Kernels baseline_kernels;
extern const DistanceKernels baseline_distances;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const DistanceKernels avx2_distances, avx512_distances;
extern const Kernels avx512_kernels;  // except what
extern const PopcountKernels avx512_popcount_kernels;  // needs VPOPCNTDQ

// Of avx512_kernels, those that AMD's processors have their own of.
struct SumKernels {
    ConvolutionKernel<float, float> adder_f32;
    ConvolutionKernel<double, double> adder_f64;
    double (*peak)(int operation, double seconds);
    DistanceKernels distances;
};
extern const SumKernels avx512_amd_kernels;
extern const double hidden_one;  // 1, which other sources do not know
#endif
#endif

}  // namespace mulfree
