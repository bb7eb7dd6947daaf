// The C ABI: which kernels are compiled in, which this machine can run, and the dispatch to them.
#include "sets.h"

namespace {

#if defined(__x86_64__) || defined(__i386__)
#if defined(_WIN32)
// clang-cl does not link the library that __builtin_cpu_supports needs.
struct Processor {
  uint32_t b = 0, c = 0;  // of CPUID leaf 7
  uint64_t saved = 0;     // registers that the operating system saves

  Processor() {
    if (leaf(0, 0) < 7) return;
    leaf(1, 0);
    const bool reports_saved = c >> 27 & 1;
    leaf(7, 0);
    uint32_t low, high;
    if (!reports_saved) return;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    saved = (uint64_t)high << 32 | low;
  }
  uint32_t leaf(uint32_t number, uint32_t part) {
    uint32_t a, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(number), "c"(part));
    return a;
  }
  bool saves(uint64_t registers) const { return (saved & registers) == registers; }
};

constexpr uint64_t kAvxRegisters = 0x06, kAvx512Registers = 0xe6;

bool runs_avx2() {
  const Processor processor;
  return processor.saves(kAvxRegisters) && processor.b >> 5 & 1;
}
#else
// It also checks what the operating system saves.
bool runs_avx2() { return __builtin_cpu_supports("avx2"); }
#endif
#if defined(BINARIZE_EMULATED)
bool runs_avx512bw() { return true; }
bool runs_avx512() { return true; }
#elif defined(_WIN32)
constexpr uint32_t kAvx512Bw = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL

bool runs_avx512bw() {
  const Processor processor;
  return processor.saves(kAvx512Registers) && (processor.b & kAvx512Bw) == kAvx512Bw;
}
bool runs_avx512() { return runs_avx512bw() && Processor().c >> 14 & 1; }
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

bool is_valid(const BinarizeInt8Depthwise& g) {
  if (g.samples < 0 || g.channels < 1) return false;
  for (int d = 0; d < 2; ++d) {
    if (g.in_size[d] < 1 || g.out_size[d] < 1 || g.kernel[d] < 1 || g.stride[d] < 1 ||
        g.dilation[d] < 1)
      return false;
  }
  return g.kernel[0] <= BINARIZE_DEPTH_MAX_ROWS &&
         g.kernel[1] <= BINARIZE_DEPTH_MAX_TAPS / g.kernel[0] && g.in_zero >= 0 &&
         g.in_zero <= 255 && g.out_zero >= 0 && g.out_zero <= 255;
}

// One set's functions.
struct Kernels {
  decltype(&binarize_unit_scalar) unit;
  decltype(&binarize_codes_scalar) codes;
  decltype(&binarize_int8_depthwise_scalar) depthwise;
};

#define BINARIZE_KERNELS_OF(name) \
  { binarize_unit_##name, binarize_codes_##name, binarize_int8_depthwise_##name }

Kernels kernels_of(int32_t set) {
  switch (set) {
#if defined(BINARIZE_WITH_AVX2)
    case BINARIZE_AVX2:
      return BINARIZE_KERNELS_OF(avx2);
#endif
#if defined(BINARIZE_WITH_AVX512)
    case BINARIZE_AVX512:
      return BINARIZE_KERNELS_OF(avx512);
#endif
#if defined(BINARIZE_WITH_AVX512BW)
    case BINARIZE_AVX512BW:
      return BINARIZE_KERNELS_OF(avx512bw);
#endif
#if defined(BINARIZE_WITH_NEON)
    case BINARIZE_NEON:
      return BINARIZE_KERNELS_OF(neon);
#endif
    default:
      return BINARIZE_KERNELS_OF(scalar);
  }
}

}  // namespace

int32_t binarize_abi(void) { return BINARIZE_ABI; }

