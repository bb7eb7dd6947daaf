// Float feature maps to bits: means, thresholds, signs, mean |x - t|, padding, strings.

struct Work;
struct Stream;

struct Call {
  const BinarizeGeometry* g;
  const void* const* tensors;
  Plan plan;
  Work* work;
  Stream* stream;  // or null

  const float* floats(int i) const { return (const float*)tensors[i]; }
  const float* source(int64_t i) const { return floats(BINARIZE_FIRST_SOURCE + (int)i); }
  const float* means(int64_t i) const {
    return floats(BINARIZE_FIRST_SOURCE + (int)(g->sources + i));
  }
  const float* residual(int64_t i) const {
    return floats(BINARIZE_FIRST_SOURCE + (int)(2 * g->sources + i));
  }
};

struct Source {
  const float* x;
  int64_t channels, up, n, z, y, col;  // strides
  int shift;                           // log2 of up, or -1

  Source(const Call& c, int64_t i) {
    const int64_t* s = c.g->source + 6 * i;
    x = c.source(i);
    channels = s[0], up = s[1], n = s[2], z = s[3], y = s[4], col = s[5];
    shift = up & (up - 1) ? -1 : __builtin_ctzll((uint64_t)up);
  }
  // Position before upsampling; a division would take longer than copying a pixel.
  int64_t small(int64_t i) const { return shift < 0 ? i / up : i >> shift; }
  const float* at(int64_t in, int64_t iz, int64_t iy, int64_t ix) const {
    return x + in * n + small(iz) * z + small(iy) * y + small(ix) * col;
  }
};

// Position in the feature map of a possibly out-of-border position, or -1 for a zero.
static int64_t inside(int64_t i, int64_t size, int64_t mode) {
  if (i >= 0 && i < size) return i;
  if (mode == BINARIZE_REFLECT) {
    i = i < 0 ? -i : 2 * (size - 1) - i;
    return i >= 0 && i < size ? i : -1;
  }
  if (mode == BINARIZE_REPLICATE) return i < 0 ? 0 : size - 1;
  if (mode == BINARIZE_CIRCULAR) return ((i % size) + size) % size;
  return -1;
}

// Adds pixels to sums per channel, in double: only the exact mean hits a threshold that equals the
// mean of a feature map, which is the case for constant ones.
static void add_pixels(const float* x, int64_t stride, int64_t pixels, int64_t channels,
                       double* __restrict sums) {
  int64_t i = 0;
  for (; i + 4 <= pixels; i += 4) {
    const float *a = x + i * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    for (int64_t k = 0; k < channels; ++k) {
      sums[k] += ((double)a[k] + (double)b[k]) + ((double)c[k] + (double)d[k]);
    }
  }
  for (; i < pixels; ++i) {
    const float* a = x + i * stride;
    for (int64_t k = 0; k < channels; ++k) sums[k] += a[k];
  }
}

struct MeanRow {
  int64_t source, sample, z, y, from, to;
};

static MeanRow mean_row(const BinarizeGeometry& g, int64_t row) {
  for (int64_t i = 0; i < g.sources; ++i) {
    const int64_t up = g.source[6 * i + 1], width = ceil_div(g.in_size[2], up);
    const int64_t parts = row_segments(width);
    const int64_t height = ceil_div(g.in_size[1], up), depth = ceil_div(g.in_size[0], up);
    const int64_t rows = g.samples * depth * height * parts;
    if (row < rows) {
      const int64_t part = row % parts, line = row / parts;
      return {i,
              line / (depth * height),
              line / height % depth,
              line % height,
              part * kSegment,
              min(width, (part + 1) * kSegment)};
    }
    row -= rows;
  }
  return {0, 0, 0, 0, 0, 0};
}

static void mean_item(Call& c, int64_t item, int64_t) {
  const MeanRow r = mean_row(*c.g, item);
  if (c.means(r.source)) return;
  const Source s(c, r.source);
  double* sums = c.plan.mean_part + item * c.g->in_channels;
  for (int64_t k = 0; k < s.channels; ++k) sums[k] = 0;
  const float* x = s.x + r.sample * s.n + r.z * s.z + r.y * s.y + r.from * s.col;
  add_pixels(x, s.col, r.to - r.from, s.channels, sums);
}

// Adds partial sums in double and divides.
template <class T>
static void finish_means(const T* part, int64_t rows, int64_t row_stride, int64_t channels,
                         int64_t count, float* __restrict means) {
  for (int64_t k0 = 0; k0 < channels; k0 += 64) {
    const int64_t width = min(64, channels - k0);
    double sums[64] = {0};
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = part + r * row_stride + k0;
      for (int64_t k = 0; k < width; ++k) sums[k] += row[k];
    }
    for (int64_t k = 0; k < width; ++k) means[k0 + k] = (float)(sums[k] / (double)count);
  }
}

