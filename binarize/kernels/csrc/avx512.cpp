// AVX-512 with VPOPCNTDQ: one instruction counts the bits of eight words.
#include "avx512_intrinsics.h"
#include "sets.h"
#include "codes.inc.hpp"

namespace {

constexpr int64_t kSet = BINARIZE_AVX512;
constexpr int64_t kVectors = 4;

#include "avx512_pack.inc.hpp"

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

BINARIZE_SET(avx512) { return run_unit(g, tensors, threads, runner, stream); }
BINARIZE_STREAM(avx512) { return stream_bytes(g); }
BINARIZE_CODES(avx512) { write_codes(x, count, inverse, zero, codes); }
BINARIZE_DEPTHWISE(avx512) { run_depthwise(g, tensors, threads, runner); }
