// Bits to the result: counting, and everything that comes after it while a block is in the cache.

struct Block;

// What the work items of one phase share.
struct Work {
  int64_t index;  // of the phase
  Phase phase;
  const uint64_t* words;  // of its weight
  const int32_t* tap_sums;
  int64_t sum_row;  // of its first item
  int32_t* numbers[3];
  int64_t patterns[3];
  const float* act[3];  // shift, slope, shift after it
  void (*finish)(const Block&);
  int64_t items;         // per sample
  const uint64_t* base;  // bits or strings
  int64_t line[3];       // words per step of z, y, x
  int64_t sample;        // words per sample
};

// Windows that hang over the border: for every output position of a dimension the number of its
// pattern, and for every combination of patterns and every channel the sum that a count of 0
// different bits stands for. Zero padding is stored as 0-bits, which count as -1; what that adds
// is taken away here by the tap sums.
static void make_table(const Call& c) {
  const BinarizeGeometry& g = *c.g;
  const Phase& f = c.work->phase;
  const int32_t* sums = c.work->tap_sums;
  int32_t** numbers = c.work->numbers;
  int64_t* patterns = c.work->patterns;
  int64_t at = 0;
  for (int d = 0; d < 3; ++d) {
    numbers[d] = c.plan.pattern + at;
    at += g.out_size[d];
  }
  auto range = [&](int d, int64_t o, int64_t& from, int64_t& to) {
    const Dim& m = f.dim[d];
    from = 0, to = m.taps;
    if (g.padding_mode != BINARIZE_ZEROS) return;
    const int64_t start = m.start + o * m.step;
    if (start < 0) from = least(m.taps, ceil_div(-start, m.reach));
    to = start >= m.in ? 0 : least(m.taps, (m.in - 1 - start) / m.reach + 1);
    if (to < from) to = from;
  };
  for (int d = 0; d < 3; ++d) {
    int64_t previous[2] = {-1, -1}, count = 0;
    for (int64_t o = 0; o < f.dim[d].out; ++o) {
      int64_t now[2];
      range(d, o, now[0], now[1]);
      if (now[0] != previous[0] || now[1] != previous[1]) ++count;
      previous[0] = now[0], previous[1] = now[1];
      numbers[d][o] = (int32_t)(count - 1);
    }
    patterns[d] = count;
  }
  const int64_t out = g.out_channels, in_group = g.in_channels / g.groups;
  const int64_t t1 = f.dim[1].taps + 1, t2 = f.dim[2].taps + 1;
  auto corner = [&](int64_t i, int64_t j, int64_t k) {
    return sums + ((i * t1 + j) * t2 + k) * out;
  };
  const int32_t* all = corner(f.dim[0].taps, f.dim[1].taps, f.dim[2].taps);
  const int32_t total = (int32_t)(in_group * f.taps);
  int64_t last[3] = {-1, -1, -1};
  for (int64_t z = 0; z < f.dim[0].out; ++z) {
    if (numbers[0][z] == last[0]) continue;
    last[0] = numbers[0][z], last[1] = -1;
    int64_t z0, z1;
    range(0, z, z0, z1);
    for (int64_t y = 0; y < f.dim[1].out; ++y) {
      if (numbers[1][y] == last[1]) continue;
      last[1] = numbers[1][y], last[2] = -1;
      int64_t y0, y1;
      range(1, y, y0, y1);
      for (int64_t x = 0; x < f.dim[2].out; ++x) {
        if (numbers[2][x] == last[2]) continue;
        last[2] = numbers[2][x];
        int64_t x0, x1;
        range(2, x, x0, x1);
        int32_t* __restrict to =
            c.plan.table + ((last[0] * patterns[1] + last[1]) * patterns[2] + last[2]) * out;
        const int32_t *a = corner(z1, y1, x1), *b = corner(z0, y1, x1), *d = corner(z1, y0, x1),
                      *e = corner(z1, y1, x0), *h = corner(z0, y0, x1), *i = corner(z0, y1, x0),
                      *j = corner(z1, y0, x0), *k = corner(z0, y0, x0);
        for (int64_t o = 0; o < out; ++o) {
          const int32_t valid = a[o] - b[o] - d[o] - e[o] + h[o] + i[o] + j[o] - k[o];
          to[o] = total + all[o] - valid;
        }
      }
    }
  }
}

