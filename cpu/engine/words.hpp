// Small integers as operands: several taps of a pixel share one lane (a word), so that one instruction sums them.
// Bytes with AVX-512 VNNI: four taps in 32 bits, sum of max by vpdpbusd with ones. NEON: four taps in 32 bits, sum of
// absolute differences by udot with ones. Otherwise: eight taps in 64 bits, the same by psadbw.
#pragma once

#include "isa.hpp"

namespace mulfree::MULFREE_ISA {

#if defined(__AVX512VNNI__)

using Word = std::uint32_t;
constexpr bool BYTE_SUMS = true;  // the operation sums max(x, w), and so needs the sums of x and w

inline Vec<Word> add_bytes(Vec<Word> total, Vec<Word> x) {
    return (Vec<Word>)_mm512_dpbusd_epi32((__m512i)total, (__m512i)x, _mm512_set1_epi8(1));
}

struct Bytes {
    static Vec<Word> term(Vec<Word> total, Vec<Word> x, Vec<Word> w) {
        return add_bytes(total, (Vec<Word>)_mm512_max_epu8((__m512i)x, (__m512i)w));
    }
};

#elif defined(__aarch64__)

using Word = std::uint32_t;
constexpr bool BYTE_SUMS = false;

struct Bytes {
    static Vec<Word> term(Vec<Word> total, Vec<Word> x, Vec<Word> w) {
        const uint8x16_t distance = vabdq_u8((uint8x16_t)x, (uint8x16_t)w);
#if defined(__ARM_FEATURE_DOTPROD)
        return (Vec<Word>)vdotq_u32((uint32x4_t)total, distance, vdupq_n_u8(1));
#else
        return (Vec<Word>)vpadalq_u16((uint32x4_t)total, vpaddlq_u8(distance));
#endif
    }
};

#else

using Word = std::uint64_t;
constexpr bool BYTE_SUMS = false;

struct Bytes {
    static Vec<Word> term(Vec<Word> total, Vec<Word> x, Vec<Word> w) {
#if defined(__AVX2__)
        return total + (Vec<Word>)_mm256_sad_epu8((__m256i)x, (__m256i)w);
#elif defined(__SSE2__)
        return total + (Vec<Word>)_mm_sad_epu8((__m128i)x, (__m128i)w);
#else
        const auto a = (Vec<std::uint8_t>)x, b = (Vec<std::uint8_t>)w;
        for (index i = 0; i < VECTOR_BYTES; ++i) total[i / 8] += a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
        return total;
#endif
    }
};

#endif

constexpr index PER_WORD = sizeof(Word);  // bytes

// The taps that share a word: `across` successive channels by `along` successive columns of the kernel. Words of
// several columns unroll the kernel's width into channels; such a word channel is (channel, first column), and
// outside the kernel both x and w are zero.
struct WordShape {
    index size, across, along = 1;
    index channels, columns;  // of x and of the kernel
    index starts;             // number of first columns per channel

    WordShape(index channels_, index columns_, index size_)
        : size(size_), across(size_), channels(channels_), columns(columns_) {
        index least = ceil_div(channels, size) * columns;
        for (index b = 2; b <= size; b *= 2) {
            const index words = ceil_div(channels, size / b) * ceil_div(columns, b);
            if (words < least) least = words, along = b, across = size / b;
        }
        starts = along == 1 ? 1 : ceil_div(columns, along);
    }
    index word_channels() const { return ceil_div(channels, across) * starts; }
    index taps() const { return along == 1 ? columns : 1; }

    // Of the first tap in a word of this channel,
    index channel(index word) const { return starts == 1 ? word * across : word / starts * across; }
    index column(index word) const { return starts == 1 ? 0 : word % starts * along; }
    // and the offset from it to tap k of the word.
    index place_channel(index k) const { return k / along; }
    index place_column(index k) const { return k % along; }

