// The epilogue: everything after counting, while a block is in the cache.

// Vectors of channels at a time, so that feature maps are read and written in longer pieces.
constexpr int64_t kFinish = 4;

// Pixels of a block in the same row whose windows overlap the border in the same way.
struct Run {
  int64_t pixels;
  const int32_t* table;
  const float* bypass[kSegments + 1];
  const float* residual;
  uint8_t* y;
};

// Channels whose bypass is in one place.
struct Segment {
  int64_t channels, step;  // floats from pixel to pixel
};

// A block of pixels from counts to the result.
struct Block {
  int64_t pixels, channels, count_stride;
  const int32_t* counts;
  const float *scale, *offset, *shift, *slope, *out_shift;
  float* sums;  // per channel, or null
  // The segments repeat `copies` times; one more follows them, the rest.
  Segment segment[kSegments + 1];
  int64_t segments, copies;
  int64_t element;  // bytes of a result
  int64_t y_step, residual_step;
  const float* coding;  // of results that are codes
  int64_t runs;
  Run run[kMaxBlockPixels];
};

template <class F, class I>
static inline __attribute__((always_inline)) F to_floats(I v) {
  if constexpr (sizeof(F) == sizeof(float)) {
    return (float)v;
  } else {
    return __builtin_convertvector(v, F);
  }
}

// All pixels of a block and `kWide` vectors of channels, starting at channel `o`, `inner` floats
// after the start of their segment.
template <class F, class I, int kWide, bool kBypass, bool kResidual, bool kActivation, bool kCodes>
static inline __attribute__((always_inline)) void finish_channels(const Block& b, int64_t segment,
                                                                  int64_t o, int64_t inner) {
  constexpr int64_t lanes = (int64_t)(sizeof(F) / sizeof(float));
  const F zero = {};
  F scale[kWide], offset[kWide], shift[kWide], slope[kWide], out_shift[kWide], sums[kWide];
#pragma GCC unroll 4
  for (int w = 0; w < kWide; ++w) {
    const int64_t at = o + w * lanes;
    scale[w] = load_as<F>(b.scale + at), offset[w] = load_as<F>(b.offset + at);
    shift[w] = slope[w] = out_shift[w] = sums[w] = zero;
    if (kActivation) {
      shift[w] = load_as<F>(b.shift + at);
      slope[w] = load_as<F>(b.slope + at);
      out_shift[w] = load_as<F>(b.out_shift + at);
    }
  }
  const Coding coding(kCodes ? b.coding[0] : 0, kCodes ? (int32_t)b.coding[1] : 0);
  constexpr int64_t element = kCodes ? 1 : sizeof(float);
  const int32_t* counts = b.counts + o;
  const int64_t count_stride = b.count_stride, y_step = b.y_step;
  const int64_t bypass_step = b.segment[segment].step, residual_step = b.residual_step;
  for (int64_t r = 0; r < b.runs; ++r) {
    const Run& run = b.run[r];
    const int32_t* table = run.table + o;
    uint8_t* y = run.y + o * element;
    const float* bypass = kBypass ? run.bypass[segment] + inner : nullptr;
    const float* residual = kResidual ? run.residual + o : nullptr;
    for (int64_t i = 0; i < run.pixels; ++i, counts += count_stride, y += y_step) {
#pragma GCC unroll 4
      for (int w = 0; w < kWide; ++w) {
        const I count = load_as<I>(counts + w * lanes);
        F v = scale[w] * to_floats<F>(load_as<I>(table + w * lanes) - (count + count)) + offset[w];
        if (kBypass) v += load_as<F>(bypass + i * bypass_step + w * lanes);
        if (kResidual) v += load_as<F>(residual + i * residual_step + w * lanes);
        if (kActivation) {
          v += shift[w];
          v = v > zero ? v : v * slope[w];
          v += out_shift[w];
        }
        if (kCodes) {
          write_lanes(coding, v, y + w * lanes);
        } else {
          __builtin_memcpy(y + w * sizeof(v), &v, sizeof(v));
        }
        sums[w] += v;
      }
    }
  }
  if (!b.sums) return;
#pragma GCC unroll 4
  for (int w = 0; w < kWide; ++w) {
    sums[w] += load_as<F>(b.sums + o + w * lanes);
    __builtin_memcpy(b.sums + o + w * lanes, &sums[w], sizeof(F));
  }
}

// Channels that do not fill a register use smaller ones.
template <bool kBypass, bool kResidual, bool kActivation, bool kCodes>
static inline __attribute__((always_inline)) void finish_segment(const Block& b, int64_t segment,
                                                                 int64_t from, int64_t channels) {
  int64_t k = 0;
  for (; k + kFinish * kLanes <= channels; k += kFinish * kLanes) {
    finish_channels<Floats, Ints, kFinish, kBypass, kResidual, kActivation, kCodes>(b, segment,
                                                                                    from + k, k);
  }
  for (; k + 2 * kLanes <= channels; k += 2 * kLanes) {
    finish_channels<Floats, Ints, 2, kBypass, kResidual, kActivation, kCodes>(b, segment, from + k,
                                                                              k);
  }
  for (; k + kLanes <= channels; k += kLanes) {
    finish_channels<Floats, Ints, 1, kBypass, kResidual, kActivation, kCodes>(b, segment, from + k,
                                                                              k);
  }
  for (; k + 8 <= channels; k += 8) {
    finish_channels<Floats8, Ints8, 1, kBypass, kResidual, kActivation, kCodes>(b, segment,
                                                                                from + k, k);
  }
  for (; k + 4 <= channels; k += 4) {
    finish_channels<Floats4, Ints4, 1, kBypass, kResidual, kActivation, kCodes>(b, segment,
                                                                                from + k, k);
  }
  for (; k < channels; ++k) {
    finish_channels<float, int32_t, 1, kBypass, kResidual, kActivation, kCodes>(b, segment,
                                                                                from + k, k);
  }
}

template <bool kBypass, bool kResidual, bool kActivation, bool kCodes>
static void finish_block(const Block& b) {
  int64_t from = 0;
  for (int64_t i = 0; i < b.copies * b.segments + 1; ++i) {
    const int64_t s = i < b.copies * b.segments ? i % b.segments : kSegments;
    finish_segment<kBypass, kResidual, kActivation, kCodes>(b, s, from, b.segment[s].channels);
    from += b.segment[s].channels;
  }
}

typedef void (*Finish)(const Block&);

template <bool kBypass, bool kResidual>
static Finish choose_finish(bool activation, bool codes) {
  if (codes) {
    return activation ? finish_block<kBypass, kResidual, true, true>
                      : finish_block<kBypass, kResidual, false, true>;
  }
  return activation ? finish_block<kBypass, kResidual, true, false>
                    : finish_block<kBypass, kResidual, false, false>;
}

static Finish choose_finish(bool bypass, bool residual, bool activation, bool codes) {
  if (bypass) {
    return residual ? choose_finish<true, true>(activation, codes)
                    : choose_finish<true, false>(activation, codes);
  }
  return residual ? choose_finish<false, true>(activation, codes)
                  : choose_finish<false, false>(activation, codes);
}
