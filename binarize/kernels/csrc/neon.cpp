// NEON (AArch64): counts bits byte by byte.
#include <arm_neon.h>

#include "sets.h"
#include "codes.inc.hpp"

namespace {

constexpr int64_t kSet = BINARIZE_NEON;
constexpr int64_t kVectors = 1;
constexpr int kRegister = 16;

struct Deviation {
  float32x4_t lane[16];
  Deviation() {
    for (float32x4_t& l : lane) l = vdupq_n_f32(0);
  }
  void add(const Deviation& other, float times) {
    for (int i = 0; i < 16; ++i) {
      lane[i] = vaddq_f32(lane[i], vmulq_n_f32(other.lane[i], times));
    }
  }
  double total() const {
    double sum = 0;
    for (const float32x4_t& l : lane) {
      for (int i = 0; i < 4; ++i) sum += l[i];
    }
    return sum;
  }
};

// Masks of sixteen floats to sixteen bits.
inline uint64_t bits16(const uint32x4_t m[4]) {
  const uint8x16_t place = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t low = vcombine_u16(vmovn_u32(m[0]), vmovn_u32(m[1]));
  const uint16x8_t high = vcombine_u16(vmovn_u32(m[2]), vmovn_u32(m[3]));
  const uint8x16_t set = vandq_u8(vcombine_u8(vmovn_u16(low), vmovn_u16(high)), place);
  return (uint64_t)vaddv_u8(vget_low_u8(set)) | (uint64_t)vaddv_u8(vget_high_u8(set)) << 8;
}

template <bool kDeviation, bool kFlip>
inline uint64_t pack64(const float* x, const float* t, uint64_t flip, Deviation& deviation) {
  uint64_t less = 0, more = 0;
  for (int i = 0; i < 4; ++i) {
    uint32x4_t below[4], above[4];
    for (int j = 0; j < 4; ++j) {
      const float32x4_t value = vld1q_f32(x + 16 * i + 4 * j);
      const float32x4_t level = vld1q_f32(t + 16 * i + 4 * j);
      below[j] = vcltq_f32(value, level);
      if (kFlip) above[j] = vcgtq_f32(value, level);
      if (kDeviation) {
        float32x4_t& sum = deviation.lane[4 * i + j];
        sum = vaddq_f32(sum, vabdq_f32(value, level));
      }
    }
    less |= bits16(below) << (16 * i);
    if (kFlip) more |= bits16(above) << (16 * i);
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

inline void expand(const uint64_t* plane, int planes, int32_t* out) {
  const uint32x4_t place[2] = {{1, 2, 4, 8}, {16, 32, 64, 128}};
  for (int i = 0; i < 16; ++i) {
    uint32x4_t sum = vdupq_n_u32(0);
    for (int p = 0; p < planes; ++p) {
      const uint32x4_t bits = vdupq_n_u32((uint32_t)((plane[8 * p] >> (8 * (i / 2))) & 0xff));
      sum = vorrq_u32(sum, vandq_u32(vtstq_u32(bits, place[i % 2]), vdupq_n_u32(1u << p)));
    }
    vst1q_u32((uint32_t*)out + 4 * i, sum);
  }
}

#include "parallel.inc.hpp"
#include "plan.inc.hpp"

inline void count_tile(int64_t, const uint64_t* const* pixel, const int64_t* offsets, int64_t reads,
                       const uint64_t* weight, int64_t, int32_t* out, int64_t stride,
                       int64_t lanes) {
  uint64x2_t sum[kPixels][4];
  uint8x16_t bytes[kPixels][4];
  for (int i = 0; i < kPixels; ++i) {
    for (int v = 0; v < 4; ++v) sum[i][v] = vdupq_n_u64(0), bytes[i][v] = vdupq_n_u8(0);
  }
  auto flush = [&] {
    for (int i = 0; i < kPixels; ++i) {
      for (int v = 0; v < 4; ++v) {
        sum[i][v] = vpadalq_u32(sum[i][v], vpaddlq_u16(vpaddlq_u8(bytes[i][v])));
        bytes[i][v] = vdupq_n_u8(0);
      }
    }
  };
  // A byte holds 31 times 8.
  int left = 31;
  for (int64_t r = 0; r < reads; ++r, weight += 8) {
    const int64_t at = offsets[r];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const uint64x2_t w = vld1q_u64(weight + 2 * v);
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i) {
        const uint64x2_t a = vdupq_n_u64(pixel[i][at]);
        bytes[i][v] = vaddq_u8(bytes[i][v], vcntq_u8(vreinterpretq_u8_u64(veorq_u64(a, w))));
      }
    }
    if (--left == 0) {
      left = 31;
      flush();
    }
  }
  flush();
  for (int i = 0; i < kPixels; ++i) {
    uint64_t all[8];
    for (int v = 0; v < 4; ++v) vst1q_u64(all + 2 * v, sum[i][v]);
    for (int64_t l = 0; l < lanes; ++l) {
      out[i * stride + l] = (int32_t)all[l];
    }
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

BINARIZE_SET(neon) { return run_unit(g, tensors, threads, runner, stream); }
BINARIZE_STREAM(neon) { return stream_bytes(g); }
BINARIZE_CODES(neon) { write_codes(x, count, inverse, zero, codes); }
BINARIZE_DEPTHWISE(neon) { run_depthwise(g, tensors, threads, runner); }