    // The weights of a word at tap `tap` of its width; w points to the kernel row in channel 0.
    template <class W, class Element>
    W weights(const Element* w, index w_channel, index word, index tap) const {
        const index c = channel(word), j = column(word) + tap;
        constexpr index SIZE = sizeof(W) / sizeof(Element);
        W elements = 0;
        if (along == 1 && c + SIZE <= channels) {  // most words, much faster
            const Element* from = w + c * w_channel + j;
#pragma GCC unroll 8
            for (index k = 0; k < SIZE; ++k) elements |= W(from[k * w_channel]) << 8 * sizeof(Element) * k;
            return elements;
        }
        for (index k = 0; k < SIZE; ++k) {
            const index from = c + place_channel(k), at = j + place_column(k);
            if (from < channels && at < columns) elements |= W(w[from * w_channel + at]) << 8 * sizeof(Element) * k;
        }
        return elements;
    }
};

// The elements, of an unsigned type, of one place in a row of words: lanes [first, last) of base[lane * stride];
// the rest is zero.
template <class Element>
struct ElementRow {
    const Element* base;
    index first, last;
};
using ByteRow = ElementRow<std::uint8_t>;

// to[i] = the elements i of the rows, one by one.
template <class Element, class W>
inline void interleave_singly(const ElementRow<Element>* rows, index stride, index count, W* to) {
    for (index i = 0; i < count; ++i) to[i] = 0;
    for (index k = 0; k < index(sizeof(W) / sizeof(Element)); ++k)
        for (index i = rows[k].first; i < smaller(count, rows[k].last); ++i)
            to[i] |= W(rows[k].base[i * stride]) << 8 * sizeof(Element) * k;
}

#if (defined(__SSE2__) && !defined(__AVX512VNNI__)) || defined(__aarch64__)
#if defined(__SSE2__)
using Bytes16 = __m128i;
inline Bytes16 zip_low(Bytes16 a, Bytes16 b) { return _mm_unpacklo_epi8(a, b); }
inline Bytes16 zip_high(Bytes16 a, Bytes16 b) { return _mm_unpackhi_epi8(a, b); }
inline Bytes16 even_then_odd(Bytes16 a, Bytes16 b) {
    return _mm_packus_epi16(_mm_and_si128(a, _mm_set1_epi16(0xff)), _mm_srli_epi16(b, 8));
}
#else
using Bytes16 = uint8x16_t;
inline Bytes16 zip_low(Bytes16 a, Bytes16 b) { return vzip1q_u8(a, b); }
inline Bytes16 zip_high(Bytes16 a, Bytes16 b) { return vzip2q_u8(a, b); }
inline Bytes16 even_then_odd(Bytes16 a, Bytes16 b) {
    return vcombine_u8(vmovn_u16((uint16x8_t)a), vshrn_n_u16((uint16x8_t)b, 8));
}
#endif

// Bytes i to i + 15 of a row.
template <index STRIDE>
inline Bytes16 row_bytes(const ByteRow& row, index i) {
    Bytes16 bytes, rest;
    if (row.first <= i && i + 16 <= row.last) {
        __builtin_memcpy(&bytes, row.base + i * STRIDE, 16);
        if constexpr (STRIDE == 1) return bytes;
        __builtin_memcpy(&rest, row.base + i * STRIDE + 15, 16);  // no further than byte i + 15 lies
        return even_then_odd(bytes, rest);
    }
    std::uint8_t lane[16] = {};
    for (index j = larger(i, row.first); j < smaller(i + 16, row.last); ++j)
        lane[j - i] = row.base[j * STRIDE];
    __builtin_memcpy(&bytes, lane, 16);
    return bytes;
}

// Sixteen words at a time. Repeatedly interleaving the first half of the rows with the second brings the bytes of a
// word together.
template <index STRIDE>
inline void interleave_blocks(const ByteRow* rows, index count, index ahead, Word* to) {
    for (index i = 0; i < count; i += 16) {
        Bytes16 x[PER_WORD], zipped[PER_WORD];
#pragma GCC unroll 8
        for (index k = 0; k < PER_WORD; ++k) {
            x[k] = row_bytes<STRIDE>(rows[k], i);
            prefetch(rows[k].base, i * STRIDE + ahead);
        }
#pragma GCC unroll 3
        for (index size = 1; size < PER_WORD; size *= 2) {
#pragma GCC unroll 4
            for (index k = 0; k < PER_WORD / 2; ++k) {
                zipped[2 * k] = zip_low(x[k], x[k + PER_WORD / 2]);
                zipped[2 * k + 1] = zip_high(x[k], x[k + PER_WORD / 2]);
            }
#pragma GCC unroll 8
            for (index k = 0; k < PER_WORD; ++k) x[k] = zipped[k];
        }
        if (i + 16 <= count) __builtin_memcpy(to + i, x, sizeof x);
        else __builtin_memcpy(to + i, x, std::size_t(count - i) * sizeof(Word));
    }
}
#endif

// The same; elements `ahead` are prefetched.
template <class Element, class W>
inline void interleave(const ElementRow<Element>* rows, index stride, index count, index, W* to) {
    interleave_singly(rows, stride, count, to);
}

// to[i] = the bytes i of the rows. Bytes `ahead` are prefetched.
inline void interleave(const ByteRow* rows, index stride, index count, [[maybe_unused]] index ahead,
                       Word* to) {
#if defined(__AVX512VNNI__)
    const auto bits = [](index n) { return n >= 64 ? ~0ull : n <= 0 ? 0 : (1ull << n) - 1; };
    if (stride == 2) {
        const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // as below
        for (index i = 0; i < count; i += 32) {
            __m512i x[PER_WORD], pairs[2];  // pairs of bytes of rows 0 and 1, and of rows 2 and 3
#pragma GCC unroll 4
            for (index k = 0; k < PER_WORD; ++k) {
                const auto mask = bits(2 * (rows[k].last - i)) & ~bits(2 * (rows[k].first - i));
                x[k] = _mm512_maskz_loadu_epi8(mask & 0x5555555555555555, rows[k].base + 2 * i);
                prefetch(rows[k].base, 2 * i + ahead);
            }
#pragma GCC unroll 2
            for (index k = 0; k < 2; ++k)
                pairs[k] = _mm512_permutexvar_epi64(
                    order, _mm512_or_si512(x[2 * k], _mm512_slli_epi16(x[2 * k + 1], 8)));
            _mm512_mask_storeu_epi32(to + i, __mmask16(bits(count - i)),
                                     _mm512_unpacklo_epi16(pairs[0], pairs[1]));
            _mm512_mask_storeu_epi32(to + i + 16, __mmask16(bits(count - i) >> 16),
                                     _mm512_unpackhi_epi16(pairs[0], pairs[1]));
        }
        return;
    }
    if (stride == 1) {
        // Permutes 128-bit lanes so that unpacking yields successive words.
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for (index i = 0; i < count; i += 64) {
            __m512i x[PER_WORD];
#pragma GCC unroll 4
            for (index k = 0; k < PER_WORD; ++k) {
                const auto mask = bits(rows[k].last - i) & ~bits(rows[k].first - i);
                x[k] = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(mask, rows[k].base + i));
                prefetch(rows[k].base, i + ahead);
            }
            const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
            const __m512i c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
            const __m512i words[] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c),
                                     _mm512_unpacklo_epi16(b, d), _mm512_unpackhi_epi16(b, d)};
#pragma GCC unroll 4
            for (index q = 0; q < 4; ++q)
                if (i + 16 * q < count)
                    _mm512_mask_storeu_epi32(to + i + 16 * q, __mmask16(bits(count - i) >> 16 * q),
                                             words[q]);
        }
        return;
    }
#elif defined(__SSE2__) || defined(__aarch64__)
    if (stride == 1) return interleave_blocks<1>(rows, count, ahead, to);
    if (stride == 2) return interleave_blocks<2>(rows, count, ahead, to);
#endif
    interleave_singly(rows, stride, count, to);
}

}  // namespace mulfree::MULFREE_ISA
