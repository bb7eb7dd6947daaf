// AVX-512 with VPOPCNTDQ: eight words counted by one instruction.
#include <immintrin.h>

#include "sets.h"

namespace {

constexpr int64_t kSet = BINARIZE_AVX512;
constexpr int64_t kVectors = 4;
constexpr int kRegister = 64;

struct Deviation {
  __m512 lane[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                    _mm512_setzero_ps()};
  void add(const Deviation& other, float times) {
    for (int i = 0; i < 4; ++i) {
      lane[i] = _mm512_add_ps(lane[i], _mm512_mul_ps(_mm512_set1_ps(times), other.lane[i]));
    }
  }
  double total() const {
    float all[64];
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(all + 16 * i, lane[i]);
    double sum = 0;
    for (int i = 0; i < 64; ++i) sum += all[i];
    return sum;
  }
};

template <bool kDeviation, bool kFlip>
inline uint64_t pack64(const float* x, const float* t, uint64_t flip, Deviation& deviation) {
  uint64_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const __m512 value = _mm512_loadu_ps(x + 16 * i), level = _mm512_loadu_ps(t + 16 * i);
    uint32_t mask = _mm512_cmp_ps_mask(value, level, _CMP_NLT_UQ);
    if (kFlip) {
      const uint32_t chosen = (uint32_t)(flip >> (16 * i)) & 0xffff;
      const uint32_t other = _mm512_cmp_ps_mask(value, level, _CMP_NGT_UQ);
      mask = (mask & ~chosen) | (other & chosen);
    }
    word |= (uint64_t)mask << (16 * i);
    if (kDeviation) {
      deviation.lane[i] =
          _mm512_add_ps(deviation.lane[i], _mm512_abs_ps(_mm512_sub_ps(value, level)));
    }
  }
  return word;
}

// The same of fewer than 64 floats; the bits beyond them are 0.
template <bool kDeviation, bool kFlip>
inline uint64_t pack_part(const float* x, const float* t, int64_t count, uint64_t flip,
                          Deviation& deviation) {
  uint64_t word = 0;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (16 * i >= count) break;
    const int64_t left = count - 16 * i;
    const __mmask16 valid = left >= 16 ? 0xffff : (__mmask16)((1 << left) - 1);
    const __m512 value = _mm512_maskz_loadu_ps(valid, x + 16 * i);
    const __m512 level = _mm512_maskz_loadu_ps(valid, t + 16 * i);
    uint32_t mask = _mm512_mask_cmp_ps_mask(valid, value, level, _CMP_NLT_UQ);
    if (kFlip) {
      const uint32_t chosen = (uint32_t)(flip >> (16 * i)) & 0xffff;
      const uint32_t other = _mm512_mask_cmp_ps_mask(valid, value, level, _CMP_NGT_UQ);
      mask = (mask & ~chosen) | (other & chosen);
    }
    word |= (uint64_t)mask << (16 * i);
    if (kDeviation) {
      deviation.lane[i] =
          _mm512_add_ps(deviation.lane[i], _mm512_abs_ps(_mm512_sub_ps(value, level)));
    }
  }
  return word;
}

inline void expand(const uint64_t* plane, int planes, int32_t* out) {
  // Bytes first, up to 8 planes; they hold the count of 255 taps.
  __m512i bytes = _mm512_setzero_si512();
  const int few = planes < 8 ? planes : 8;
  for (int p = 0; p < few; ++p) {
    bytes = _mm512_or_si512(bytes, _mm512_maskz_set1_epi8((__mmask64)plane[8 * p], (char)(1 << p)));
  }
  __m512i sum[4] = {_mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes)),
                    _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 1)),
                    _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 2)),
                    _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 3))};
  for (int p = 8; p < planes; ++p) {
    const __m512i place = _mm512_set1_epi32(1 << p);
    const uint64_t word = plane[8 * p];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      sum[i] = _mm512_mask_or_epi32(sum[i], (__mmask16)(word >> (16 * i)), sum[i], place);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) _mm512_storeu_si512(out + 16 * i, sum[i]);
}

#include "parallel.hpp"
#include "plan.hpp"

template <int kWide>
__attribute__((noinline)) void count_wide(const uint64_t* const* pixel, const int64_t* offsets,
                                          int64_t reads, const uint64_t* weight,
                                          int64_t block_words, int32_t* out, int64_t stride,
                                          int64_t lanes) {
  __m512i sum[kPixels][kWide];
#pragma GCC unroll 4
  for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) sum[i][v] = _mm512_setzero_si512();
  }
  const uint64_t *a0 = pixel[0], *a1 = pixel[1], *a2 = pixel[2], *a3 = pixel[3];
  for (int64_t r = 0; r < reads; ++r, weight += 8) {
    const int64_t at = offsets[r];
    const __m512i a[kPixels] = {
        _mm512_set1_epi64((long long)a0[at]), _mm512_set1_epi64((long long)a1[at]),
        _mm512_set1_epi64((long long)a2[at]), _mm512_set1_epi64((long long)a3[at])};
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) {
      const __m512i w = _mm512_loadu_si512(weight + v * block_words);
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i) {
        sum[i][v] = _mm512_add_epi64(sum[i][v], _mm512_popcnt_epi64(_mm512_xor_si512(a[i], w)));
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kWide; ++v) {
    const int64_t left = lanes - 8 * v;
    const __mmask8 mask = left >= 8 ? 0xff : (__mmask8)((1 << left) - 1);
#pragma GCC unroll 4
    for (int i = 0; i < kPixels; ++i) {
      _mm256_mask_storeu_epi32(out + i * stride + 8 * v, mask, _mm512_cvtepi64_epi32(sum[i][v]));
    }
  }
}

inline void count_tile(int64_t wide, const uint64_t* const* pixel, const int64_t* offsets,
                       int64_t reads, const uint64_t* weight, int64_t block_words, int32_t* out,
                       int64_t stride, int64_t lanes) {
  switch (wide) {
    case 1:
      return count_wide<1>(pixel, offsets, reads, weight, block_words, out, stride, lanes);
    case 2:
      return count_wide<2>(pixel, offsets, reads, weight, block_words, out, stride, lanes);
    case 3:
      return count_wide<3>(pixel, offsets, reads, weight, block_words, out, stride, lanes);
    default:
      return count_wide<4>(pixel, offsets, reads, weight, block_words, out, stride, lanes);
  }
}

// One bit per lane.
#define BINARIZE_MASKS
inline uint64_t not_less(Floats x, Floats t) {
  return _mm512_cmp_ps_mask((__m512)x, (__m512)t, _CMP_NLT_UQ);
}
inline Floats magnitude(Floats x) { return (Floats)_mm512_abs_ps((__m512)x); }

#include "bits.hpp"
#include "table.hpp"
#include "bypass.hpp"
#include "finish.hpp"
#include "count.hpp"
#include "lookup.hpp"
#include "convolve.hpp"

}  // namespace

BINARIZE_SET(avx512) { return run_unit(g, tensors, threads, runner); }
