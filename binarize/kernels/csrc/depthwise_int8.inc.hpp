// Depthwise convolutions on 8-bit codes. The codes of a few rows are kept as floats, whose products
// and sums are exact as long as they stay below 2^24: for any window of up to 513 taps.

constexpr int64_t kDepthTile = 8;  // outputs of a row at a time
constexpr int64_t kDepthRows = BINARIZE_DEPTH_MAX_ROWS;
// Of the second level of caches; a block of more channels reads and writes longer pieces of lines.
constexpr int64_t kDepthBytes = 512 * 1024;

struct DepthPlan {
  const BinarizeInt8Depthwise* g;
  const void* const* tensors;
  int64_t block, blocks;  // channels at a time, whole registers; how often
  int64_t bands, band;    // of rows of the result, and rows in one of them
  int64_t line;           // columns of a row of the ring, with padding
  int64_t ring;           // rows that are kept
  int64_t taps;
  float* memory;
  int64_t slot_floats;  // per thread
  Stage<DepthPlan> stage;
};

static DepthPlan depth_plan(const BinarizeInt8Depthwise& g, int64_t threads) {
  DepthPlan p = {};
  p.g = &g;
  p.line = (g.out_size[1] - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1;
  p.ring = min(g.in_size[0], (g.kernel[0] - 1) * g.dilation[0] + 1);
  p.taps = g.kernel[0] * g.kernel[1];
  // The memory is asked for once for all sets, so blocks are whole registers of the largest.
  constexpr int64_t widest = 16;
  static_assert(widest % kLanes == 0, "whole registers");
  const int64_t most = max(2, kDepthBytes / (p.ring * p.line * widest * (int64_t)sizeof(float)));
  const int64_t units = ceil_div(g.channels, widest);
  p.blocks = ceil_div(units, most);
  p.block = ceil_div(units, p.blocks) * widest;
  p.blocks = ceil_div(g.channels, p.block);
  // Bands read rows of their neighbors once more, so there are only as many as threads need.
  const int64_t wanted = threads == 1 ? 1 : ceil_div(4 * threads, p.blocks * g.samples);
  p.band = ceil_div(g.out_size[0], min(wanted, g.out_size[0]));
  p.bands = ceil_div(g.out_size[0], p.band);
  // Rows of the ring, a weight, a factor, a constant.
  p.slot_floats = (p.ring * p.line + p.taps + 2) * p.block;
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
  float* out = line + from * p.block;
  for (int64_t i = from; i < to; ++i, x += g.in_stride[2], out += p.block) {
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) depth_lanes(coding, x + k, out + k);
    if (k == count) continue;
    T rest[kLanes] = {};
    for (int64_t i = k; i < count; ++i) rest[i - k] = x[i];
    depth_lanes(coding, rest, out + k);
  }
}

// Factor, constant, limits; then the result as it is or as codes.
template <class T>
static inline __attribute__((always_inline)) void depth_finish(const BinarizeInt8Depthwise& g,
                                                               const Coding& coding, Floats v,
                                                               Floats factor, Floats constant,
                                                               T* to) {
  v = v * factor + constant;
  const Floats least = Floats{} + g.least, most = Floats{} + g.most;
  v = v < least ? least : v;
  v = v > most ? most : v;
  if constexpr (sizeof(T) == 1) {
    write_lanes(coding, v, to);
  } else {
    __builtin_memcpy(to, &v, sizeof(v));
  }
}

// The rows of the ring that a row of the result reads, and their weights.
struct DepthWindow {
  const float* rows[kDepthRows];
  const float* weights[kDepthRows];
  int64_t count;
};

// kTile outputs of a row from column `x` on, all channels of a block.
template <int kTile, class T>
static inline __attribute__((always_inline)) void depth_tile(const DepthPlan& p,
                                                             const DepthWindow& window, int64_t x,
                                                             const float* factor, int64_t count,
                                                             T* to) {
  const BinarizeInt8Depthwise g = *p.g;  // a copy: the result might alias it
  const Coding coding(g.out_inverse, (int32_t)g.out_zero);
  const int64_t block = p.block, step = g.stride[1] * block, tap_step = g.dilation[1] * block;
  for (int64_t v = 0; v < count; v += kLanes) {
    Floats sum[kTile];
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) sum[i] = Floats{};
    for (int64_t r = 0; r < window.count; ++r) {
      const float *from = window.rows[r] + x * step + v, *w = window.weights[r] + v;
      for (int64_t k = 0; k < g.kernel[1]; ++k, from += tap_step, w += block) {
        const Floats weight = load_as<Floats>(w);
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i) sum[i] += weight * load_as<Floats>(from + i * step);
      }
    }
    const Floats scale = load_as<Floats>(factor + v),
                 constant = load_as<Floats>(factor + block + v);
    if (v + kLanes <= count) {
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i)
        depth_finish(g, coding, sum[i], scale, constant, to + i * g.channels + v);
      continue;
    }
    for (int i = 0; i < kTile; ++i) {
      T rest[kLanes];
      depth_finish(g, coding, sum[i], scale, constant, rest);
      for (int64_t c = v; c < count; ++c) to[i * g.channels + c] = rest[c - v];
    }
  }
}

