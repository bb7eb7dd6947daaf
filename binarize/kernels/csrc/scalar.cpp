// Any processor: counts bits by adding neighboring fields of a word.
#include "sets.h"
#include "codes.inc.hpp"

namespace {

constexpr int64_t kSet = BINARIZE_SCALAR;
constexpr int64_t kVectors = 1;
constexpr int kRegister = 16;

struct Deviation {
  float lane[16] = {0};
  void add(const Deviation& other, float times) {
    for (int i = 0; i < 16; ++i) lane[i] += times * other.lane[i];
  }
  double total() const {
    double sum = 0;
    for (int i = 0; i < 16; ++i) sum += lane[i];
    return sum;
  }
};

template <bool kDeviation, bool kFlip>
inline uint64_t pack64(const float* x, const float* t, uint64_t flip, Deviation& deviation) {
  uint64_t less = 0, more = 0;
  for (int i = 0; i < 64; ++i) {
    less |= (uint64_t)(x[i] < t[i]) << i;
    if (kFlip) more |= (uint64_t)(x[i] > t[i]) << i;
  }
  if (kDeviation) {
    for (int i = 0; i < 64; ++i) deviation.lane[i % 16] += __builtin_fabsf(x[i] - t[i]);
  }
  return kFlip ? (~less & ~flip) | (~more & flip) : ~less;
}

// The same for fewer than 64 floats; the remaining bits are 0.
template <bool kDeviation, bool kFlip>
inline uint64_t pack_part(const float* x, const float* t, int64_t count, uint64_t flip,
                          Deviation& deviation) {
  float value[64] = {0}, level[64] = {0};
  for (int64_t i = 0; i < count; ++i) value[i] = x[i], level[i] = t[i];
  const uint64_t word = pack64<kDeviation, kFlip>(value, level, flip, deviation);
  return word & (((uint64_t)1 << count) - 1);
}

inline uint64_t ones(uint64_t v) {
  v = v - ((v >> 1) & 0x5555555555555555u);
  v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
  v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return (v * 0x0101010101010101u) >> 56;
}

inline void expand(const uint64_t* plane, int planes, int32_t* out) {
  for (int i = 0; i < 64; ++i) {
    int32_t sum = 0;
    for (int p = 0; p < planes; ++p) sum += (int32_t)((plane[8 * p] >> i) & 1) << p;
    out[i] = sum;
  }
}

#include "parallel.inc.hpp"
#include "plan.inc.hpp"

inline void count_tile(int64_t, const uint64_t* const* pixel, const int64_t* offsets, int64_t reads,
                       const uint64_t* weight, int64_t, int32_t* out, int64_t stride,
                       int64_t lanes) {
  for (int64_t i = 0; i < kPixels; ++i) {
    uint64_t sums[8] = {0};
    for (int64_t r = 0; r < reads; ++r) {
      const uint64_t a = pixel[i][offsets[r]];
      for (int l = 0; l < 8; ++l) sums[l] += ones(a ^ weight[8 * r + l]);
    }
    for (int64_t l = 0; l < lanes; ++l) out[i * stride + l] = (int32_t)sums[l];
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

BINARIZE_SET(scalar) { return run_unit(g, tensors, threads, runner, stream); }
BINARIZE_STREAM(scalar) { return stream_bytes(g); }

int64_t binarize_scratch_bytes(const BinarizeGeometry& g, int64_t threads) {
  Plan plan;
  int64_t bytes = 0;
  for (int64_t bits = 0; bits <= 8; bits += 4) {
    make_plan(g, bits, true, threads, nullptr, plan);
    bytes = max(bytes, plan.bytes);
  }
  return bytes;
}

int64_t binarize_layout_bytes(const BinarizeGeometry& g) { return portable_bytes(g); }
BINARIZE_CODES(scalar) { write_codes(x, count, inverse, zero, codes); }
BINARIZE_DEPTHWISE(scalar) { run_depthwise(g, tensors, threads, runner); }

int64_t binarize_depthwise_bytes(const BinarizeInt8Depthwise& g, int64_t threads) {
  return 64 + 4 * threads * depth_plan(g, threads).slot_floats;
}
