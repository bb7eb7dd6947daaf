// AVX-512 without VPOPCNTDQ (Skylake-SP, Cascade Lake): counts bits with tables in registers.
#include "avx512_intrinsics.h"
#include "sets.h"
#include "codes.inc.hpp"

// Bytes of the registers for table look-ups.
#define BINARIZE_LOOKUP 64

namespace {

constexpr int64_t kSet = BINARIZE_AVX512BW;
constexpr int64_t kVectors = 1;

#include "avx512_pack.inc.hpp"

typedef uint8_t Bytes __attribute__((vector_size(BINARIZE_LOOKUP)));

inline __m512i four_times(const uint8_t* row) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)row));
}

// A row of a table in all quarters of a register.
inline Bytes table_row(const uint8_t* row) { return (Bytes)four_times(row); }
inline Bytes look_up(Bytes row, Bytes index) {
  return (Bytes)_mm512_shuffle_epi8((__m512i)row, (__m512i)index);
}

inline void count_tile(int64_t, const uint64_t* const* pixel, const int64_t* offsets, int64_t reads,
                       const uint64_t* weight, int64_t, int32_t* out, int64_t stride,
                       int64_t lanes) {
  alignas(16) static const uint8_t ones[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
  const __m512i table = four_times(ones), low = _mm512_set1_epi8(0x0f);
  const __m512i zero = _mm512_setzero_si512();
  __m512i sum[kPixels], bytes[kPixels];
  for (int i = 0; i < kPixels; ++i) sum[i] = bytes[i] = zero;
  // A byte holds 31 times 8.
  int left = 31;
  for (int64_t r = 0; r < reads; ++r, weight += 8) {
    const __m512i w = _mm512_loadu_si512(weight);
#pragma GCC unroll 4
    for (int i = 0; i < kPixels; ++i) {
      const __m512i a = _mm512_set1_epi64((long long)pixel[i][offsets[r]]);
      const __m512i x = _mm512_xor_si512(a, w);
      const __m512i few = _mm512_shuffle_epi8(table, _mm512_and_si512(x, low));
      const __m512i rest =
          _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi64(x, 4), low));
      bytes[i] = _mm512_add_epi8(bytes[i], _mm512_add_epi8(few, rest));
    }
    if (--left > 0) continue;
    left = 31;
    for (int i = 0; i < kPixels; ++i) {
      sum[i] = _mm512_add_epi64(sum[i], _mm512_sad_epu8(bytes[i], zero));
      bytes[i] = zero;
    }
  }
  for (int i = 0; i < kPixels; ++i) {
    int64_t all[8];
    _mm512_storeu_si512(all, _mm512_add_epi64(sum[i], _mm512_sad_epu8(bytes[i], zero)));
    for (int64_t l = 0; l < lanes; ++l) out[i * stride + l] = (int32_t)all[l];
  }
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

BINARIZE_SET(avx512bw) { return run_unit(g, tensors, threads, runner, stream); }
BINARIZE_STREAM(avx512bw) { return stream_bytes(g); }
BINARIZE_PREPARED(avx512bw) { return prepared_bytes(g); }
BINARIZE_PREPARE(avx512bw) { prepare_weight(g, weight, prepared); }
BINARIZE_CODES(avx512bw) { write_codes(x, count, inverse, zero, codes); }
BINARIZE_DEPTHWISE(avx512bw) { run_depthwise(g, tensors, threads, runner); }
