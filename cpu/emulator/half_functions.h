// The functions of cuda_fp16.h and cuda_bf16.h: included once for each, by half.h, with the types H and
// H2, and NAME for what they are called in conversions.

inline H NAME(__float2,)(float x) { return H(x); }
inline H NAME(__double2,)(double x) { return H(x); }
inline float NAME(__, 2float)(H x) { return x; }
inline unsigned short NAME(__, _as_ushort)(H x) { return x.__x; }
inline short NAME(__, _as_short)(H x) { return static_cast<short>(x.__x); }
inline H NAME(__ushort_as_,)(unsigned short x) { return mulfree_emulator::ShortRaw{x}; }
inline H NAME(__short_as_,)(short x) { return mulfree_emulator::ShortRaw{static_cast<unsigned short>(x)}; }

#define MULFREE_FROM(T, from, rounding, suffix) \
    inline H NAME(__##from##2, _##suffix)(T x) { return H::rounded(x, mulfree_emulator::Rounding::rounding); }
#define MULFREE_CONVERSIONS(T, from)       \
    MULFREE_FROM(T, from, nearest, rn)     \
    MULFREE_FROM(T, from, zero, rz)        \
    MULFREE_FROM(T, from, up, ru)          \
    MULFREE_FROM(T, from, down, rd)
MULFREE_CONVERSIONS(float, float)
MULFREE_CONVERSIONS(int, int)
MULFREE_CONVERSIONS(unsigned int, uint)
MULFREE_CONVERSIONS(short, short)
MULFREE_CONVERSIONS(unsigned short, ushort)
#undef MULFREE_CONVERSIONS
#undef MULFREE_FROM
#define MULFREE_TO(T, to)                                                          \
    inline T NAME(__, 2##to##_rn)(H x) { return __float2##to##_rn(x); }            \
    inline T NAME(__, 2##to##_rz)(H x) { return __float2##to##_rz(x); }            \
    inline T NAME(__, 2##to##_ru)(H x) { return __float2##to##_ru(x); }            \
    inline T NAME(__, 2##to##_rd)(H x) { return __float2##to##_rd(x); }
MULFREE_TO(int, int)
MULFREE_TO(unsigned int, uint)
MULFREE_TO(long long, ll)
MULFREE_TO(unsigned long long, ull)
#undef MULFREE_TO

inline H __hneg(H a) { return -a; }
inline H __habs(H a) { return mulfree_emulator::ShortRaw{static_cast<unsigned short>(a.__x & 0x7fff)}; }
inline bool __hisnan(H a) { return !(a == a); }
inline int __hisinf(H a) { return fabsf(a) == INFINITY ? (a.__x & 0x8000 ? -1 : 1) : 0; }
inline H __hadd(H a, H b) { return a + b; }
inline H __hsub(H a, H b) { return a - b; }
inline H __hmul(H a, H b) { return a * b; }
inline H __hadd_rn(H a, H b) { return a + b; }
inline H __hsub_rn(H a, H b) { return a - b; }
inline H __hmul_rn(H a, H b) { return a * b; }
inline H __hdiv(H a, H b) { return a / b; }
inline H __hmin(H a, H b) { return H(fminf(a, b)); }
inline H __hmax(H a, H b) { return H(fmaxf(a, b)); }
inline H __hmin_nan(H a, H b) { return __hisnan(a) || __hisnan(b) ? H(NAN) : __hmin(a, b); }
inline H __hmax_nan(H a, H b) { return __hisnan(a) || __hisnan(b) ? H(NAN) : __hmax(a, b); }
inline H __hfma(H a, H b, H c) { return H(mulfree_emulator::product_plus(a, b, c)); }
inline H __hfma_relu(H a, H b, H c) { return __hmax_nan(__hfma(a, b, c), H(0)); }
inline H __hadd_sat(H a, H b) { return H(__saturatef(a + b)); }
inline H __hsub_sat(H a, H b) { return H(__saturatef(a - b)); }
inline H __hmul_sat(H a, H b) { return H(__saturatef(a * b)); }
inline H __hfma_sat(H a, H b, H c) { return H(__saturatef(__hfma(a, b, c))); }

inline H2 NAME(make_, 2)(H a, H b) { return {a, b}; }
inline H2 NAME(__halves2, 2)(H a, H b) { return {a, b}; }
inline H2 NAME(__float2, 2_rn)(float a) { return {H(a), H(a)}; }
inline H2 NAME(__floats2, 2_rn)(float a, float b) { return {H(a), H(b)}; }
inline H2 NAME(__float22, 2_rn)(float2 a) { return {H(a.x), H(a.y)}; }
inline float2 NAME(__, 22float2)(H2 a) { return {a.x, a.y}; }
inline H NAME(__low2,)(H2 a) { return a.x; }
inline H NAME(__high2,)(H2 a) { return a.y; }
inline float __low2float(H2 a) { return a.x; }
inline float __high2float(H2 a) { return a.y; }
inline H2 NAME(__low2, 2)(H2 a) { return {a.x, a.x}; }
inline H2 NAME(__high2, 2)(H2 a) { return {a.y, a.y}; }
inline H2 __lowhigh2highlow(H2 a) { return {a.y, a.x}; }
inline H2 NAME(__lows2, 2)(H2 a, H2 b) { return {a.x, b.x}; }
inline H2 NAME(__highs2, 2)(H2 a, H2 b) { return {a.y, b.y}; }

#define MULFREE_EACH_1(name2, name) \
    inline H2 name2(H2 a) { return {name(a.x), name(a.y)}; }
#define MULFREE_EACH_2(name2, name) \
    inline H2 name2(H2 a, H2 b) { return {name(a.x, b.x), name(a.y, b.y)}; }
#define MULFREE_EACH_3(name2, name) \
    inline H2 name2(H2 a, H2 b, H2 c) { return {name(a.x, b.x, c.x), name(a.y, b.y, c.y)}; }
MULFREE_EACH_1(__hneg2, __hneg)
MULFREE_EACH_1(__habs2, __habs)
MULFREE_EACH_1(__hisnan2, __hisnan)
MULFREE_EACH_2(__hadd2, __hadd)
MULFREE_EACH_2(__hsub2, __hsub)
MULFREE_EACH_2(__hmul2, __hmul)
MULFREE_EACH_2(__hadd2_rn, __hadd)
MULFREE_EACH_2(__hsub2_rn, __hsub)
MULFREE_EACH_2(__hmul2_rn, __hmul)
MULFREE_EACH_2(__h2div, __hdiv)
MULFREE_EACH_2(__hmin2, __hmin)
MULFREE_EACH_2(__hmax2, __hmax)
MULFREE_EACH_2(__hmin2_nan, __hmin_nan)
MULFREE_EACH_2(__hmax2_nan, __hmax_nan)
MULFREE_EACH_2(__hadd2_sat, __hadd_sat)
MULFREE_EACH_2(__hsub2_sat, __hsub_sat)
MULFREE_EACH_2(__hmul2_sat, __hmul_sat)
MULFREE_EACH_3(__hfma2, __hfma)
MULFREE_EACH_3(__hfma2_relu, __hfma_relu)
MULFREE_EACH_3(__hfma2_sat, __hfma_sat)

// Of a NaN the ordered comparisons say no, the unordered ones (__hequ, ...) yes.
#define MULFREE_COMPARISON(name, op)                                                                  \
    inline bool __h##name(H a, H b) { return a op b && !__hisnan(a) && !__hisnan(b); }                \
    inline bool __h##name##u(H a, H b) { return a op b || __hisnan(a) || __hisnan(b); }               \
    inline bool __hb##name##2(H2 a, H2 b) { return __h##name(a.x, b.x) && __h##name(a.y, b.y); }      \
    inline bool __hb##name##u2(H2 a, H2 b) { return __h##name##u(a.x, b.x) && __h##name##u(a.y, b.y); } \
    MULFREE_EACH_2(__h##name##2, __h##name)                                                           \
    MULFREE_EACH_2(__h##name##u2, __h##name##u)
MULFREE_COMPARISON(eq, ==)
MULFREE_COMPARISON(ne, !=)
MULFREE_COMPARISON(lt, <)
MULFREE_COMPARISON(le, <=)
MULFREE_COMPARISON(gt, >)
MULFREE_COMPARISON(ge, >=)
#undef MULFREE_COMPARISON

#define MULFREE_UNARY(name, expression)                     \
    inline H h##name(H h) { const double x = h; return H(expression); } \
    MULFREE_EACH_1(h2##name, h##name)
MULFREE_UNARY(sqrt, sqrt(x))
MULFREE_UNARY(rsqrt, rsqrt(x))
MULFREE_UNARY(rcp, 1.0 / x)
MULFREE_UNARY(exp, exp(x))
MULFREE_UNARY(exp2, exp2(x))
MULFREE_UNARY(exp10, pow(10.0, x))
MULFREE_UNARY(log, log(x))
MULFREE_UNARY(log2, log2(x))
MULFREE_UNARY(log10, log10(x))
MULFREE_UNARY(sin, sin(x))
MULFREE_UNARY(cos, cos(x))
MULFREE_UNARY(tanh, tanh(x))
MULFREE_UNARY(floor, floor(x))
MULFREE_UNARY(ceil, ceil(x))
MULFREE_UNARY(trunc, trunc(x))
MULFREE_UNARY(rint, rint(x))
#undef MULFREE_UNARY
#undef MULFREE_EACH_1
#undef MULFREE_EACH_2
#undef MULFREE_EACH_3