// Whether some source's means are needed and not given.
static bool takes_means(const Call& c) {
  if (!c.floats(BINARIZE_MEAN_GAIN)) return false;
  for (int64_t i = 0; i < c.g->sources; ++i) {
    if (!c.means(i)) return true;
  }
  return false;
}

// Thresholds that depend on a mean are this fraction below it, so that a channel that is constant
// up to rounding is +1 everywhere; binarize/ops/ties.py does the same.
constexpr float kTieMargin = 0x1p-18f;

// The thresholds of every sample, (n, channel).
static void make_levels(Call& c) {
  const BinarizeGeometry& g = *c.g;
  const float *gain = c.floats(BINARIZE_MEAN_GAIN), *base = c.floats(BINARIZE_THRESHOLD);
  int64_t row = 0, channel = 0;
  for (int64_t i = 0; i < g.sources; ++i) {
    const int64_t* s = g.source + 6 * i;
    const int64_t channels = s[0], up = s[1];
    const int64_t area =
        ceil_div(g.in_size[0], up) * ceil_div(g.in_size[1], up) * ceil_div(g.in_size[2], up);
    const int64_t rows = ceil_div(g.in_size[0], up) * ceil_div(g.in_size[1], up) *
                         row_segments(ceil_div(g.in_size[2], up));
    for (int64_t n = 0; n < g.samples; ++n) {
      float* level = c.plan.level + n * g.in_channels + channel;
      const float* add = base + channel;
      if (!gain) {
        for (int64_t k = 0; k < channels; ++k) level[k] = add[k];
        continue;
      }
      if (c.means(i)) {
        const float* mean = c.means(i) + n * channels;
        for (int64_t k = 0; k < channels; ++k) level[k] = mean[k];
      } else {
        finish_means(c.plan.mean_part + row * g.in_channels, rows, g.in_channels, channels, area,
                     level);
      }
      row += rows;
      const float* factor = gain + channel;
      for (int64_t k = 0; k < channels; ++k) {
        const float t = factor[k] * level[k] + add[k];
        level[k] = t - __builtin_fabsf(t) * kTieMargin;
      }
    }
    channel += channels;
  }
}

static void make_flips(Call& c) {
  const uint8_t* flip = (const uint8_t*)c.tensors[BINARIZE_FLIP];
  if (!flip) return;
  uint64_t* out = c.plan.flip;
  for (int64_t i = 0; i < c.g->sources; ++i) {
    const int64_t channels = c.g->source[6 * i];
    for (int64_t k0 = 0; k0 < channels; k0 += 64) {
      uint64_t word = 0;
      for (int64_t k = k0; k < min(channels, k0 + 64); ++k)
        word |= (uint64_t)(flip[k] != 0) << (k - k0);
      *out++ = word;
    }
    flip += channels;
  }
}

// One source's view of one sample while a row is packed.
struct Packer {
  const float* level;
  const uint64_t* flip;  // or null
  int64_t full, rest;    // whole words, and channels after them

  Packer(const float* l, const uint64_t* f, int64_t channels)
      : level(l), flip(f), full(channels / 64), rest(channels % 64) {}

  // Words of one pixel; `emit(i, word)` takes them.
  template <bool kDeviation, class Emit>
  inline __attribute__((always_inline)) void pixel(const float* x, Deviation& deviation,
                                                   Emit emit) const {
    for (int64_t i = 0; i < full; ++i) {
      emit(i, flip ? pack64<kDeviation, true>(x + 64 * i, level + 64 * i, flip[i], deviation)
                   : pack64<kDeviation, false>(x + 64 * i, level + 64 * i, 0, deviation));
    }
    if (rest) {
      const float *tail = x + 64 * full, *t = level + 64 * full;
      emit(full, flip ? pack_part<kDeviation, true>(tail, t, rest, flip[full], deviation)
                      : pack_part<kDeviation, false>(tail, t, rest, 0, deviation));
    }
  }
};

// Writes a source's words at its first channel, which may be inside a word.
static inline void merge_word(uint64_t* to, int64_t shift, uint64_t word) {
  to[0] |= word << shift;
  if (shift && (word >> (64 - shift))) to[1] |= word >> (64 - shift);
}

// Prefetch distance in floats, for feature maps that are not read sequentially.
constexpr int64_t kAhead = 512;

