// One function per instruction set; each lives in a file compiled for that set alone.
#ifndef BINARIZE_SETS_H
#define BINARIZE_SETS_H

#include <type_traits>
#include <utility>

#include "binarize.h"
#include "platform.h"

#define BINARIZE_SET(name)                                                            \
  int32_t binarize_unit_##name(const BinarizeGeometry& g, const void* const* tensors, \
                               int64_t threads, BinarizeRunner runner, BinarizeStream* stream)

// Bytes of a stream's memory.
#define BINARIZE_STREAM(name) int64_t binarize_stream_##name(const BinarizeGeometry& g)

// Bytes of a weight in the set's fastest order for counting, and the weight in that order.
#define BINARIZE_PREPARED(name) int64_t binarize_prepared_##name(const BinarizeGeometry& g)
#define BINARIZE_PREPARE(name) \
  void binarize_prepare_##name(const BinarizeGeometry& g, const uint64_t* weight, uint8_t* prepared)

// Codes of `count` numbers, see codes.inc.hpp.
#define BINARIZE_CODES(name)                                                             \
  void binarize_codes_##name(const float* x, int64_t count, float inverse, int32_t zero, \
                             uint8_t* codes)

// Runs a depthwise convolution, and its scratch memory, which is the same for all sets.
#define BINARIZE_DEPTHWISE(name)                                                                  \
  void binarize_int8_depthwise_##name(const BinarizeInt8Depthwise& g, const void* const* tensors, \
                                      int64_t threads, BinarizeRunner runner)

BINARIZE_PREPARED(avx2);
BINARIZE_PREPARE(avx2);
BINARIZE_PREPARED(avx512bw);
BINARIZE_PREPARE(avx512bw);
BINARIZE_SET(scalar);
BINARIZE_SET(avx2);
BINARIZE_SET(avx512);
BINARIZE_SET(avx512bw);
BINARIZE_SET(neon);
BINARIZE_STREAM(scalar);
BINARIZE_STREAM(avx2);
BINARIZE_STREAM(avx512);
BINARIZE_STREAM(avx512bw);
BINARIZE_STREAM(neon);
BINARIZE_CODES(scalar);
BINARIZE_CODES(avx2);
BINARIZE_CODES(avx512);
BINARIZE_CODES(avx512bw);
BINARIZE_CODES(neon);
BINARIZE_DEPTHWISE(scalar);
BINARIZE_DEPTHWISE(avx2);
BINARIZE_DEPTHWISE(avx512);
BINARIZE_DEPTHWISE(avx512bw);
BINARIZE_DEPTHWISE(neon);

int64_t binarize_scratch_bytes(const BinarizeGeometry& g, int64_t threads);
int64_t binarize_layout_bytes(const BinarizeGeometry& g);
int64_t binarize_depthwise_bytes(const BinarizeInt8Depthwise& g, int64_t threads);

#endif