// Means of `size` neighbours each, `groups` times; the last group also takes `extra` more.
template <int kSize>
static void group_means(const float* x, int64_t groups, float* __restrict out) {
  for (int64_t j = 0; j < groups; ++j) {
    float sum = x[j * kSize];
    for (int i = 1; i < kSize; ++i) sum += x[j * kSize + i];
    out[j] = sum * (1.0f / kSize);
  }
}

static float mean_of(const float* x, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum / (float)count;
}

// The channels that are left when all were copied as often as they fit.
static void fuse_down(const float* x, int64_t channels, int64_t out_channels, bool interleaved,
                      float* __restrict out) {
  const int64_t size = channels / out_channels, head = out_channels - 1;
  if (interleaved && head > 0) {
    for (int64_t j = 0; j < head; ++j) out[j] = x[j];
    for (int64_t i = 1; i < size; ++i) {
      for (int64_t j = 0; j < head; ++j) out[j] += x[i * head + j];
    }
    for (int64_t j = 0; j < head; ++j) out[j] /= (float)size;
  } else if (size == 2) {
    group_means<2>(x, head, out);
  } else if (size == 3) {
    group_means<3>(x, head, out);
  } else if (size == 4) {
    group_means<4>(x, head, out);
  } else if (size == 6) {
    group_means<6>(x, head, out);
  } else if (size == 8) {
    group_means<8>(x, head, out);
  } else {
    for (int64_t j = 0; j < head; ++j) out[j] = mean_of(x + j * size, size);
  }
  out[head] = mean_of(x + head * size, channels - head * size);
}

// torch's nearest neighbour, float arithmetic and all.
static int64_t nearest(int64_t o, int64_t in, int64_t out) {
  if (in == out) return o;
  if (out == 2 * in) return o >> 1;
  return least(in - 1, (int64_t)((float)o * ((float)in / (float)out)));
}

// Whether the bypass is the map itself, pixel by pixel.
static bool bypass_is_direct(const BinarizeGeometry& g) {
  const bool windows = !g.transposed && g.stride[0] * g.stride[1] * g.stride[2] > 1;
  return g.sources == 1 && !windows && g.in_channels == g.out_channels;
}

static int64_t bypass_start(const BinarizeGeometry& g, int d, int64_t o) {
  return g.transposed ? nearest(o, g.in_size[d], g.out_size[d])
                      : o * g.stride[d] - g.bypass_offset[d];
}

static int64_t clamped(const BinarizeGeometry& g, int d, int64_t i) {
  return i < 0 ? 0 : least(i, g.in_size[d] - 1);
}