// A row of the result.
template <class T>
static void depth_write(const DepthPlan& p, const DepthWindow& window, const float* factor,
                        int64_t count, int64_t at) {
  const int64_t columns = p.g->out_size[1], channels = p.g->channels;
  T* to = (T*)p.tensors[BINARIZE_DEPTH_RESULT] + at;
  int64_t x = 0;
  for (; x + kDepthTile <= columns; x += kDepthTile)
    depth_tile<kDepthTile>(p, window, x, factor, count, to + x * channels);
  for (; x + 4 <= columns; x += 4) depth_tile<4>(p, window, x, factor, count, to + x * channels);
  for (; x < columns; ++x) depth_tile<1>(p, window, x, factor, count, to + x * channels);
}

static void depth_item(DepthPlan& p, int64_t item, int64_t slot) {
  const BinarizeInt8Depthwise& g = *p.g;
  const int64_t band = item % p.bands, block = item / p.bands % p.blocks,
                n = item / (p.bands * p.blocks), channel = block * p.block;
  const int64_t count = min(p.block, g.channels - channel);
  const int64_t line = p.line * p.block;
  float* const ring = p.memory + slot * p.slot_floats;
  float* const weight = ring + p.ring * line;
  float* const factor = weight + p.taps * p.block;
  // Columns beyond the image stay zero.
  const int64_t from = min(p.line, max(0, g.before[1])) * p.block;
  const int64_t past = max(0, min(p.line, g.before[1] + g.in_size[1])) * p.block;
  for (int64_t r = 0; r < p.ring; ++r) {
    __builtin_memset(ring + r * line, 0, sizeof(float) * (size_t)from);
    __builtin_memset(ring + r * line + past, 0, sizeof(float) * (size_t)(line - past));
  }
  // And so do the weights of channels that do not exist.
  __builtin_memset(weight, 0, sizeof(float) * (size_t)((p.taps + 2) * p.block));
  const int8_t* codes = (const int8_t*)p.tensors[BINARIZE_DEPTH_WEIGHT] + channel * p.taps;
  const float* gain = (const float*)p.tensors[BINARIZE_DEPTH_GAIN] + channel;
  const float* bias = (const float*)p.tensors[BINARIZE_DEPTH_BIAS];
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t t = 0; t < p.taps; ++t) weight[t * p.block + k] = codes[k * p.taps + t];
    factor[k] = gain[k] * g.in_step;
    factor[p.block + k] = bias ? bias[channel + k] : 0.0f;
  }
  const int64_t end = min(g.out_size[0], (band + 1) * p.band);
  int64_t next = 0;  // row of the input that is not in the ring yet
  for (int64_t y = band * p.band; y < end; ++y) {
    const int64_t top = y * g.stride[0] - g.before[0];
    const int64_t bottom = min(g.in_size[0], top + (g.kernel[0] - 1) * g.dilation[0] + 1);
    for (next = max(next, max(0, top)); next < bottom; ++next) {
      float* to = ring + next % p.ring * line;
      if (g.in_codes) {
        depth_row<uint8_t>(p, n, next, channel, count, to);
      } else {
        depth_row<float>(p, n, next, channel, count, to);
      }
    }
    DepthWindow window;
    window.count = 0;
    for (int64_t t = 0; t < g.kernel[0]; ++t) {
      const int64_t row = top + t * g.dilation[0];
      if (row < 0 || row >= g.in_size[0]) continue;
      window.rows[window.count] = ring + row % p.ring * line;
      window.weights[window.count++] = weight + t * g.kernel[1] * p.block;
    }
    const int64_t at = (n * g.out_size[0] + y) * g.out_size[1] * g.channels + channel;
    if (g.out_codes) {
      depth_write<uint8_t>(p, window, factor, count, at);
    } else {
      depth_write<float>(p, window, factor, count, at);
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
