// nvcuda::wmma by a host twin. CUDA does not say which lane holds which element, and here it is another
// one than on a GPU. Sums are exact but for the last rounding, where a GPU rounds in between.
#pragma once
#include <mulfree/push_letters.h>

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32;
}

namespace mulfree {

template <class T>
struct Element {
    using Storage = T;
    static T value(T x) { return x; }
};
template <>
struct Element<precision::tf32> {
    using Storage = float;
    static float value(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }
};

template <class Use, int M, int N, int K>
constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
template <class Use, int M, int N, int K>
constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;

}  // namespace mulfree

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    using element_type = typename mulfree::Element<T>::Storage;
    static constexpr int rows = mulfree::rows<Use, M, N, K>, columns = mulfree::columns<Use, M, N, K>;
    static constexpr int num_elements = rows * columns / 32;
    element_type x[num_elements];

    // The place of an element in the matrix, by rows.
    static int place(int element) { return element * 32 + mulfree_lane(); }
};

template <class Use, int M, int N, int K, class T, class Layout, class Value>
void fill_fragment(fragment<Use, M, N, K, T, Layout> &f, Value value) {
    for (auto &x : f.x) x = static_cast<typename fragment<Use, M, N, K, T, Layout>::element_type>(value);
}

namespace mulfree {

template <class Fragment>
unsigned offset(int element, unsigned stride, bool by_rows) {
    const int place = Fragment::place(element), row = place / Fragment::columns, column = place % Fragment::columns;
    return by_rows ? row * stride + column : column * stride + row;
}

// The lanes of the warp do it together, though each one only for itself.
inline void together(const char *file, int line) { __ballot_sync(~0u, 1, file, line); }

template <class Fragment, class T>
MULFREE_INLINE void load(Fragment &f, const T *from, unsigned stride, bool by_rows, const char *file, int line) {
    together(file, line);
    for (int i = 0; i < Fragment::num_elements; ++i) f.x[i] = from[offset<Fragment>(i, stride, by_rows)];
}

}  // namespace mulfree

template <class Use, int M, int N, int K, class T, class Layout, class Memory>
MULFREE_INLINE void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &f, const Memory *from, unsigned stride,
                                     MULFREE_HERE) {
    mulfree::load(f, from, stride, std::is_same_v<Layout, row_major>, file, line);
}
template <int M, int N, int K, class T, class Memory>
MULFREE_INLINE void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const Memory *from, unsigned stride,
                                     layout_t layout, MULFREE_HERE) {
    mulfree::load(f, from, stride, layout == mem_row_major, file, line);
}
template <int M, int N, int K, class T, class Memory>
MULFREE_INLINE void store_matrix_sync(Memory *to, const fragment<accumulator, M, N, K, T> &f, unsigned stride,
                                      layout_t layout, MULFREE_HERE) {
    using Fragment = fragment<accumulator, M, N, K, T>;
    mulfree::together(file, line);
    for (int i = 0; i < Fragment::num_elements; ++i)
        to[mulfree::offset<Fragment>(i, stride, layout == mem_row_major)] = f.x[i];
}

template <int M, int N, int K, class D, class T, class LayoutA, class LayoutB, class C>
void mma_sync(fragment<accumulator, M, N, K, D> &d, const fragment<matrix_a, M, N, K, T, LayoutA> &a,
              const fragment<matrix_b, M, N, K, T, LayoutB> &b, const fragment<accumulator, M, N, K, C> &c,
              bool saturate = false, MULFREE_HERE) {
    struct Operands {
        fragment<matrix_a, M, N, K, T, LayoutA> a;
        fragment<matrix_b, M, N, K, T, LayoutB> b;
    };
    using Sum = std::conditional_t<std::is_integral_v<C>, long long, double>;
    const auto value = [](auto x) { return static_cast<Sum>(mulfree::Element<T>::value(x)); };
    const Operands mine = {a, b};
    Operands all[32];
    mulfree_exchange(&mine, sizeof mine, all, file, line);
    for (int i = 0; i < d.num_elements; ++i) {
        const int row = d.place(i) / N, column = d.place(i) % N;
        Sum sum = static_cast<Sum>(c.x[i]);
        for (int k = 0; k < K; ++k) {
            const int p = row * K + k, q = k * N + column;
            sum += value(all[p % 32].a.x[p / 32]) * value(all[q % 32].b.x[q / 32]);
        }
        if (saturate && std::is_integral_v<D>) sum = min(max(sum, Sum(INT_MIN)), Sum(INT_MAX));
        d.x[i] = static_cast<D>(sum);
    }
}

// To the nearest of 10 bits behind the point, ties away from zero.
inline float __float_to_tf32(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u); }

namespace experimental {
namespace precision {
struct b1;
}
enum bmmaBitOp { bmmaBitOpXOR = 1, bmmaBitOpAND = 2 };
template <class D, class A, class B, class C>
void bmma_sync(D &, const A &, const B &, const C &, bmmaBitOp = bmmaBitOpXOR);  // refused
}  // namespace experimental

}  // namespace wmma
}  // namespace nvcuda

#include <mulfree/pop_letters.h>