#if defined(_WIN32)
namespace {

// What compilers call for `#pragma omp parallel num_threads(threads)`.
struct Location {
  int32_t reserved, flags, more[2];
  const char* source;
};

using Body = void (*)(void*);
using Task = void (*)(int32_t*, int32_t*, Body, void*);

void run_task(int32_t*, int32_t*, Body body, void* data) { body(data); }

}  // namespace

void binarize_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  static Location here = {0, 2, {0, 0}, ";binarize;binarize_parallel;0;0;;"};
  const HMODULE runtime = GetModuleHandleA("libiomp5md.dll");
  if (!runtime) return body(data);
  auto thread_number =
      (int32_t(*)(Location*))(void*)GetProcAddress(runtime, "__kmpc_global_thread_num");
  auto request = (void (*)(Location*, int32_t, int32_t))(void*)GetProcAddress(
      runtime, "__kmpc_push_num_threads");
  auto fork =
      (void (*)(Location*, int32_t, Task, ...))(void*)GetProcAddress(runtime, "__kmpc_fork_call");
  if (!thread_number || !request || !fork) return body(data);
  request(&here, thread_number(&here), (int32_t)threads);
  fork(&here, 2, run_task, body, data);
}
#endif

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

int64_t binarize_stream_bytes(int32_t set, const BinarizeGeometry* g) {
  if (!g || !is_valid(*g)) return -1;
  switch (set) {
#if defined(BINARIZE_WITH_AVX2)
    case BINARIZE_AVX2:
      return binarize_stream_avx2(*g);
#endif
#if defined(BINARIZE_WITH_AVX512)
    case BINARIZE_AVX512:
      return binarize_stream_avx512(*g);
#endif
#if defined(BINARIZE_WITH_AVX512BW)
    case BINARIZE_AVX512BW:
      return binarize_stream_avx512bw(*g);
#endif
#if defined(BINARIZE_WITH_NEON)
    case BINARIZE_NEON:
      return binarize_stream_neon(*g);
#endif
    default:
      return binarize_stream_scalar(*g);
  }
}

int32_t binarize_unit_stream(int32_t set, const BinarizeGeometry* g, const void* const* tensors,
                             int64_t threads, BinarizeRunner runner, BinarizeStream* stream) {
  if (!g || threads < 1 || !is_valid(*g)) return BINARIZE_BAD_GEOMETRY;
  if (binarize_available(set) != 2) return BINARIZE_NOT_AVAILABLE;
  if (g->samples == 0) return BINARIZE_OK;
  return kernels_of(set).unit(*g, tensors, threads, runner, stream);
}

int32_t binarize_unit(int32_t set, const BinarizeGeometry* g, const void* const* tensors,
                      int64_t threads, BinarizeRunner runner) {
  return binarize_unit_stream(set, g, tensors, threads, runner, nullptr);
}

int32_t binarize_codes(int32_t set, const float* x, int64_t count, float inverse, int32_t zero,
                       uint8_t* codes) {
  if (count < 0 || zero < 0 || zero > 255) return BINARIZE_BAD_GEOMETRY;
  if (binarize_available(set) != 2) return BINARIZE_NOT_AVAILABLE;
  kernels_of(set).codes(x, count, inverse, zero, codes);
  return BINARIZE_OK;
}

int64_t binarize_int8_depthwise_scratch(const BinarizeInt8Depthwise* g, int64_t threads) {
  if (!g || threads < 1 || !is_valid(*g)) return -1;
  return binarize_depthwise_bytes(*g, threads);
}

int32_t binarize_int8_depthwise(int32_t set, const BinarizeInt8Depthwise* g,
                                const void* const* tensors, int64_t threads,
                                BinarizeRunner runner) {
  if (!g || threads < 1 || !is_valid(*g)) return BINARIZE_BAD_GEOMETRY;
  if (binarize_available(set) != 2) return BINARIZE_NOT_AVAILABLE;
  if (g->samples == 0) return BINARIZE_OK;
  kernels_of(set).depthwise(*g, tensors, threads, runner);
  return BINARIZE_OK;
}
