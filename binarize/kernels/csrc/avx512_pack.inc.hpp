// Shared by both AVX-512 sets: packing, counting in bit planes, and the plan of the stages.

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

// The same for fewer than 64 floats; the remaining bits are 0.
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

#include "parallel.inc.hpp"
#include "plan.inc.hpp"

// One bit per lane.
#define BINARIZE_MASKS
inline uint64_t not_less(Floats x, Floats t) {
  return _mm512_cmp_ps_mask((__m512)x, (__m512)t, _CMP_NLT_UQ);
}
inline Floats magnitude(Floats x) { return (Floats)_mm512_abs_ps((__m512)x); }

// Bytes of 8-bit codes.
#define BINARIZE_BYTES
inline Ints widen_bytes(const uint8_t* from) {
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
}
inline void narrow_to_bytes(Ints v, uint8_t* to) {
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
}
