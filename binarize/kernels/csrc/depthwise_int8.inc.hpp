// Depthwise convolutions on 8-bit codes. The codes of a few rows are kept as floats, whose products
// and sums are exact as long as they stay below 2^24: for any window of up to 513 taps.

constexpr int64_t kDepthBlock = 32;  // channels at a time, a multiple of every register's floats
constexpr int64_t kDepthTile = 8;    // outputs of a row at a time
constexpr int64_t kDepthRows = BINARIZE_DEPTH_MAX_ROWS;
static_assert(kDepthBlock % kLanes == 0, "whole registers");

struct DepthPlan {
  const BinarizeInt8Depthwise* g;
  const void* const* tensors;
  int64_t blocks, bands, band;  // of channels; of rows of the result, and rows in one of them
  int64_t line;                 // columns of a row of the ring, with padding
  int64_t ring;                 // rows that are kept
  int64_t taps;
  float* memory;
  int64_t slot_floats;  // per thread
  Stage<DepthPlan> stage;
};

static DepthPlan depth_plan(const BinarizeInt8Depthwise& g, int64_t threads) {
  DepthPlan p = {};
  p.g = &g;
  p.blocks = ceil_div(g.channels, kDepthBlock);
  // Bands read rows of their neighbors once more, so there are only as many as threads need.
  const int64_t wanted = threads == 1 ? 1 : ceil_div(4 * threads, p.blocks * g.samples);
  p.band = ceil_div(g.out_size[0], min(wanted, g.out_size[0]));
  p.bands = ceil_div(g.out_size[0], p.band);
  p.line = (g.out_size[1] - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1;
  p.ring = min(g.in_size[0], (g.kernel[0] - 1) * g.dilation[0] + 1);
  p.taps = g.kernel[0] * g.kernel[1];
  // A row of the ring, a weight, a factor, a constant, sums of a tile.
  p.slot_floats = (p.ring * p.line + p.taps + 2 + kDepthTile) * kDepthBlock;
  return p;
}

// Codes of a pixel, minus the code of zero.
template <class T>
static inline __attribute__((always_inline)) void depth_lanes(const Coding& coding, const T* x,
                                                              float* out) {
  Floats v;
  if constexpr (sizeof(T) == 1) {
    v = __builtin_convertvector(widen_bytes(x) - coding.zero, Floats);
  } else {
    v = centred_lanes(coding, load_as<Floats>(x));
  }
  __builtin_memcpy(out, &v, sizeof(v));
}

// The same of one row, between columns that stay zero.
template <class T>
static void depth_row(const DepthPlan& p, int64_t n, int64_t y, int64_t channel, int64_t count,
                      float* line) {
  const BinarizeInt8Depthwise& g = *p.g;
  const int64_t from = max(0, g.before[1]), to = min(p.line, g.before[1] + g.in_size[1]);
  const Coding coding(g.in_inverse, (int32_t)g.in_zero);
  const T* x = (const T*)p.tensors[BINARIZE_DEPTH_INPUT] + n * g.in_stride[0] + y * g.in_stride[1] +
               (from - g.before[1]) * g.in_stride[2] + channel;
  float* out = line + from * kDepthBlock;
  for (int64_t i = from; i < to; ++i, x += g.in_stride[2], out += kDepthBlock) {
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) depth_lanes(coding, x + k, out + k);
    if (k == count) continue;
    T rest[kLanes] = {};
    for (int64_t i = k; i < count; ++i) rest[i - k] = x[i];
    depth_lanes(coding, rest, out + k);
  }
}

// Sums of kTile outputs of a row, all channels of a block.
template <int kTile>
static inline __attribute__((always_inline)) void depth_tile(const float* const* rows,
                                                             const float* const* weights,
                                                             int64_t count, int64_t taps,
                                                             int64_t tap_step, int64_t step,
                                                             int64_t vectors, float* sums) {
  for (int64_t v = 0; v < vectors * kLanes; v += kLanes) {
    Floats sum[kTile];
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) sum[i] = Floats{};
    for (int64_t r = 0; r < count; ++r) {
      const float *x = rows[r] + v, *w = weights[r] + v;
      for (int64_t k = 0; k < taps; ++k, x += tap_step, w += kDepthBlock) {
        const Floats weight = load_as<Floats>(w);
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i) sum[i] += weight * load_as<Floats>(x + i * step);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i)
      __builtin_memcpy(sums + i * kDepthBlock + v, &sum[i], sizeof(Floats));
  }
}

// Factor, constant, limits; then the result as it is or as codes.
template <class T>
static inline __attribute__((always_inline)) void depth_finish(const BinarizeInt8Depthwise& g,
                                                               const Coding& coding,
                                                               const float* sums,
                                                               const float* factor, T* to) {
  Floats v =
      load_as<Floats>(sums) * load_as<Floats>(factor) + load_as<Floats>(factor + kDepthBlock);
  const Floats least = Floats{} + g.least, most = Floats{} + g.most;
  v = v < least ? least : v;
  v = v > most ? most : v;
  if constexpr (sizeof(T) == 1) {
    write_lanes(coding, v, to);
  } else {
    __builtin_memcpy(to, &v, sizeof(v));
  }
}

