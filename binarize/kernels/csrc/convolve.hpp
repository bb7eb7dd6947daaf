// Bits to the result: counting, and everything that comes after it while a block is in the cache.

// Windows that hang over the border: for every output position of a dimension the number of its
// pattern, and for every combination of patterns and every channel the sum that a count of 0
// different bits stands for. Zero padding is stored as 0-bits, which count as -1; what that adds
// is taken away here by the tap sums.
static void make_table(Call &c, const int32_t *sums, int32_t *numbers[3], int64_t patterns[3]) {
  const BinarizeGeometry &g = *c.g;
  const Phase &f = c.phase;
  int64_t at = 0;
  for (int d = 0; d < 3; ++d) {
    numbers[d] = c.plan.pattern + at;
    at += g.out_size[d];
  }
  auto range = [&](int d, int64_t o, int64_t &from, int64_t &to) {
    const Dim &m = f.dim[d];
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
  auto corner = [&](int64_t i, int64_t j, int64_t k) { return sums + ((i * t1 + j) * t2 + k) * out; };
  const int32_t *all = corner(f.dim[0].taps, f.dim[1].taps, f.dim[2].taps);
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
        int32_t *__restrict to =
            c.plan.table + ((last[0] * patterns[1] + last[1]) * patterns[2] + last[2]) * out;
        const int32_t *a = corner(z1, y1, x1), *b = corner(z0, y1, x1), *d = corner(z1, y0, x1),
                      *e = corner(z1, y1, x0), *h = corner(z0, y0, x1), *i = corner(z0, y1, x0),
                      *j = corner(z1, y0, x0), *k = corner(z0, y0, x0);
        for (int64_t o = 0; o < out; ++o) {
          const int32_t valid =
              a[o] - b[o] - d[o] - e[o] + h[o] + i[o] + j[o] - k[o];
          to[o] = total + all[o] - valid;
        }
      }
    }
  }
}

// Means of `size` neighbours each, `groups` times; the last group also takes `extra` more.
template <int kSize>
static void group_means(const float *x, int64_t groups, float *__restrict out) {
  for (int64_t j = 0; j < groups; ++j) {
    float sum = x[j * kSize];
    for (int i = 1; i < kSize; ++i) sum += x[j * kSize + i];
    out[j] = sum * (1.0f / kSize);
  }
}

static float mean_of(const float *x, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum / (float)count;
}

