// The intrinsics of AVX-512, or the same in plain code, with which .ci/kernels tests the sets on
// machines without them.
#ifndef BINARIZE_AVX512_INTRINSICS_H
#define BINARIZE_AVX512_INTRINSICS_H

#if defined(BINARIZE_EMULATED)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <stdint.h>

// Missing in SIMDe 0.7.4.
static inline __m512i emulated_cvtepu8_epi32(__m128i bytes) {
  uint8_t from[16];
  uint32_t to[16];
  __m512i result;
  __builtin_memcpy(from, &bytes, sizeof(from));
  for (int i = 0; i < 16; ++i) to[i] = from[i];
  __builtin_memcpy(&result, to, sizeof(result));
  return result;
}
static inline __m128i emulated_cvtepi32_epi8(__m512i ints) {
  uint32_t from[16];
  uint8_t to[16];
  __m128i result;
  __builtin_memcpy(from, &ints, sizeof(from));
  for (int i = 0; i < 16; ++i) to[i] = (uint8_t)from[i];
  __builtin_memcpy(&result, to, sizeof(result));
  return result;
}
static inline __m512 emulated_maskz_loadu_ps(uint16_t mask, const float* from) {
  float to[16];
  __m512 result;
  for (int i = 0; i < 16; ++i) to[i] = mask >> i & 1 ? from[i] : 0;
  __builtin_memcpy(&result, to, sizeof(result));
  return result;
}
static inline void emulated_mask_storeu_epi32(int32_t* to, uint8_t mask, __m256i value) {
  int32_t from[8];
  __builtin_memcpy(from, &value, sizeof(from));
  for (int i = 0; i < 8; ++i) {
    if (mask >> i & 1) to[i] = from[i];
  }
}
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi32_epi8
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_cmp_ps_mask
#undef _mm256_mask_storeu_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_cmp_ps_mask(mask, a, b, how) ((mask)&_mm512_cmp_ps_mask(a, b, how))
#define _mm256_mask_storeu_epi32 emulated_mask_storeu_epi32
#else
#include <immintrin.h>
#endif

#endif