template <class T>
static void depth_write(const DepthPlan& p, const float* sums, const float* factor, int64_t pixels,
                        int64_t count, int64_t at) {
  const BinarizeInt8Depthwise g = *p.g;  // a copy: the result might alias it
  const Coding coding(g.out_inverse, (int32_t)g.out_zero);
  T* to = (T*)p.tensors[BINARIZE_DEPTH_RESULT] + at;
  for (int64_t i = 0; i < pixels; ++i, to += g.channels, sums += kDepthBlock) {
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      depth_finish(g, coding, sums + k, factor + k, to + k);
    }
    if (k == count) continue;
    T rest[kLanes];
    depth_finish(g, coding, sums + k, factor + k, rest);
    for (int64_t i = k; i < count; ++i) to[i] = rest[i - k];
  }
}

static void depth_item(DepthPlan& p, int64_t item, int64_t slot) {
  const BinarizeInt8Depthwise& g = *p.g;
  const int64_t band = item % p.bands, block = item / p.bands % p.blocks,
                n = item / (p.bands * p.blocks), channel = block * kDepthBlock;
  const int64_t count = min(kDepthBlock, g.channels - channel), vectors = ceil_div(count, kLanes);
  const int64_t line = p.line * kDepthBlock;
  float* const ring = p.memory + slot * p.slot_floats;
  float* const weight = ring + p.ring * line;
  float* const factor = weight + p.taps * kDepthBlock;
  float* const sums = factor + 2 * kDepthBlock;
  __builtin_memset(ring, 0, sizeof(float) * (size_t)p.slot_floats);
  const int8_t* codes = (const int8_t*)p.tensors[BINARIZE_DEPTH_WEIGHT] + channel * p.taps;
  const float* gain = (const float*)p.tensors[BINARIZE_DEPTH_GAIN] + channel;
  const float* bias = (const float*)p.tensors[BINARIZE_DEPTH_BIAS];
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t t = 0; t < p.taps; ++t) weight[t * kDepthBlock + k] = codes[k * p.taps + t];
    factor[k] = gain[k] * g.in_step;
    factor[kDepthBlock + k] = bias ? bias[channel + k] : 0.0f;
  }
  const float *rows[kDepthRows], *weights[kDepthRows];
  const int64_t end = min(g.out_size[0], (band + 1) * p.band);
  const int64_t step = g.stride[1] * kDepthBlock, tap_step = g.dilation[1] * kDepthBlock;
  int64_t next = 0;  // row of the input that is not in the ring yet
  for (int64_t y = band * p.band; y < end; ++y) {
    const int64_t top = y * g.stride[0] - g.before[0];
    const int64_t past = min(g.in_size[0], top + (g.kernel[0] - 1) * g.dilation[0] + 1);
    for (next = max(next, max(0, top)); next < past; ++next) {
      float* to = ring + next % p.ring * line;
      if (g.in_codes) {
        depth_row<uint8_t>(p, n, next, channel, count, to);
      } else {
        depth_row<float>(p, n, next, channel, count, to);
      }
    }
    int64_t inside = 0;
    for (int64_t t = 0; t < g.kernel[0]; ++t) {
      const int64_t row = top + t * g.dilation[0];
      if (row < 0 || row >= g.in_size[0]) continue;
      rows[inside] = ring + row % p.ring * line;
      weights[inside++] = weight + t * g.kernel[1] * kDepthBlock;
    }
    int64_t at = (n * g.out_size[0] + y) * g.out_size[1] * g.channels + channel;
    for (int64_t x = 0; x < g.out_size[1];) {
      const int64_t left = g.out_size[1] - x, tile = left >= kDepthTile ? kDepthTile
                                                     : left >= 4        ? 4
                                                                        : 1;
      auto run = tile == kDepthTile ? depth_tile<kDepthTile>
                 : tile == 4        ? depth_tile<4>
                                    : depth_tile<1>;
      run(rows, weights, inside, g.kernel[1], tap_step, step, vectors, sums);
      if (g.out_codes) {
        depth_write<uint8_t>(p, sums, factor, tile, count, at);
      } else {
        depth_write<float>(p, sums, factor, tile, count, at);
      }
      at += tile * g.channels;
      for (int64_t r = 0; r < inside; ++r) rows[r] += tile * step;
      x += tile;
    }
  }
}

static void run_depthwise(const BinarizeInt8Depthwise& g, const void* const* tensors,
                          int64_t threads, BinarizeRunner runner) {
  DepthPlan p = depth_plan(g, threads);
  p.tensors = tensors;
  p.memory = (float*)(((uintptr_t)tensors[BINARIZE_DEPTH_SCRATCH] + 63) / 64 * 64);
  p.stage = {depth_item, nullptr, g.samples * p.blocks * p.bands, 0, 0, 0};
  run_stages(p, &p.stage, 1, threads, runner);
}
