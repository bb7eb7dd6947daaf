// The intrinsics of AVX-512, or the same in plain code, by which .ci/kernels tests the sets on
// machines that have none of it.
#ifndef BINARIZE_AVX512_INTRINSICS_H
#define BINARIZE_AVX512_INTRINSICS_H

#if defined(BINARIZE_EMULATED)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif

#endif
