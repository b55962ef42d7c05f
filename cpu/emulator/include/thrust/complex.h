// thrust::complex. The transcendental functions are the C library's.
#pragma once

namespace thrust {

template <class T>
class alignas(2 * sizeof(T)) complex {
  public:
    using value_type = T;
    complex() = default;
    complex(const T &re, const T &im = T()) : re_(re), im_(im) {}
    template <class U>
    complex(const complex<U> &z) : re_(static_cast<T>(z.real())), im_(static_cast<T>(z.imag())) {}
    T real() const { return re_; }
    T imag() const { return im_; }
    T real() const volatile { return re_; }
    T imag() const volatile { return im_; }
    void real(T re) { re_ = re; }
    void imag(T im) { im_ = im; }
    complex &operator=(const T &re) { return *this = complex(re); }
    template <class U> complex &operator+=(const U &z) { return *this = *this + z; }
    template <class U> complex &operator-=(const U &z) { return *this = *this - z; }
    template <class U> complex &operator*=(const U &z) { return *this = *this * z; }
    template <class U> complex &operator/=(const U &z) { return *this = *this / z; }

  private:
    T re_, im_;
};

// Names of the emulator's own, out of the way of a text's `using namespace thrust`.
namespace mulfree {

template <class T>
constexpr bool is_complex = false;
template <class T>
constexpr bool is_complex<complex<T>> = true;

template <class T> struct part_of { using type = T; };
template <class T> struct part_of<complex<T>> { using type = T; };

// Of two operands one is complex, and the other a number; the result has the wider parts.
template <class A, class B>
using wider = std::enable_if_t<(is_complex<A> && (is_complex<B> || std::is_arithmetic_v<B>)) ||
                                   (std::is_arithmetic_v<A> && is_complex<B>),
                               complex<std::common_type_t<typename part_of<A>::type, typename part_of<B>::type>>>;

}  // namespace mulfree

template <class T> T real(const complex<T> &z) { return z.real(); }
template <class T> T imag(const complex<T> &z) { return z.imag(); }
template <class T> complex<T> conj(const complex<T> &z) { return {z.real(), -z.imag()}; }
template <class T> T norm(const complex<T> &z) { return z.real() * z.real() + z.imag() * z.imag(); }
template <class T> T abs(const complex<T> &z) { return ::hypot(z.real(), z.imag()); }
template <class T> T arg(const complex<T> &z) { return ::atan2(z.imag(), z.real()); }
template <class T> complex<T> polar(const T &r, const T &angle = T()) { return {r * ::cos(angle), r * ::sin(angle)}; }

template <class T> complex<T> operator+(const complex<T> &z) { return z; }
template <class T> complex<T> operator-(const complex<T> &z) { return {-z.real(), -z.imag()}; }

namespace mulfree {

template <class T> complex<T> add(complex<T> a, complex<T> b) { return {a.real() + b.real(), a.imag() + b.imag()}; }
template <class T> complex<T> subtract(complex<T> a, complex<T> b) { return add(a, -b); }
template <class T>
complex<T> multiply(complex<T> a, complex<T> b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}
// Scaled, so that no square overflows.
template <class T>
complex<T> divide(complex<T> a, complex<T> b) {
    const T scale = 1 / (::fabs(b.real()) + ::fabs(b.imag()));
    a = {a.real() * scale, a.imag() * scale};
    b = {b.real() * scale, b.imag() * scale};
    const T by = 1 / norm(b);
    return {(a.real() * b.real() + a.imag() * b.imag()) * by, (a.imag() * b.real() - a.real() * b.imag()) * by};
}

}  // namespace mulfree

#define MULFREE_COMPLEX_OPERATOR(op, function)                  \
    template <class A, class B, class C = mulfree::wider<A, B>> \
    C operator op(const A &a, const B &b) {                     \
        return mulfree::function(C(a), C(b));                   \
    }
MULFREE_COMPLEX_OPERATOR(+, add)
MULFREE_COMPLEX_OPERATOR(-, subtract)
MULFREE_COMPLEX_OPERATOR(*, multiply)
MULFREE_COMPLEX_OPERATOR(/, divide)
#undef MULFREE_COMPLEX_OPERATOR

template <class A, class B, class C = mulfree::wider<A, B>>
bool operator==(const A &a, const B &b) { return C(a).real() == C(b).real() && C(a).imag() == C(b).imag(); }
template <class A, class B, class C = mulfree::wider<A, B>>
bool operator!=(const A &a, const B &b) { return !(a == b); }

#define MULFREE_COMPLEX_BUILTINS(T, f)                                                                    \
    namespace mulfree { /* to the compiler's own complex numbers and back */                              \
    inline _Complex T builtin(complex<T> z) {                                                             \
        _Complex T c;                                                                                     \
        __real__ c = z.real();                                                                            \
        __imag__ c = z.imag();                                                                            \
        return c;                                                                                         \
    }                                                                                                     \
    inline complex<T> own(_Complex T c) { return {__real__ c, __imag__ c}; }                              \
    }                                                                                                     \
    inline complex<T> pow(const complex<T> &z, const complex<T> &w) {                                     \
        return mulfree::own(__builtin_cpow##f(mulfree::builtin(z), mulfree::builtin(w)));                                            \
    }                                                                                                     \
    MULFREE_COMPLEX_FUNCTION(T, f, exp)                                                                   \
    MULFREE_COMPLEX_FUNCTION(T, f, log)                                                                   \
    MULFREE_COMPLEX_FUNCTION(T, f, sqrt)                                                                  \
    MULFREE_COMPLEX_FUNCTION(T, f, sin)                                                                   \
    MULFREE_COMPLEX_FUNCTION(T, f, cos)                                                                   \
    MULFREE_COMPLEX_FUNCTION(T, f, tan)                                                                   \
    MULFREE_COMPLEX_FUNCTION(T, f, sinh)                                                                  \
    MULFREE_COMPLEX_FUNCTION(T, f, cosh)                                                                  \
    MULFREE_COMPLEX_FUNCTION(T, f, tanh)                                                                  \
    MULFREE_COMPLEX_FUNCTION(T, f, asin)                                                                  \
    MULFREE_COMPLEX_FUNCTION(T, f, acos)                                                                  \
    MULFREE_COMPLEX_FUNCTION(T, f, atan)                                                                  \
    MULFREE_COMPLEX_FUNCTION(T, f, asinh)                                                                 \
    MULFREE_COMPLEX_FUNCTION(T, f, acosh)                                                                 \
    MULFREE_COMPLEX_FUNCTION(T, f, atanh)                                                                 \
    MULFREE_COMPLEX_FUNCTION(T, f, proj)
#define MULFREE_COMPLEX_FUNCTION(T, f, name) \
    inline complex<T> name(const complex<T> &z) {        \
        return mulfree::own(__builtin_c##name##f(mulfree::builtin(z))); \
    }
MULFREE_COMPLEX_BUILTINS(float, f)
MULFREE_COMPLEX_BUILTINS(double, )
#undef MULFREE_COMPLEX_FUNCTION
#undef MULFREE_COMPLEX_BUILTINS

template <class A, class B, class C = mulfree::wider<A, B>>
C pow(const A &z, const B &w) { return pow(C(z), C(w)); }
template <class T>
complex<T> log10(const complex<T> &z) { return log(z) / ::log(T(10)); }

}  // namespace thrust