#if defined(BINARIZE_MASKS)
// Packs pixels whose channels fill kWide registers and fit into a word: thresholds and sums stay in
// registers. Every word is written `repeat` times.
template <int kWide, bool kDeviation>
static void pack_few(const float* x, int64_t step, int64_t pixels, const float* level,
                     int64_t repeat, uint64_t* to, Deviation& deviation) {
  Floats t[kWide], sums[kWide];
#pragma GCC unroll 8
  for (int i = 0; i < kWide; ++i) t[i] = load_as<Floats>(level + i * kLanes), sums[i] = Floats{};
  for (int64_t p = 0; p < pixels; ++p, x += step, to += repeat) {
    uint64_t word = 0;
#pragma GCC unroll 8
    for (int i = 0; i < kWide; ++i) {
      const Floats value = load_as<Floats>(x + i * kLanes);
      word |= not_less(value, t[i]) << (i * kLanes);
      if (kDeviation) sums[i] += magnitude(value - t[i]);
    }
    for (int64_t r = 0; r < repeat; ++r) to[r] = word;
  }
  if (!kDeviation) return;
  Deviation all;
  static_assert(sizeof(all.lane[0]) == sizeof(Floats), "a lane is a register");
#pragma GCC unroll 8
  for (int i = 0; i < kWide; ++i) __builtin_memcpy(&all.lane[i], &sums[i], sizeof(Floats));
  deviation.add(all, (float)repeat);
}

// Returns whether pack_few handled it.
template <bool kDeviation>
static bool pack_few_channels(const Source& s, const float* x, int64_t from, int64_t to,
                              const float* level, uint64_t* row, Deviation& deviation) {
  if (from % s.up || to % s.up) return false;
  const int64_t pixels = (to - from) / s.up;
  uint64_t* at = row + from;
  switch (s.channels % kLanes ? 0 : s.channels / kLanes) {
    case 1:
      return pack_few<1, kDeviation>(x, s.col, pixels, level, s.up, at, deviation), true;
    case 2:
      return pack_few<2, kDeviation>(x, s.col, pixels, level, s.up, at, deviation), true;
    case 3:
      return pack_few<3, kDeviation>(x, s.col, pixels, level, s.up, at, deviation), true;
    case 4:
      return pack_few<4, kDeviation>(x, s.col, pixels, level, s.up, at, deviation), true;
    default:
      return false;
  }
}
#endif

template <bool kDeviation>
static void pack_row(const Call& c, int64_t n, int64_t z, int64_t y, int64_t from, int64_t to,
                     uint64_t* row, Deviation& deviation) {
  const BinarizeGeometry& g = *c.g;
  const int64_t words = c.plan.words;
  const bool merge = g.sources > 1 && [&] {
    for (int64_t i = 0; i + 1 < g.sources; ++i)
      if (g.source[6 * i] % 64) return true;
    return false;
  }();
  if (merge)
    __builtin_memset(row + from * words, 0, sizeof(uint64_t) * (size_t)((to - from) * words));
  int64_t channel = 0;
  const uint64_t* flip = c.tensors[BINARIZE_FLIP] ? c.plan.flip : nullptr;
  for (int64_t i = 0; i < g.sources; ++i) {
    const Source s(c, i);
    Packer packer(c.plan.level + n * g.in_channels + channel, flip, s.channels);
    const float* x = s.at(n, z, y, from);
#if defined(BINARIZE_MASKS)
    if (words == 1 && g.sources == 1 && !flip &&
        pack_few_channels<kDeviation>(s, x, from, to, c.plan.level + n * g.in_channels, row,
                                      deviation)) {
      continue;
    }
#endif
    const int64_t offset = channel / 64, shift = channel % 64;
    if (s.up == 1 && !merge) {
      for (int64_t p = from; p < to; ++p, x += s.col) {
        uint64_t* at = row + p * words + offset;
        packer.template pixel<kDeviation>(x, deviation,
                                          [&](int64_t k, uint64_t word) { at[k] = word; });
      }
    } else {
      Deviation full;  // of pixels that occur `up` times
      for (int64_t p = from; p < to; x += s.col) {
        const int64_t end = min(to, (s.small(p) + 1) * s.up);
        Deviation part;
        for (int64_t k = 0; k < s.channels; k += 16) __builtin_prefetch(x + k + kAhead);
        uint64_t* at = row + p * words + offset;
        packer.template pixel<kDeviation>(x, end - p == s.up ? full : part,
                                          [&](int64_t k, uint64_t word) {
                                            for (int64_t q = 0; q < end - p; ++q) {
                                              uint64_t* where = at + q * words + k;
                                              if (merge) {
                                                merge_word(where, shift, word);
                                              } else {
                                                *where = word;
                                              }
                                            }
                                          });
        if (kDeviation && end - p != s.up) deviation.add(part, (float)(end - p));
        p = end;
      }
      if (kDeviation) deviation.add(full, (float)s.up);
    }
    channel += s.channels;
    if (flip) flip += ceil_div(s.channels, 64);
  }
}

