// uint8 operands: several taps of a pixel share one lane (a word), so that one instruction sums them.
// AVX-512 VNNI: four taps in 32 bits, sum of max by vpdpbusd with ones. NEON: four taps in 32 bits, sum of
// absolute differences by udot with ones. Elsewhere: eight taps in 64 bits, the same by psadbw.
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

constexpr index PER_WORD = sizeof(Word);

// Which taps share a word: `across` successive channels by `along` successive columns of the kernel.
// Words of several columns unroll the kernel's width into channels; such a word channel stands for
// (channel, first column), and what lies outside the kernel is zero in x and w alike.
struct WordShape {
    index across = PER_WORD, along = 1;
    index channels, columns;  // of x and of the kernel
    index starts;             // first columns of a channel
    index place_channel[PER_WORD], place_column[PER_WORD];

    WordShape(index channels_, index columns_) : channels(channels_), columns(columns_) {
        index least = ceil_div(channels, PER_WORD) * columns;
        for (index b = 2; b <= PER_WORD; b *= 2) {
            const index words = ceil_div(channels, PER_WORD / b) * ceil_div(columns, b);
            if (words < least) least = words, along = b, across = PER_WORD / b;
        }
        starts = along == 1 ? 1 : ceil_div(columns, along);
        for (index k = 0; k < PER_WORD; ++k) place_channel[k] = k / along, place_column[k] = k % along;
    }
    index word_channels() const { return ceil_div(channels, across) * starts; }
    index taps() const { return along == 1 ? columns : 1; }

    // Of the first tap in a word of this channel.
    index channel(index word) const { return starts == 1 ? word * across : word / starts * across; }
    index column(index word) const { return starts == 1 ? 0 : word % starts * along; }

    // The weights of a word at tap `tap` of its width; w points to the kernel row in channel 0.
    Word weights(const std::uint8_t* w, index w_channel, index word, index tap) const {
        const index c = channel(word), j = column(word) + tap;
        Word bytes = 0;
        for (index k = 0; k < PER_WORD; ++k) {
            const index from = c + place_channel[k], at = j + place_column[k];
            if (from < channels && at < columns) bytes |= Word(w[from * w_channel + at]) << 8 * k;
        }
        return bytes;
    }
};

// The bytes of one place in a row of words: lanes [first, last) of base[lane * stride]; the rest is zero.
struct ByteRow {
    const std::uint8_t* base;
    index first, last;
};

// to[i] = the bytes i of the rows, begin <= i < end, one by one.
inline void interleave_singly(const ByteRow* rows, index stride, index begin, index end, Word* to) {
    for (index i = begin; i < end; ++i) to[i] = 0;
    for (index k = 0; k < PER_WORD; ++k)
        for (index i = larger(begin, rows[k].first); i < smaller(end, rows[k].last); ++i)
            to[i] |= Word(rows[k].base[i * stride]) << 8 * k;
}

// to[i] = the bytes i of the rows. `ahead` of them lie the bytes that are wanted next.
inline void interleave(const ByteRow* rows, index stride, index count, [[maybe_unused]] index ahead,
                       Word* to) {
#if defined(__AVX512VNNI__)
    const auto bits = [](index n) { return n >= 64 ? ~0ull : n <= 0 ? 0 : (1ull << n) - 1; };
    if (stride == 2) {
        const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // as below
        for (index i = 0; i < count; i += 32) {
            __m512i x[PER_WORD], pairs[2];  // of bytes: of rows 0 and 1, of rows 2 and 3
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
        // Brings the bytes to the 128-bit lanes in which unpacking leaves successive words.
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
#elif defined(__aarch64__)
    // Whole vectors of places that all rows have; the instruction that stores them interleaves.
    index first = 0, last = count;
    for (const ByteRow* row = rows; row != rows + PER_WORD; ++row)
        first = larger(first, row->first), last = smaller(last, row->last);
    constexpr index STEP = 16;
    if (stride <= 2 && stride > 0 && last - first >= STEP) {
        interleave_singly(rows, stride, 0, first, to);
        index i = first;
        for (; i + STEP <= last - (stride - 1); i += STEP) {
            uint8x16x4_t x;
#pragma GCC unroll 4
            for (index k = 0; k < PER_WORD; ++k)
                x.val[k] = stride == 1 ? vld1q_u8(rows[k].base + i) : vld2q_u8(rows[k].base + 2 * i).val[0];
            vst4q_u8(reinterpret_cast<std::uint8_t*>(to + i), x);
        }
        interleave_singly(rows, stride, i, count, to);
        return;
    }
#endif
    interleave_singly(rows, stride, 0, count, to);
}

}  // namespace mulfree::MULFREE_ISA
