// The epilogue: everything that comes after counting, while a block is in the cache.

// Places of a block, in the same row, whose windows hang over the border alike.
struct Run {
  int64_t pixels;
  const int32_t* table;
  const float* bypass[kSegments + 1];
  const float* residual;
  float* y;
};

// Channels that find their bypass in one place.
struct Segment {
  int64_t channels, step;  // floats from pixel to pixel
};

// A block of pixels on its way from counts to the result.
struct Block {
  int64_t pixels, channels, count_stride;
  const int32_t* counts;
  const float *scale, *offset, *shift, *slope, *out_shift;
  float* sums;  // per channel, or null
  // The segments follow each other `copies` times; behind them comes another one, the rest.
  Segment segment[kSegments + 1];
  int64_t segments, copies;
  int64_t y_step, residual_step;
  int64_t runs;
  Run run[kMostPixels];
};

template <class T, class P>
static inline __attribute__((always_inline)) T load_as(const P* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class F, class I>
static inline __attribute__((always_inline)) F to_floats(I v) {
  if constexpr (sizeof(F) == sizeof(float)) {
    return (float)v;
  } else {
    return __builtin_convertvector(v, F);
  }
}

// All pixels of a block and one vector of channels, which begins at `o` and `inner` floats behind
// the start of its segment.
template <class F, class I, bool kBypass, bool kResidual, bool kActivation>
static inline __attribute__((always_inline)) void finish_channels(const Block& b, int64_t segment,
                                                                  int64_t o, int64_t inner) {
  const F scale = load_as<F>(b.scale + o), offset = load_as<F>(b.offset + o), zero = {};
  F shift = zero, slope = zero, out_shift = zero, sums = zero;
  if (kActivation) {
    shift = load_as<F>(b.shift + o);
    slope = load_as<F>(b.slope + o);
    out_shift = load_as<F>(b.out_shift + o);
  }
  const int32_t* counts = b.counts + o;
  const int64_t count_stride = b.count_stride, y_step = b.y_step;
  const int64_t bypass_step = b.segment[segment].step, residual_step = b.residual_step;
  for (int64_t r = 0; r < b.runs; ++r) {
    const Run& run = b.run[r];
    const I table = load_as<I>(run.table + o);
    float* y = run.y + o;
    const float* bypass = kBypass ? run.bypass[segment] + inner : nullptr;
    const float* residual = kResidual ? run.residual + o : nullptr;
    for (int64_t i = 0; i < run.pixels; ++i, counts += count_stride, y += y_step) {
      const I count = load_as<I>(counts);
      F v = scale * to_floats<F>(table - (count + count)) + offset;
      if (kBypass) v += load_as<F>(bypass + i * bypass_step);
      if (kResidual) v += load_as<F>(residual + i * residual_step);
      if (kActivation) {
        v += shift;
        v = v > zero ? v : v * slope;
        v += out_shift;
      }
      __builtin_memcpy(y, &v, sizeof(v));
      sums += v;
    }
  }
  if (b.sums) {
    sums += load_as<F>(b.sums + o);
    __builtin_memcpy(b.sums + o, &sums, sizeof(sums));
  }
}

// Channels that do not fill a register go through smaller ones.
template <bool kBypass, bool kResidual, bool kActivation>
static inline __attribute__((always_inline)) void finish_segment(const Block& b, int64_t segment,
                                                                 int64_t from, int64_t channels) {
  int64_t k = 0;
  for (; k + kLanes <= channels; k += kLanes) {
    finish_channels<Floats, Ints, kBypass, kResidual, kActivation>(b, segment, from + k, k);
  }
  for (; k + 8 <= channels; k += 8) {
    finish_channels<Floats8, Ints8, kBypass, kResidual, kActivation>(b, segment, from + k, k);
  }
  for (; k + 4 <= channels; k += 4) {
    finish_channels<Floats4, Ints4, kBypass, kResidual, kActivation>(b, segment, from + k, k);
  }
  for (; k < channels; ++k) {
    finish_channels<float, int32_t, kBypass, kResidual, kActivation>(b, segment, from + k, k);
  }
}

template <bool kBypass, bool kResidual, bool kActivation>
static void finish_block(const Block& b) {
  int64_t from = 0;
  for (int64_t i = 0; i < b.copies * b.segments + 1; ++i) {
    const int64_t s = i < b.copies * b.segments ? i % b.segments : kSegments;
    finish_segment<kBypass, kResidual, kActivation>(b, s, from, b.segment[s].channels);
    from += b.segment[s].channels;
  }
}

typedef void (*Finish)(const Block&);

static Finish choose_finish(bool bypass, bool residual, bool activation) {
  static constexpr Finish all[2][2][2] = {
      {{finish_block<false, false, false>, finish_block<false, false, true>},
       {finish_block<false, true, false>, finish_block<false, true, true>}},
      {{finish_block<true, false, false>, finish_block<true, false, true>},
       {finish_block<true, true, false>, finish_block<true, true, true>}}};
  return all[bypass][residual][activation];
}