static void copy_row(uint64_t* rows, int64_t from, int64_t to, int64_t words) {
  __builtin_memcpy(rows + to * words, rows + from * words, sizeof(uint64_t) * (size_t)words);
}

// Packs one segment of one padded row; `item` counts them.
static void pack_segment(const Call& c, int64_t item) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const int64_t segment = item % p.segments, line = item / p.segments;
  const int64_t py = line % p.padded[1], pz = line / p.padded[1] % p.padded[0];
  const int64_t n = line / (p.padded[1] * p.padded[0]);
  const int64_t width = g.in_size[2];
  const int64_t from = segment * kSegment, to = min(width, from + kSegment);
  const int64_t z = inside(pz - p.before[0], g.in_size[0], g.padding_mode);
  const int64_t y = inside(py - p.before[1], g.in_size[1], g.padding_mode);
  const bool first = segment == 0, last = segment == p.segments - 1;
  uint64_t* row = p.bits + line * p.padded[2] * p.words;
  uint64_t* map = row + p.before[2] * p.words;
  double* deviation = p.deviation + item;
  *deviation = 0;
  if (z < 0 || y < 0) {
    const int64_t begin = first ? 0 : p.before[2] + from;
    const int64_t end = last ? p.padded[2] : p.before[2] + to;
    __builtin_memset(row + begin * p.words, 0,
                     sizeof(uint64_t) * (size_t)((end - begin) * p.words));
    return;
  }
  // A row that only repeats another one at the border is not counted again.
  const bool counts = z == pz - p.before[0] && y == py - p.before[1];
  Deviation sums;
  if (counts && c.tensors[BINARIZE_EXPONENT]) {
    pack_row<true>(c, n, z, y, from, to, map, sums);
    *deviation = sums.total();
  } else {
    pack_row<false>(c, n, z, y, from, to, map, sums);
  }
  auto pad = [&](int64_t x) {
    const int64_t at = inside(x, width, g.padding_mode);
    if (at < 0) {
      __builtin_memset(map + x * p.words, 0, sizeof(uint64_t) * (size_t)p.words);
    } else {
      // Not copied: another thread may be packing that pixel.
      pack_row<false>(c, n, z, y, at, at + 1, map + (x - at) * p.words, sums);
    }
  };
  if (first) {
    for (int64_t x = -p.before[2]; x < 0; ++x) pad(x);
  }
  if (last) {
    for (int64_t x = width; x < p.padded[2] - p.before[2]; ++x) pad(x);
  }
}

static inline uint64_t read_bits(const uint64_t* from, int64_t at, int64_t count) {
  const int64_t word = at / 64, shift = at % 64;
  uint64_t value = from[word] >> shift;
  if (shift && shift + count > 64) value |= from[word + 1] << (64 - shift);
  return count < 64 ? value & (((uint64_t)1 << count) - 1) : value;
}

// Bits of all taps of a row in one string, if they fit into one word.
static void word_strings(const uint64_t* row, int64_t pixels, int64_t step, int64_t tap_step,
                         int64_t channels, int64_t taps, uint64_t* __restrict out) {
  for (int64_t t = 0; t < taps; ++t, row += tap_step) {
    const int64_t shift = t * channels, keep = t ? -1 : 0;
    if (step == 1) {
      for (int64_t x = 0; x < pixels; ++x) {
        out[x] = (out[x] & (uint64_t)keep) | row[x] << shift;
      }
    } else {
      for (int64_t x = 0; x < pixels; ++x) {
        out[x] = (out[x] & (uint64_t)keep) | row[x * step] << shift;
      }
    }
  }
}

// The same for few channels: a pixel fits into a word.
template <int kTaps>
static void short_strings(const uint64_t* row, int64_t pixels, int64_t step, int64_t tap_step,
                          int64_t channels, int64_t words, uint64_t* __restrict out) {
  for (int64_t x = 0; x < pixels; ++x, row += step, out += words) {
    uint64_t string[kTaps + 1] = {0};
#pragma GCC unroll 5
    for (int t = 0; t < kTaps; ++t) {
      const int64_t at = t * channels / 64, shift = t * channels % 64;
      const uint64_t bits = row[t * tap_step];
      string[at] |= bits << shift;
      string[at + 1] |= bits >> 1 >> (63 - shift);
    }
    for (int64_t w = 0; w < words; ++w) out[w] = string[w];
  }
}

