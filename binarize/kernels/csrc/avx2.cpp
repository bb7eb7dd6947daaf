// AVX2: counts the bits of four words at a time with a table in a register.
#include <immintrin.h>

#include "sets.h"
#include "codes.inc.hpp"

// Bytes of the registers for table look-ups.
#define BINARIZE_LOOKUP 32

namespace {

constexpr int64_t kSet = BINARIZE_AVX2;
constexpr int64_t kVectors = 1;
constexpr int kRegister = 32;

struct Deviation {
  __m256 lane[8];
  Deviation() {
    for (__m256& l : lane) l = _mm256_setzero_ps();
  }
  void add(const Deviation& other, float times) {
    for (int i = 0; i < 8; ++i) {
      lane[i] = _mm256_add_ps(lane[i], _mm256_mul_ps(_mm256_set1_ps(times), other.lane[i]));
    }
  }
  double total() const {
    float all[64];
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(all + 8 * i, lane[i]);
    double sum = 0;
    for (int i = 0; i < 64; ++i) sum += all[i];
    return sum;
  }
};

template <bool kDeviation, bool kFlip>
inline uint64_t pack64(const float* x, const float* t, uint64_t flip, Deviation& deviation) {
  const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  uint64_t word = 0, other = 0;
  for (int i = 0; i < 8; ++i) {
    const __m256 value = _mm256_loadu_ps(x + 8 * i), level = _mm256_loadu_ps(t + 8 * i);
    const __m256 mask = _mm256_cmp_ps(value, level, _CMP_NLT_UQ);
    word |= (uint64_t)(uint32_t)_mm256_movemask_ps(mask) << (8 * i);
    if (kFlip) {
      const __m256 turned = _mm256_cmp_ps(value, level, _CMP_NGT_UQ);
      other |= (uint64_t)(uint32_t)_mm256_movemask_ps(turned) << (8 * i);
    }
    if (kDeviation) {
      deviation.lane[i] =
          _mm256_add_ps(deviation.lane[i], _mm256_and_ps(positive, _mm256_sub_ps(value, level)));
    }
  }
  return kFlip ? (word & ~flip) | (other & flip) : word;
}

// The same for fewer than 64 floats; the remaining bits are 0.
template <bool kDeviation, bool kFlip>
inline uint64_t pack_part(const float* x, const float* t, int64_t count, uint64_t flip,
                          Deviation& deviation) {
  const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  uint64_t word = 0, other = 0;
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    if (8 * i >= count) break;
    const __m256i valid = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count - 8 * i), number);
    const __m256 value = _mm256_maskload_ps(x + 8 * i, valid);
    const __m256 level = _mm256_maskload_ps(t + 8 * i, valid);
    const __m256 mask = _mm256_cmp_ps(value, level, _CMP_NLT_UQ);
    word |= (uint64_t)(uint32_t)_mm256_movemask_ps(mask) << (8 * i);
    if (kFlip) {
      const __m256 turned = _mm256_cmp_ps(value, level, _CMP_NGT_UQ);
      other |= (uint64_t)(uint32_t)_mm256_movemask_ps(turned) << (8 * i);
    }
    if (kDeviation) {
      deviation.lane[i] =
          _mm256_add_ps(deviation.lane[i], _mm256_and_ps(positive, _mm256_sub_ps(value, level)));
    }
  }
  const uint64_t bits = kFlip ? (word & ~flip) | (other & flip) : word;
  return bits & (((uint64_t)1 << count) - 1);
}

inline void expand(const uint64_t* plane, int planes, int32_t* out) {
  const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  for (int i = 0; i < 8; ++i) {
    __m256i sum = _mm256_setzero_si256();
    for (int p = 0; p < planes; ++p) {
      const __m256i bits = _mm256_set1_epi32((int)((plane[8 * p] >> (8 * i)) & 0xff));
      const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(bits, place), place);
      sum = _mm256_or_si256(sum, _mm256_and_si256(set, _mm256_set1_epi32(1 << p)));
    }
    _mm256_storeu_si256((__m256i*)(out + 8 * i), sum);
  }
}

#include "parallel.inc.hpp"
#include "plan.inc.hpp"