// The bypass at one output position, C_out floats; `map` is room for C_in floats.
static void bypass_pixel(const Call& c, int64_t n, const int64_t at[3], float* map,
                         float* __restrict out) {
  const BinarizeGeometry& g = *c.g;
  int64_t from[3], window = 1;
  for (int d = 0; d < 3; ++d) {
    from[d] = bypass_start(g, d, at[d]);
    if (!g.transposed) window *= g.stride[d];
  }
  const float* pixel = map;
  float* to = map;
  for (int64_t i = 0; i < g.sources; ++i) {
    const Source s(c, i);
    const float* x =
        s.at(n, clamped(g, 0, from[0]), clamped(g, 1, from[1]), clamped(g, 2, from[2]));
    if (window == 1 && g.sources == 1) {
      pixel = x;
      break;
    }
    __builtin_memcpy(to, x, sizeof(float) * (size_t)s.channels);
    if (window > 1) {
      for (int64_t w = 1; w < window; ++w) {
        const int64_t wx = w % g.stride[2], wy = w / g.stride[2] % g.stride[1],
                      wz = w / (g.stride[2] * g.stride[1]);
        x = s.at(n, clamped(g, 0, from[0] + wz), clamped(g, 1, from[1] + wy),
                 clamped(g, 2, from[2] + wx));
        for (int64_t k = 0; k < s.channels; ++k) to[k] += x[k];
      }
      const float share = 1 / (float)window;
      for (int64_t k = 0; k < s.channels; ++k) to[k] *= share;
    }
    to += s.channels;
  }
  const int64_t copies = g.out_channels / g.in_channels, rest = g.out_channels % g.in_channels;
  for (int64_t i = 0; i < copies; ++i) {
    __builtin_memcpy(out + i * g.in_channels, pixel, sizeof(float) * (size_t)g.in_channels);
  }
  if (rest) {
    fuse_down(pixel, g.in_channels, rest, g.bypass == BINARIZE_INTERLEAVED,
              out + copies * g.in_channels);
  }
}

