// The C ABI: which kernels are compiled in, which this machine can run, and the dispatch to them.
#include "sets.h"

namespace {

#if defined(__x86_64__) || defined(__i386__)
// __builtin_cpu_supports also checks what the operating system saves.
bool runs_avx2() { return __builtin_cpu_supports("avx2"); }
#if defined(BINARIZE_EMULATED)
bool runs_avx512bw() { return true; }
bool runs_avx512() { return true; }
#else
bool runs_avx512bw() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool runs_avx512() { return runs_avx512bw() && __builtin_cpu_supports("avx512vpopcntdq"); }
#endif
#endif

bool is_valid(const BinarizeGeometry& g) {
  if (g.samples < 0 || g.in_channels < 1 || g.out_channels < 1 || g.groups < 1) return false;
  if (g.in_channels % g.groups || g.out_channels % g.groups || g.sources < 1) return false;
  for (int d = 0; d < 3; ++d) {
    if (g.in_size[d] < 1 || g.out_size[d] < 1 || g.kernel[d] < 1 || g.stride[d] < 1 ||
        g.dilation[d] < 1)
      return false;
    for (int64_t i = 0; i < g.sources; ++i) {
      const int64_t up = g.source[6 * i + 1];
      if (up < 1 || (g.in_size[d] % up && g.in_size[d] != 1)) return false;
    }
  }
  return true;
}

}  // namespace

int32_t binarize_abi(void) { return BINARIZE_ABI; }

int32_t binarize_available(int32_t set) {
  switch (set) {
    case BINARIZE_SCALAR:
      return 2;
#if defined(BINARIZE_WITH_AVX2)
    case BINARIZE_AVX2:
      return runs_avx2() ? 2 : 1;
#endif
#if defined(BINARIZE_WITH_AVX512)
    case BINARIZE_AVX512:
      return runs_avx512() ? 2 : 1;
#endif
#if defined(BINARIZE_WITH_AVX512BW)
    case BINARIZE_AVX512BW:
      return runs_avx512bw() ? 2 : 1;
#endif
#if defined(BINARIZE_WITH_NEON)
    case BINARIZE_NEON:
      return 2;
#endif
    default:
      return 0;
  }
}

int64_t binarize_prepared(int32_t set, const BinarizeGeometry* g) {
  if (!g || !is_valid(*g)) return -1;
  switch (set) {
#if defined(BINARIZE_WITH_AVX2)
    case BINARIZE_AVX2:
      return binarize_prepared_avx2(*g);
#endif
#if defined(BINARIZE_WITH_AVX512BW)
    case BINARIZE_AVX512BW:
      return binarize_prepared_avx512bw(*g);
#endif
    default:
      return 0;
  }
}

int32_t binarize_prepare_weight(int32_t set, const BinarizeGeometry* g, const void* weight,
                                void* prepared) {
  if (!g || !is_valid(*g)) return BINARIZE_BAD_GEOMETRY;
  switch (set) {
#if defined(BINARIZE_WITH_AVX2)
    case BINARIZE_AVX2:
      binarize_prepare_avx2(*g, (const uint64_t*)weight, (uint8_t*)prepared);
      return BINARIZE_OK;
#endif
#if defined(BINARIZE_WITH_AVX512BW)
    case BINARIZE_AVX512BW:
      binarize_prepare_avx512bw(*g, (const uint64_t*)weight, (uint8_t*)prepared);
      return BINARIZE_OK;
#endif
    default:
      return BINARIZE_NOT_AVAILABLE;
  }
}

int64_t binarize_scratch(const BinarizeGeometry* g, int64_t threads) {
  if (!g || threads < 1 || !is_valid(*g)) return -1;
  return binarize_scratch_bytes(*g, threads);
}

int64_t binarize_weight_bytes(const BinarizeGeometry* g) {
  if (!g || !is_valid(*g)) return -1;
  return binarize_layout_bytes(*g);
}

int32_t binarize_unit(int32_t set, const BinarizeGeometry* g, const void* const* tensors,
                      int64_t threads, BinarizeRunner runner) {
  if (!g || threads < 1 || !is_valid(*g)) return BINARIZE_BAD_GEOMETRY;
  if (binarize_available(set) != 2) return BINARIZE_NOT_AVAILABLE;
  if (g->samples == 0) return BINARIZE_OK;
  switch (set) {
#if defined(BINARIZE_WITH_AVX2)
    case BINARIZE_AVX2:
      return binarize_unit_avx2(*g, tensors, threads, runner);
#endif
#if defined(BINARIZE_WITH_AVX512)
    case BINARIZE_AVX512:
      return binarize_unit_avx512(*g, tensors, threads, runner);
#endif
#if defined(BINARIZE_WITH_AVX512BW)
    case BINARIZE_AVX512BW:
      return binarize_unit_avx512bw(*g, tensors, threads, runner);
#endif
#if defined(BINARIZE_WITH_NEON)
    case BINARIZE_NEON:
      return binarize_unit_neon(*g, tensors, threads, runner);
#endif
    default:
      return binarize_unit_scalar(*g, tensors, threads, runner);
  }
}

int32_t binarize_codes(int32_t set, const float* x, int64_t count, float inverse, int32_t zero,
                       uint8_t* codes) {
  if (count < 0 || zero < 0 || zero > 255) return BINARIZE_BAD_GEOMETRY;
  if (binarize_available(set) != 2) return BINARIZE_NOT_AVAILABLE;
  switch (set) {
#if defined(BINARIZE_WITH_AVX2)
    case BINARIZE_AVX2:
      binarize_codes_avx2(x, count, inverse, zero, codes);
      break;
#endif
#if defined(BINARIZE_WITH_AVX512)
    case BINARIZE_AVX512:
      binarize_codes_avx512(x, count, inverse, zero, codes);
      break;
#endif
#if defined(BINARIZE_WITH_AVX512BW)
    case BINARIZE_AVX512BW:
      binarize_codes_avx512bw(x, count, inverse, zero, codes);
      break;
#endif
#if defined(BINARIZE_WITH_NEON)
    case BINARIZE_NEON:
      binarize_codes_neon(x, count, inverse, zero, codes);
      break;
#endif
    default:
      binarize_codes_scalar(x, count, inverse, zero, codes);
  }
  return BINARIZE_OK;
}