#define BINARIZE_BYTES
inline Ints widen_bytes(const uint8_t* from) {
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
}
inline void narrow_to_bytes(Ints v, uint8_t* to) {
  const __m256i x = (__m256i)v;
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(words, words));
}

inline void count_tile(int64_t, const uint64_t* const* pixel, const int64_t* offsets, int64_t reads,
                       const uint64_t* weight, int64_t, int32_t* out, int64_t stride,
                       int64_t lanes) {
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2,
                                         1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i zero = _mm256_setzero_si256();
  __m256i sum[kPixels][2], bytes[kPixels][2];
  for (int i = 0; i < kPixels; ++i) {
    for (int v = 0; v < 2; ++v) sum[i][v] = bytes[i][v] = zero;
  }
  // A byte holds 31 times 8.
  int left = 31;
  for (int64_t r = 0; r < reads; ++r, weight += 8) {
    const int64_t at = offsets[r];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256i w = _mm256_loadu_si256((const __m256i*)(weight + 4 * v));
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i) {
        const __m256i a = _mm256_set1_epi64x((long long)pixel[i][at]);
        const __m256i x = _mm256_xor_si256(a, w);
        const __m256i few = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
        const __m256i rest =
            _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi64(x, 4), low));
        bytes[i][v] = _mm256_add_epi8(bytes[i][v], _mm256_add_epi8(few, rest));
      }
    }
    if (--left == 0) {
      left = 31;
      for (int i = 0; i < kPixels; ++i) {
        for (int v = 0; v < 2; ++v) {
          sum[i][v] = _mm256_add_epi64(sum[i][v], _mm256_sad_epu8(bytes[i][v], zero));
          bytes[i][v] = zero;
        }
      }
    }
  }
  for (int i = 0; i < kPixels; ++i) {
    int64_t all[8];
    for (int v = 0; v < 2; ++v) {
      _mm256_storeu_si256((__m256i*)(all + 4 * v),
                          _mm256_add_epi64(sum[i][v], _mm256_sad_epu8(bytes[i][v], zero)));
    }
    for (int64_t l = 0; l < lanes; ++l) {
      out[i * stride + l] = (int32_t)all[l];
    }
  }
}

typedef uint8_t Bytes __attribute__((vector_size(BINARIZE_LOOKUP)));

// A row of a table in both halves of a register.
inline Bytes table_row(const uint8_t* row) {
  return (Bytes)_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)row));
}
inline Bytes look_up(Bytes row, Bytes index) {
  return (Bytes)_mm256_shuffle_epi8((__m256i)row, (__m256i)index);
}

// One bit per lane.
#define BINARIZE_MASKS
inline uint64_t not_less(Floats x, Floats t) {
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)t, _CMP_NLT_UQ));
}
inline Floats magnitude(Floats x) {
  return (Floats)_mm256_and_ps(_mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), (__m256)x);
}

// x0 + x1, x2 + x3, ...
#define BINARIZE_PAIR_SUMS
inline Floats pair_sums(Floats a, Floats b) {
  const __m256d sums = _mm256_castps_pd(_mm256_hadd_ps((__m256)a, (__m256)b));
  return (Floats)_mm256_castpd_ps(_mm256_permute4x64_pd(sums, 0xd8));
}

#include "bits.inc.hpp"
#include "table.inc.hpp"
#include "bypass.inc.hpp"
#include "bytes.inc.hpp"
#include "finish.inc.hpp"
#include "count.inc.hpp"
#include "lookup.inc.hpp"
#include "stream.inc.hpp"
#include "convolve.inc.hpp"
#include "depthwise_int8.inc.hpp"

}  // namespace

BINARIZE_SET(avx2) { return run_unit(g, tensors, threads, runner, stream); }
BINARIZE_STREAM(avx2) { return stream_bytes(g); }
BINARIZE_PREPARED(avx2) { return prepared_bytes(g); }
BINARIZE_PREPARE(avx2) { prepare_weight(g, weight, prepared); }
BINARIZE_CODES(avx2) { write_codes(x, count, inverse, zero, codes); }
BINARIZE_DEPTHWISE(avx2) { run_depthwise(g, tensors, threads, runner); }