// Strings of one row: per pixel and group the bits of the group's channels, tap after tap.
static void string_row(const Call& c, int64_t line) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const uint64_t* row = p.bits + line * p.padded[2] * p.words;
  const int64_t in_group = g.in_channels / g.groups, words = p.string_words;
  const int64_t taps = g.folded ? g.kernel[2] : 1;
  const int64_t step = g.folded ? g.stride[2] : 1, tap_step = g.folded ? g.dilation[2] : 1;
  uint64_t* out = p.strings + line * p.string_pixels * g.groups * words;
  if (g.groups == 1 && words == 1) {
    return word_strings(row, p.string_pixels, step, tap_step, in_group, taps, out);
  }
  if (g.groups == 1 && p.words == 1 && taps == 3) {
    return short_strings<3>(row, p.string_pixels, step, tap_step, in_group, words, out);
  }
  if (g.groups == 1 && p.words == 1 && taps == 5) {
    return short_strings<5>(row, p.string_pixels, step, tap_step, in_group, words, out);
  }
  const int64_t tap_words = tap_step * p.words;
  for (int64_t x = 0; x < p.string_pixels; ++x) {
    const uint64_t* pixel = row + x * step * p.words;
    for (int64_t group = 0; group < g.groups; ++group, out += words) {
      for (int64_t w = 0; w < words; ++w) out[w] = 0;
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t k = 0; k < in_group; k += 64) {
          const int64_t count = min(64, in_group - k), to = t * in_group + k;
          merge_word(out + to / 64, to % 64,
                     read_bits(pixel + t * tap_words, group * in_group + k, count));
        }
      }
    }
  }
}

static void code_row(const Call& c, int64_t line);

// What follows when all bits of a row are there.
static void regroup_row(const Call& c, int64_t line) {
  if (c.plan.gathered) string_row(c, line);
  if (c.plan.coded) code_row(c, line);
}

static void regroup_item(Call& c, int64_t item, int64_t) { regroup_row(c, item); }

// Packs rows that read the same row of every source, or one beyond the border. If a row is a single
// segment, its strings are made while it is in the cache.
static void pack_item(Call& c, int64_t item, int64_t) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const int64_t segment = item % p.segments, place = item / p.segments;
  const int64_t plane = place / p.row_groups;
  const int64_t group = place % p.row_groups + floor_div(-p.before[1], p.repeat);
  const int64_t end = min((group + 1) * p.repeat, p.padded[1] - p.before[1]);
  int64_t packed = -1;
  for (int64_t y = max(group * p.repeat, -p.before[1]); y < end; ++y) {
    const int64_t line = plane * p.padded[1] + y + p.before[1];
    const int64_t now = line * p.segments + segment;
    const bool within = y >= 0 && y < g.in_size[1];
    if (within && packed >= 0 && p.segments == 1) {
      copy_row(p.bits, packed, line, p.padded[2] * p.words);
      if (p.gathered) {
        copy_row(p.strings, packed, line, p.string_pixels * g.groups * p.string_words);
      }
      if (p.coded) {
        __builtin_memcpy(p.codes + line * p.code_line, p.codes + packed * p.code_line,
                         (size_t)p.code_line);
      }
      p.deviation[now] = p.deviation[packed];
      continue;
    }
    pack_segment(c, now);
    if (p.segments == 1) regroup_row(c, line);
    if (within) packed = line;
  }
}

// Per sample, the gains multiplied by alpha.
static void make_scale(Call& c) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const float *exponent = c.floats(BINARIZE_EXPONENT), *gain = c.floats(BINARIZE_GAIN);
  const double count =
      (double)g.in_channels * (double)g.in_size[0] * (double)g.in_size[1] * (double)g.in_size[2];
  for (int64_t n = 0; n < g.samples; ++n) {
    float alpha = 1;
    if (exponent) {
      double sum = 0;
      const double* rows = p.deviation + n * p.deviation_rows;
      for (int64_t i = 0; i < p.deviation_rows; ++i) sum += rows[i];
      alpha = __builtin_expf(*exponent * ((float)(sum / count) - 1));
    }
    float* scale = p.scale + n * g.out_channels;
    for (int64_t o = 0; o < g.out_channels; ++o) scale[o] = gain[o] * alpha;
  }
}
