// One function per instruction set; each lives in a file compiled for that set alone.
#ifndef BINARIZE_SETS_H
#define BINARIZE_SETS_H

#include <utility>

#include "binarize.h"

#if defined(__unix__) || defined(__APPLE__)
#define BINARIZE_POSIX
#include <sched.h>
#endif

#define BINARIZE_SET(name)                                                            \
  int32_t binarize_unit_##name(const BinarizeGeometry& g, const void* const* tensors, \
                               int64_t threads, BinarizeRunner runner)

BINARIZE_SET(scalar);
BINARIZE_SET(avx2);
BINARIZE_SET(avx512);
BINARIZE_SET(neon);

int64_t binarize_scratch_bytes(const BinarizeGeometry& g, int64_t threads);
int64_t binarize_layout_bytes(const BinarizeGeometry& g);

#endif