// A block of pixels on its way from counts to the result.
struct Block {
  int64_t pixels, channels, count_stride;
  const int32_t* counts;
  const float *scale, *offset, *shift, *slope, *out_shift;
  float* sums;  // per channel, or null
  const int32_t* table[kMostPixels];
  const float *bypass[kMostPixels], *residual[kMostPixels];
  float* y[kMostPixels];
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

// Everything after the count, for all pixels of a block and one vector of channels.
template <class F, class I, bool kBypass, bool kResidual, bool kActivation>
static inline __attribute__((always_inline)) void finish_channels(const Block& b, int64_t o) {
  const F scale = load_as<F>(b.scale + o), offset = load_as<F>(b.offset + o), zero = {};
  F shift = zero, slope = zero, out_shift = zero, sums = zero;
  if (kActivation) {
    shift = load_as<F>(b.shift + o);
    slope = load_as<F>(b.slope + o);
    out_shift = load_as<F>(b.out_shift + o);
  }
  const int32_t* counts = b.counts + o;
  for (int64_t i = 0; i < b.pixels; ++i, counts += b.count_stride) {
    const I count = load_as<I>(counts);
    F v = scale * to_floats<F>(load_as<I>(b.table[i] + o) - (count + count)) + offset;
    if (kBypass) v += load_as<F>(b.bypass[i] + o);
    if (kResidual) v += load_as<F>(b.residual[i] + o);
    if (kActivation) {
      v += shift;
      v = v > zero ? v : v * slope;
      v += out_shift;
    }
    __builtin_memcpy(b.y[i] + o, &v, sizeof(v));
    sums += v;
  }
  if (b.sums) {
    sums += load_as<F>(b.sums + o);
    __builtin_memcpy(b.sums + o, &sums, sizeof(sums));
  }
}

template <bool kBypass, bool kResidual, bool kActivation>
static void finish_block(const Block& b) {
  int64_t o = 0;
  // Channels that do not fill a register go through smaller ones.
  for (; o + kLanes <= b.channels; o += kLanes) {
    finish_channels<Floats, Ints, kBypass, kResidual, kActivation>(b, o);
  }
  for (; o + 8 <= b.channels; o += 8) {
    finish_channels<Floats8, Ints8, kBypass, kResidual, kActivation>(b, o);
  }
  for (; o + 4 <= b.channels; o += 4) {
    finish_channels<Floats4, Ints4, kBypass, kResidual, kActivation>(b, o);
  }
  for (; o < b.channels; ++o) {
    finish_channels<float, int32_t, kBypass, kResidual, kActivation>(b, o);
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

// Where everything that a window reads lies, in words from its first position.
static void make_offsets(const Call& c) {
  const Work& w = *c.work;
  const Phase& f = w.phase;
  const int64_t taps2 = c.g->folded ? 1 : f.dim[2].taps,
                words = c.g->depthwise ? 1 : c.plan.string_words;
  int64_t* to = c.plan.offsets;
  for (int64_t step = 0; step < f.steps; ++step) {
    const int64_t x = step % taps2, y = step / taps2 % f.dim[1].taps,
                  z = step / (taps2 * f.dim[1].taps);
    const int64_t at = z * f.dim[0].reach * w.line[0] + y * f.dim[1].reach * w.line[1] +
                       x * f.dim[2].reach * w.line[2];
    for (int64_t k = 0; k < words; ++k) *to++ = at + k;
  }
}

static void count_dense(const Call& c, const uint64_t* const* pixel, int64_t pixels,
                        int32_t* counts) {
  const BinarizeGeometry& g = *c.g;
  const int64_t words = c.plan.string_words, reads = c.work->phase.steps * words;
  const int64_t out_group = g.out_channels / g.groups, blocks = ceil_div(out_group, 8);
  const int64_t stride = c.plan.count_stride, block_words = reads * 8;
  const uint64_t* moved[kMostPixels];
  for (int64_t group = 0; group < g.groups; ++group) {
    for (int64_t i = 0; i < pixels; ++i) moved[i] = pixel[i] + group * words;
    const uint64_t* weight = c.work->words + group * blocks * block_words;
    for (int64_t b = 0; b < blocks;) {
      const int64_t wide = least(kVectors, blocks - b);
      int32_t* to = counts + group * out_group + b * 8;
      const int64_t lanes = least(wide * 8, out_group - b * 8);
      for (int64_t i = 0; i < pixels; i += kPixels) {
        count_tile(wide, moved + i, c.plan.offsets, reads, weight + b * block_words, block_words,
                   to + i * stride, stride, lanes);
      }
      b += wide;
    }
  }
}

// 512 channels of a depthwise convolution at a time, their counts in bit planes.
typedef uint64_t Lanes __attribute__((vector_size(64)));
constexpr int kPlanes = 32;

static inline __attribute__((always_inline)) void load_lanes(Lanes& to, const uint64_t* from) {
  __builtin_memcpy(&to, from, sizeof(to));
}

// Full adder: a + b + c = sum + 2 * carry.
#define BINARIZE_ADD3(sum, carry, a, b, c) \
  do {                                     \
    const Lanes half_ = (a) ^ (b);         \
    const Lanes c_ = (c);                  \
    carry = ((a) & (b)) | (half_ & c_);    \
    sum = half_ ^ c_;                      \
  } while (0)

static void count_depthwise(const Call& c, const uint64_t* const* pixel, int64_t pixels,
                            int32_t* counts) {
  const int64_t steps = c.work->phase.steps, words = c.plan.words, stride = c.plan.count_stride;
  const int64_t period = words + 8;
  int planes = 1;
  while (planes < kPlanes && (steps >> planes)) ++planes;
  const int top = planes > 3 ? planes : 3;
  const int64_t* offsets = c.plan.offsets;
  for (int64_t i = 0; i < pixels;) {
    int64_t run = 1;
    while (i + run < pixels && pixel[i + run] == pixel[i] + run * words) ++run;
    for (int64_t f = 0; f < run * words; f += 8) {
      const uint64_t *at = pixel[i] + f, *weight = c.plan.depth_weight + f % words;
      Lanes plane[kPlanes];
      for (int p = 0; p < top; ++p) plane[p] = Lanes{};
      auto bit = [&](Lanes & to, int64_t s) __attribute__((always_inline)) {
        Lanes b;
        load_lanes(to, at + offsets[s]);
        load_lanes(b, weight + s * period);
        to ^= b;
      };
      int64_t s = 0;
      for (; s + 8 <= steps; s += 8) {
        Lanes a, b, t0, t1, f0, f1, carry;
        bit(a, s), bit(b, s + 1);
        BINARIZE_ADD3(plane[0], t0, plane[0], a, b);
        bit(a, s + 2), bit(b, s + 3);
        BINARIZE_ADD3(plane[0], t1, plane[0], a, b);
        BINARIZE_ADD3(plane[1], f0, plane[1], t0, t1);
        bit(a, s + 4), bit(b, s + 5);
        BINARIZE_ADD3(plane[0], t0, plane[0], a, b);
        bit(a, s + 6), bit(b, s + 7);
        BINARIZE_ADD3(plane[0], t1, plane[0], a, b);
        BINARIZE_ADD3(plane[1], f1, plane[1], t0, t1);
        BINARIZE_ADD3(plane[2], carry, plane[2], f0, f1);
        for (int p = 3; p < top; ++p) {
          const Lanes next = plane[p] & carry;
          plane[p] ^= carry;
          carry = next;
        }
      }
      for (; s < steps; ++s) {
        Lanes carry;
        bit(carry, s);
        for (int p = 0; p < top; ++p) {
          const Lanes next = plane[p] & carry;
          plane[p] ^= carry;
          carry = next;
        }
      }
      const uint64_t* lanes = (const uint64_t*)plane;
      for (int64_t l = 0; l < least(8, run * words - f); ++l) {
        const int64_t where = f + l;
        expand(lanes + l, planes, counts + (i + where / words) * stride + where % words * 64);
      }
    }
    i += run;
  }
}

static void repeat_weight(const Call& c) {
  const int64_t words = c.plan.words, period = words + 8;
  for (int64_t t = 0; t < c.work->phase.taps; ++t) {
    for (int64_t k = 0; k < period; ++k) {
      c.plan.depth_weight[t * period + k] = c.work->words[t * words + k % words];
    }
  }
}

// Positions of a block and where they read and write, one stretch of a row after the other.
static __attribute__((noinline)) void place_block(const Call& c, int64_t n, int64_t first, Block& b,
                                                  const uint64_t** pixel, float* bypass_room,
                                                  float* map_room) {
  const Work& w = *c.work;
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const Phase& f = w.phase;
  const Dim& fx = f.dim[2];
  const bool direct = bypass_is_direct(g);
  const Source source(c, 0);
  // Strings are made for the outputs of a row: their taps begin at 0.
  const int64_t start = g.folded ? 0 : fx.start + p.before[2];
  const int64_t step = (g.folded ? 1 : fx.step) * w.line[2];
  int64_t x = first % fx.out, row = first / fx.out, at[3], out[3];
  for (int64_t i = 0; i < b.pixels; x = 0, ++row) {
    at[0] = row / f.dim[1].out, at[1] = row % f.dim[1].out;
    const uint64_t* bits = w.base + n * w.sample + start * w.line[2];
    for (int d = 0; d < 2; ++d) {
      const Dim& m = f.dim[d];
      bits += (m.start + p.before[d] + at[d] * m.step) * w.line[d];
      out[d] = m.first + at[d] * m.every;
    }
    const int32_t* table = p.table + (w.numbers[0][at[0]] * w.patterns[1] + w.numbers[1][at[1]]) *
                                         w.patterns[2] * b.channels;
    float* y = (float*)c.tensors[BINARIZE_RESULT] +
               ((n * g.out_size[0] + out[0]) * g.out_size[1] + out[1]) * g.out_size[2] * b.channels;
    const float *by = nullptr, *residual = nullptr;
    if (g.bypass != BINARIZE_NONE && direct) {
      by = source.at(n, clamped(g, 0, bypass_start(g, 0, out[0])),
                     clamped(g, 1, bypass_start(g, 1, out[1])), 0);
    }
    if (g.residuals > 0) {
      const int64_t* s = g.residual;
      residual = c.residual(0) + n * s[0] + out[0] * s[1] + out[1] * s[2];
    }
    for (; x < fx.out && i < b.pixels; ++x, ++i) {
      const int64_t ox = fx.first + x * fx.every;
      pixel[i] = bits + x * step;
      b.table[i] = table + w.numbers[2][x] * b.channels;
      b.y[i] = y + ox * b.channels;
      if (residual) b.residual[i] = residual + ox * g.residual[3];
      if (by) {
        const int64_t from = clamped(g, 2, bypass_start(g, 2, ox));
        b.bypass[i] = by + (source.up == 1 ? from : from / source.up) * source.col;
      } else if (g.bypass != BINARIZE_NONE) {
        out[2] = ox;
        float* to = bypass_room + i * b.channels;
        bypass_pixel(c, n, out, map_room, to);
        b.bypass[i] = to;
      }
    }
  }
}

// Adds the second and all further residuals to the first.
static void join_residuals(const Call& c, int64_t n, int64_t first, Block& b, float* room) {
  const BinarizeGeometry& g = *c.g;
  const Dim* dim = c.work->phase.dim;
  for (int64_t i = 0; i < b.pixels; ++i, room += b.channels) {
    const int64_t row = (first + i) / dim[2].out;
    const int64_t at[3] = {row / dim[1].out, row % dim[1].out, (first + i) % dim[2].out};
    const float* have = b.residual[i];
    for (int64_t r = 1; r < g.residuals; ++r) {
      const float* from = c.residual(r) + n * g.residual[4 * r];
      for (int d = 0; d < 3; ++d) {
        from += (dim[d].first + at[d] * dim[d].every) * g.residual[4 * r + 1 + d];
      }
      for (int64_t o = 0; o < b.channels; ++o) room[o] = have[o] + from[o];
      have = room;
    }
    b.residual[i] = have;
  }
}

static void convolve_item(Call& c, int64_t item, int64_t slot) {
  const Work& w = *c.work;
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const int64_t n = item / w.items, part = item % w.items, channels = g.out_channels;
  const int64_t end = least(w.phase.outputs, (part + 1) * p.span);
  float* room = p.room + slot * p.room_floats;
  int32_t* counts = (int32_t*)room;
  float* bypass_room = room + p.block * p.count_stride;
  float* residual_room = bypass_room + p.block * channels;
  float* map_room = residual_room + p.block * channels;
  Block b;
  b.channels = channels;
  b.count_stride = p.count_stride;
  b.counts = counts;
  b.scale = p.scale + n * channels;
  b.offset = c.floats(BINARIZE_OFFSET);
  b.shift = w.act[0], b.slope = w.act[1], b.out_shift = w.act[2];
  b.sums = nullptr;
  if (c.tensors[BINARIZE_RESULT_MEANS]) {
    b.sums = p.sum_part + (n * p.sum_rows + w.sum_row + part) * channels;
    for (int64_t o = 0; o < channels; ++o) b.sums[o] = 0;
  }
  const uint64_t* pixel[kMostPixels];
  for (int64_t first = part * p.span; first < end; first += p.block) {
    b.pixels = least(p.block, end - first);
    const int64_t rounded = ceil_div(b.pixels, kPixels) * kPixels;
    place_block(c, n, first, b, pixel, bypass_room, map_room);
    if (g.residuals > 1) join_residuals(c, n, first, b, residual_room);
    for (int64_t i = b.pixels; i < rounded; ++i) pixel[i] = pixel[b.pixels - 1];
    if (g.depthwise) {
      count_depthwise(c, pixel, b.pixels, counts);
    } else {
      count_dense(c, pixel, rounded, counts);
    }
    w.finish(b);
  }
}

// Makes everything ready for the next phase that has outputs.
static void begin_phase(Call& c) {
  Work& w = *c.work;
  for (;;) {
    w.phase = make_phase(*c.g, w.index);
    if (w.phase.outputs > 0) break;
    w.words += w.phase.words;
    w.tap_sums += w.phase.sums;
    ++w.index;
  }
  make_table(c);
  make_offsets(c);
  if (c.g->depthwise) repeat_weight(c);
  w.items = ceil_div(w.phase.outputs, c.plan.span);
}

static void next_phase(Call& c) {
  Work& w = *c.work;
  w.sum_row += w.items;
  w.words += w.phase.words;
  w.tap_sums += w.phase.sums;
  ++w.index;
  begin_phase(c);
}

static void make_result_means(Call& c) {
  const BinarizeGeometry& g = *c.g;
  float* means = (float*)c.tensors[BINARIZE_RESULT_MEANS];
  if (!means) return;
  const int64_t area = g.out_size[0] * g.out_size[1] * g.out_size[2];
  const int64_t rows = c.work->sum_row + c.work->items;
  for (int64_t n = 0; n < g.samples; ++n) {
    finish_means(c.plan.sum_part + n * c.plan.sum_rows * g.out_channels, rows, g.out_channels,
                 g.out_channels, area, means + n * g.out_channels);
  }
}

static void make_thresholds(Call& c) {
  make_levels(c);
  make_flips(c);
}

static void begin_counting(Call& c) {
  make_scale(c);
  begin_phase(c);
}

// What the epilogue needs, and where bits are read.
static void begin_work(const Call& c, Work& w) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const void* const* tensors = c.tensors;
  const bool active =
      tensors[BINARIZE_ACT_SHIFT] || tensors[BINARIZE_ACT_SLOPE] || tensors[BINARIZE_ACT_OUT_SHIFT];
  // An activation that lacks a part has its neutral value in this memory.
  float* neutral = p.scale + g.samples * g.out_channels;
  for (int i = 0; i < 3; ++i) {
    w.act[i] = c.floats(BINARIZE_ACT_SHIFT + i);
    if (w.act[i]) continue;
    for (int64_t o = 0; o < g.out_channels; ++o) neutral[o] = i == 1 ? 1.0f : 0.0f;
    w.act[i] = neutral;
    neutral += g.out_channels;
  }
  w.finish = choose_finish(g.bypass != BINARIZE_NONE, g.residuals > 0, active);
  const int64_t pixel_words = p.gathered ? g.groups * p.string_words : p.words;
  w.base = p.gathered ? p.strings : p.bits;
  w.line[2] = pixel_words;
  w.line[1] = w.line[2] * (p.gathered ? p.string_pixels : p.padded[2]);
  w.line[0] = w.line[1] * p.padded[1];
  w.sample = w.line[0] * p.padded[0];

  w.words = (const uint64_t*)tensors[BINARIZE_WEIGHT];
  int64_t all_words = 0;
  for (int64_t i = 0; i < p.phases; ++i) all_words += make_phase(g, i).words;
  w.tap_sums = (const int32_t*)(w.words + all_words);
  w.index = w.sum_row = 0;
}

static int32_t run_unit(const BinarizeGeometry& g, const void* const* tensors, int64_t threads,
                        BinarizeRunner runner) {
  Call c;
  Work w;
  c.g = &g;
  c.tensors = tensors;
  c.work = &w;
  make_plan(g, tensors[BINARIZE_RESULT_MEANS] != nullptr, threads, (char*)tensors[BINARIZE_SCRATCH],
            c.plan);
  begin_work(c, w);

  const int64_t lines = g.samples * c.plan.padded[0] * c.plan.padded[1];
  int64_t count = 0;
  auto add = [&](void (*item)(Call&, int64_t, int64_t), int64_t items, void (*after)(Call&)) {
    c.plan.stages[count++] = {item, after, items, 0, 0, 0};
  };
  if (takes_means(c)) {
    add(mean_item, c.plan.mean_rows, make_thresholds);
  } else {
    make_thresholds(c);
  }
  add(pack_item, lines * c.plan.segments, c.plan.gathered ? nullptr : begin_counting);
  if (c.plan.gathered) add(string_item, lines, begin_counting);
  for (int64_t i = 0; i < c.plan.phases; ++i) {
    const int64_t outputs = make_phase(g, i).outputs;
    if (outputs > 0) add(convolve_item, g.samples * ceil_div(outputs, c.plan.span), next_phase);
  }
  c.plan.stages[count - 1].after = make_result_means;
  run_stages(c, c.plan.stages, count, threads, runner);
  return BINARIZE_OK;
}