// The channels that are left when all were copied as often as they fit.
static void fuse_down(const float *x, int64_t channels, int64_t out_channels, bool interleaved,
                      float *__restrict out) {
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

// The bypassed map at one output position: a pointer to C_out floats, in the map or in `room`.
static const float *bypass_pixel(const Call &c, int64_t n, const int64_t at[3], float *room) {
  const BinarizeGeometry &g = *c.g;
  const float *pixel;
  int64_t from[3], window = 1;
  for (int d = 0; d < 3; ++d) {
    from[d] = g.transposed ? nearest(at[d], g.in_size[d], g.out_size[d])
                           : at[d] * g.stride[d] - g.bypass_offset[d];
    if (!g.transposed) window *= g.stride[d];
  }
  auto clamp = [&](int d, int64_t i) { return i < 0 ? 0 : least(i, g.in_size[d] - 1); };
  if (g.sources == 1 && window == 1) {
    pixel = Source(c, 0).at(n, clamp(0, from[0]), clamp(1, from[1]), clamp(2, from[2]));
  } else {
    float *to = room;
    pixel = room;
    for (int64_t i = 0; i < g.sources; ++i) {
      const Source s(c, i);
      const float *x = s.at(n, clamp(0, from[0]), clamp(1, from[1]), clamp(2, from[2]));
      __builtin_memcpy(to, x, sizeof(float) * (size_t)s.channels);
      if (window > 1) {
        for (int64_t w = 1; w < window; ++w) {
          const int64_t wx = w % g.stride[2], wy = w / g.stride[2] % g.stride[1],
                        wz = w / (g.stride[2] * g.stride[1]);
          x = s.at(n, clamp(0, from[0] + wz), clamp(1, from[1] + wy), clamp(2, from[2] + wx));
          for (int64_t k = 0; k < s.channels; ++k) to[k] += x[k];
        }
        const float share = 1 / (float)window;
        for (int64_t k = 0; k < s.channels; ++k) to[k] *= share;
      }
      to += s.channels;
    }
    room += g.in_channels;
  }
  if (g.in_channels == g.out_channels) return pixel;
  const int64_t copies = g.out_channels / g.in_channels, rest = g.out_channels % g.in_channels;
  for (int64_t i = 0; i < copies; ++i) {
    __builtin_memcpy(room + i * g.in_channels, pixel, sizeof(float) * (size_t)g.in_channels);
  }
  if (rest) {
    fuse_down(pixel, g.in_channels, rest, g.bypass == BINARIZE_INTERLEAVED,
              room + copies * g.in_channels);
  }
  return room;
}

struct Activation {
  const float *shift, *slope, *out_shift;
};

// Everything after the count, for one pixel.
template <bool kBypass, bool kResidual, bool kActivation, bool kMeans>
static void finish_pixel(int64_t channels, const int32_t *count, const int32_t *table,
                         const float *scale, const float *offset, const float *bypass,
                         const float *residual, const Activation &act, float *__restrict y,
                         float *__restrict sums) {
  const float *shift = act.shift, *slope = act.slope, *out_shift = act.out_shift;
  for (int64_t o = 0; o < channels; ++o) {
    float v = scale[o] * (float)(table[o] - 2 * count[o]) + offset[o];
    if (kBypass) v += bypass[o];
    if (kResidual) v += residual[o];
    if (kActivation) {
      v += shift[o];
      const float scaled = v * slope[o];
      v = v > 0 ? v : scaled;
      v += out_shift[o];
    }
    y[o] = v;
    if (kMeans) sums[o] += v;
  }
}

typedef void (*Finish)(int64_t, const int32_t *, const int32_t *, const float *, const float *,
                       const float *, const float *, const Activation &, float *, float *);

static Finish choose_finish(bool bypass, bool residual, bool activation, bool means) {
#define BINARIZE_ROW(B, R)                                                             \
  {                                                                                    \
    {finish_pixel<B, R, false, false>, finish_pixel<B, R, false, true>}, {             \
      finish_pixel<B, R, true, false>, finish_pixel<B, R, true, true>                  \
    }                                                                                  \
  }
  static const Finish all[2][2][2][2] = {{BINARIZE_ROW(false, false), BINARIZE_ROW(false, true)},
                                         {BINARIZE_ROW(true, false), BINARIZE_ROW(true, true)}};
#undef BINARIZE_ROW
  return all[bypass][residual][activation][means];
}

// What the work items of one phase share.
struct Work {
  const Call *call;
  int32_t *numbers[3];
  int64_t patterns[3];
  Activation act;
  Finish finish;
  int64_t items;        // per sample
  const uint64_t *base; // bits or strings
  int64_t line[3];      // words per step of z, y, x
  int64_t sample;       // words per sample
};

// Word offset of every step, for at most so many at a time.
constexpr int64_t kSteps = 1024;

static int64_t step_offset(const Work &w, int64_t step) {
  const Phase &f = w.call->phase;
  const int64_t taps2 = w.call->g->folded ? 1 : f.dim[2].taps;
  const int64_t x = step % taps2, y = step / taps2 % f.dim[1].taps,
                z = step / (taps2 * f.dim[1].taps);
  return z * f.dim[0].reach * w.line[0] + y * f.dim[1].reach * w.line[1] +
         x * f.dim[2].reach * w.line[2];
}

static void count_dense(const Work &w, const uint64_t *const *pixel, int64_t pixels,
                        int32_t *counts) {
  const Call &c = *w.call;
  const BinarizeGeometry &g = *c.g;
  const int64_t steps = c.phase.steps, words = c.plan.string_words;
  const int64_t out_group = g.out_channels / g.groups, blocks = ceil_div(out_group, 8);
  const int64_t stride = c.plan.count_stride, block_words = steps * words * 8;
  int64_t offsets[kSteps];
  const uint64_t *moved[kMostPixels];
  // A phase that no tap reaches goes through once, too: it counts nothing.
  for (int64_t s0 = 0; s0 == 0 || s0 < steps; s0 += kSteps) {
    const int64_t some = least(kSteps, steps - s0);
    for (int64_t s = 0; s < some; ++s) offsets[s] = step_offset(w, s0 + s);
    for (int64_t group = 0; group < g.groups; ++group) {
      for (int64_t i = 0; i < pixels; ++i) moved[i] = pixel[i] + group * words;
      const uint64_t *weight = c.words + group * blocks * block_words + s0 * words * 8;
      for (int64_t b = 0; b < blocks;) {
        const int64_t wide = least(kVectors, blocks - b);
        int32_t *to = counts + group * out_group + b * 8;
        const int64_t lanes = least(wide * 8, out_group - b * 8);
        for (int64_t i = 0; i < pixels; i += kPixels) {
          count_tile(wide, moved + i, offsets, some, words, weight + b * block_words, block_words,
                     to + i * stride, stride, lanes, s0 > 0);
        }
        b += wide;
      }
    }
  }
}

// 512 channels of a depthwise convolution at a time, their counts in bit planes.
typedef uint64_t Lanes __attribute__((vector_size(64)));
constexpr int kPlanes = 32;

static inline __attribute__((always_inline)) void load_lanes(Lanes &to, const uint64_t *from) {
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

static void count_depthwise(const Work &w, const uint64_t *const *pixel, int64_t pixels,
                            int32_t *counts) {
  const Call &c = *w.call;
  const int64_t steps = c.phase.steps, words = c.plan.words, stride = c.plan.count_stride;
  const int64_t period = words + 8;
  int planes = 1;
  while (planes < kPlanes && (steps >> planes)) ++planes;
  const int top = planes > 3 ? planes : 3;
  int64_t offsets[kSteps];
  for (int64_t i = 0; i < pixels;) {
    int64_t run = 1;
    while (i + run < pixels && pixel[i + run] == pixel[i] + run * words) ++run;
    for (int64_t f = 0; f < run * words; f += 8) {
      const uint64_t *at = pixel[i] + f, *weight = c.plan.depth_weight + f % words;
      Lanes plane[kPlanes];
      for (int p = 0; p < top; ++p) plane[p] = Lanes{};
      for (int64_t s0 = 0; s0 < steps; s0 += kSteps) {
        const int64_t some = least(kSteps, steps - s0);
        if (f == 0 || steps > kSteps) {
          for (int64_t s = 0; s < some; ++s) offsets[s] = step_offset(w, s0 + s);
        }
        auto bit = [&](Lanes &to, int64_t s) __attribute__((always_inline)) {
          Lanes b;
          load_lanes(to, at + offsets[s]);
          load_lanes(b, weight + (s0 + s) * period);
          to ^= b;
        };
        int64_t s = 0;
        for (; s + 8 <= some; s += 8) {
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
        for (; s < some; ++s) {
          Lanes carry;
          bit(carry, s);
          for (int p = 0; p < top; ++p) {
            const Lanes next = plane[p] & carry;
            plane[p] ^= carry;
            carry = next;
          }
        }
      }
      const uint64_t *lanes = (const uint64_t *)plane;
      for (int64_t l = 0; l < least(8, run * words - f); ++l) {
        const int64_t where = f + l;
        expand(lanes + l, planes, counts + (i + where / words) * stride + where % words * 64);
      }
    }
    i += run;
  }
}

static void repeat_weight(Call &c) {
  const int64_t words = c.plan.words, period = words + 8;
  for (int64_t t = 0; t < c.phase.taps; ++t) {
    for (int64_t k = 0; k < period; ++k) {
      c.plan.depth_weight[t * period + k] = c.words[t * words + k % words];
    }
  }
}

static void convolve_item(const void *context, int64_t item, int64_t slot) {
  const Work &w = *(const Work *)context;
  const Call &c = *w.call;
  const BinarizeGeometry &g = *c.g;
  const Plan &p = c.plan;
  const Phase &f = c.phase;
  const int64_t n = item / w.items, part = item % w.items, channels = g.out_channels;
  const int64_t end = least(f.outputs, (part + 1) * p.span);
  float *room = p.room + slot * p.room_floats;
  int32_t *counts = (int32_t *)room;
  float *bypass_room = room + p.block * p.count_stride;
  float *residual_room = bypass_room + g.in_channels + channels;
  float *sums = nullptr;
  if (c.tensors[BINARIZE_RESULT_MEANS]) {
    sums = p.sum_part + (n * p.sum_rows + c.sum_row + part) * channels;
    for (int64_t o = 0; o < channels; ++o) sums[o] = 0;
  }
  float *y = (float *)c.tensors[BINARIZE_RESULT];
  const float *scale = p.scale + n * channels, *offset = c.floats(BINARIZE_OFFSET);
  const uint64_t *base = w.base + n * w.sample;
  int64_t at[kMostPixels][3];
  const uint64_t *pixel[kMostPixels];
  for (int64_t first = part * p.span; first < end; first += p.block) {
    const int64_t pixels = least(p.block, end - first);
    const int64_t rounded = ceil_div(pixels, kPixels) * kPixels;
    int64_t x = first % f.dim[2].out, row = first / f.dim[2].out;
    for (int64_t i = 0; i < pixels; ++i) {
      at[i][0] = row / f.dim[1].out, at[i][1] = row % f.dim[1].out, at[i][2] = x;
      pixel[i] = base;
      for (int d = 0; d < 3; ++d) {
        // Strings are made for the outputs of a row: their taps begin at 0.
        const int64_t start = d == 2 && g.folded ? 0 : f.dim[d].start + p.before[d];
        const int64_t step = d == 2 && g.folded ? 1 : f.dim[d].step;
        pixel[i] += (start + at[i][d] * step) * w.line[d];
      }
      if (++x == f.dim[2].out) x = 0, ++row;
    }
    for (int64_t i = pixels; i < rounded; ++i) pixel[i] = pixel[pixels - 1];
    if (g.depthwise) {
      count_depthwise(w, pixel, pixels, counts);
    } else {
      count_dense(w, pixel, rounded, counts);
    }
    for (int64_t i = 0; i < pixels; ++i) {
      int64_t out[3];
      for (int d = 0; d < 3; ++d) out[d] = f.dim[d].first + at[i][d] * f.dim[d].every;
      const int64_t pattern =
          (w.numbers[0][at[i][0]] * w.patterns[1] + w.numbers[1][at[i][1]]) * w.patterns[2] +
          w.numbers[2][at[i][2]];
      const float *bypass =
          g.bypass == BINARIZE_NONE ? nullptr : bypass_pixel(c, n, out, bypass_room);
      const float *residual = nullptr;
      for (int64_t r = 0; r < g.residuals; ++r) {
        const int64_t *s = g.residual + 4 * r;
        const float *from =
            c.residual(r) + n * s[0] + out[0] * s[1] + out[1] * s[2] + out[2] * s[3];
        if (r == 0) {
          residual = from;
          continue;
        }
        for (int64_t o = 0; o < channels; ++o) residual_room[o] = residual[o] + from[o];
        residual = residual_room;
      }
      const int64_t position =
          ((n * g.out_size[0] + out[0]) * g.out_size[1] + out[1]) * g.out_size[2] + out[2];
      w.finish(channels, counts + i * p.count_stride, p.table + pattern * channels, scale, offset,
               bypass, residual, w.act, y + position * channels, sums);
    }
  }
}

static int32_t run_unit(const BinarizeGeometry &g, const void *const *tensors, int64_t threads,
                        BinarizeRunner runner) {
  Call c;
  c.g = &g;
  c.tensors = tensors;
  c.team = {threads, runner};
  const bool want_means = tensors[BINARIZE_RESULT_MEANS] != nullptr;
  make_plan(g, want_means, threads, (char *)tensors[BINARIZE_SCRATCH], c.plan);
  const Plan &p = c.plan;
  make_bits(c);

  Work w;
  w.call = &c;
  const bool active = tensors[BINARIZE_ACT_SHIFT] || tensors[BINARIZE_ACT_SLOPE] ||
                      tensors[BINARIZE_ACT_OUT_SHIFT];
  // An activation that lacks a part has its neutral value in this memory.
  float *neutral = p.scale + g.samples * g.out_channels;
  const float *parts[3];
  for (int i = 0; i < 3; ++i) {
    parts[i] = c.floats(BINARIZE_ACT_SHIFT + i);
    if (parts[i]) continue;
    for (int64_t o = 0; o < g.out_channels; ++o) neutral[o] = i == 1 ? 1.0f : 0.0f;
    parts[i] = neutral;
    neutral += g.out_channels;
  }
  w.act = {parts[0], parts[1], parts[2]};
  w.finish = choose_finish(g.bypass != BINARIZE_NONE, g.residuals > 0, active, want_means);
  const int64_t pixel_words = p.gathered ? g.groups * p.string_words : p.words;
  w.base = p.gathered ? p.strings : p.bits;
  w.line[2] = pixel_words;
  w.line[1] = w.line[2] * (p.gathered ? p.string_pixels : p.padded[2]);
  w.line[0] = w.line[1] * p.padded[1];
  w.sample = w.line[0] * p.padded[0];

  c.words = (const uint64_t *)tensors[BINARIZE_WEIGHT];
  int64_t all_words = 0;
  for (int64_t i = 0; i < p.phases; ++i) all_words += make_phase(g, i).words;
  const int32_t *sums = (const int32_t *)(c.words + all_words);
  c.sum_row = 0;
  for (int64_t i = 0; i < p.phases; ++i) {
    c.phase = make_phase(g, i);
    if (c.phase.outputs > 0) {
      make_table(c, sums, w.numbers, w.patterns);
      if (g.depthwise) repeat_weight(c);
      w.items = ceil_div(c.phase.outputs, p.span);
      c.team.run(convolve_item, &w, g.samples * w.items);
      c.sum_row += w.items;
    }
    c.words += c.phase.words;
    sums += c.phase.sums;
  }
  if (want_means) {
    float *means = (float *)tensors[BINARIZE_RESULT_MEANS];
    const int64_t area = g.out_size[0] * g.out_size[1] * g.out_size[2];
    for (int64_t n = 0; n < g.samples; ++n) {
      finish_means(p.sum_part + n * p.sum_rows * g.out_channels, c.sum_row, g.out_channels,
                   g.out_channels, area, means + n * g.out_channels);
    }
  }
  return BINARIZE_OK;
}
