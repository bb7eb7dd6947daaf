// The bypass, which is added to every output after the count, and where a block of pixels reads it.
//
// All input channels are copied as often as they fit into the output; the remaining channels are
// means of neighbors. If a feature map's pixels are in the order of the outputs, copies are read
// directly (`straight`); otherwise the pixels are first gathered in the thread's memory.

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define BINARIZE_SHUFFLE
#endif
#endif

#if defined(BINARIZE_SHUFFLE)
// Lane i of the result is float kStep * i + kFrom of the given vectors, while there are any; the
// remaining lanes are those of `have`.
template <int kStep, int kFrom, int kAt, int... kLane>
static inline __attribute__((always_inline)) Floats pick(Floats have, Floats next,
                                                         std::integer_sequence<int, kLane...>) {
  constexpr int lanes = (int)kLanes;
  return __builtin_shufflevector(
      have, next,
      ((kStep * kLane + kFrom) / lanes == kAt ? lanes + (kStep * kLane + kFrom) % lanes
                                              : kLane)...);
}

// Every kStep-th float of kStep vectors, starting at float kFrom.
template <int kStep, int kFrom, int... kAt>
static inline __attribute__((always_inline)) Floats every(const Floats* x,
                                                          std::integer_sequence<int, kAt...>) {
  Floats have = x[0];
  ((have = pick<kStep, kFrom, kAt>(have, x[kAt], std::make_integer_sequence<int, (int)kLanes>{})),
   ...);
  return have;
}

template <int kStep, int... kFrom>
static inline __attribute__((always_inline)) Floats add_neighbours(
    const Floats* x, std::integer_sequence<int, kFrom...>) {
  Floats sum = {};
  ((sum += every<kStep, kFrom>(x, std::make_integer_sequence<int, kStep>{})), ...);
  return sum;
}

// Sums of kSize neighbors each, from kSize vectors.
template <int kSize>
static inline __attribute__((always_inline)) Floats sum_neighbours(const Floats* x) {
  if constexpr (kSize == 1) {
    return x[0];
  } else if constexpr (kSize % 2 == 0) {
    Floats half[kSize / 2];
    for (int i = 0; i < kSize / 2; ++i) {
#if defined(BINARIZE_PAIR_SUMS)
      half[i] = pair_sums(x[2 * i], x[2 * i + 1]);
#else
      half[i] = add_neighbours<2>(x + 2 * i, std::make_integer_sequence<int, 2>{});
#endif
    }
    return sum_neighbours<kSize / 2>(half);
  } else {
    return add_neighbours<kSize>(x, std::make_integer_sequence<int, kSize>{});
  }
}
#endif

// The same for one sum, in the same order, so that a mean does not depend on its position.
template <int kSize>
static inline __attribute__((always_inline)) float sum_of(const float* x) {
  if constexpr (kSize == 1) {
    return x[0];
  } else if constexpr (kSize % 2 == 0) {
    float half[kSize / 2];
    for (int i = 0; i < kSize / 2; ++i) half[i] = x[2 * i] + x[2 * i + 1];
    return sum_of<kSize / 2>(half);
  } else {
    float sum = x[0];
    for (int i = 1; i < kSize; ++i) sum += x[i];
    return sum;
  }
}

// Means of `size` neighbors each, `groups` times.
template <int kSize>
static void group_means(const float* x, int64_t groups, float* __restrict out) {
  constexpr float share = 1.0f / kSize;
  int64_t j = 0;
#if defined(BINARIZE_SHUFFLE)
  for (; j + kLanes <= groups; j += kLanes) {
    // One by one: a copy in smaller pieces would stall the loads.
    Floats part[kSize];
#pragma GCC unroll 8
    for (int i = 0; i < kSize; ++i) part[i] = load_as<Floats>(x + j * kSize + i * kLanes);
    const Floats mean = sum_neighbours<kSize>(part) * share;
    __builtin_memcpy(out + j, &mean, sizeof(mean));
  }
#endif
  for (; j < groups; ++j) out[j] = sum_of<kSize>(x + j * kSize) * share;
}

static float mean_of(const float* x, int64_t count) {
  float part[8] = {0}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; ++k) part[k] += x[i + k];
  }
  for (; i < count; ++i) sum += x[i];
  for (int k = 0; k < 8; ++k) sum += part[k];
  return sum / (float)count;
}

static void contiguous_means(const float* x, int64_t size, int64_t groups, float* __restrict out) {
  switch (size) {
    case 1:
      return group_means<1>(x, groups, out);
    case 2:
      return group_means<2>(x, groups, out);
    case 3:
      return group_means<3>(x, groups, out);
    case 4:
      return group_means<4>(x, groups, out);
    case 5:
      return group_means<5>(x, groups, out);
    case 6:
      return group_means<6>(x, groups, out);
    case 8:
      return group_means<8>(x, groups, out);
    default:
      for (int64_t j = 0; j < groups; ++j) out[j] = mean_of(x + j * size, size);
  }
}

// The channels that remain when all are copied as often as they fit. The last group also takes the
// remainder of an uneven division.
static void fuse_down(const float* x, int64_t channels, int64_t out_channels, bool interleaved,
                      float* __restrict out) {
  const int64_t size = channels / out_channels, head = out_channels - 1;
  if (interleaved && head > 0) {
    for (int64_t j = 0; j < head; ++j) out[j] = x[j];
    for (int64_t i = 1; i < size; ++i) {
      for (int64_t j = 0; j < head; ++j) out[j] += x[i * head + j];
    }
    for (int64_t j = 0; j < head; ++j) out[j] /= (float)size;
  } else if (channels == size * out_channels) {
    return contiguous_means(x, size, out_channels, out);
  } else {
    contiguous_means(x, size, head, out);
  }
  out[head] = mean_of(x + head * size, channels - head * size);
}

// torch's nearest neighbor, including its float arithmetic.
static int64_t nearest(int64_t o, int64_t in, int64_t out) {
  if (in == out) return o;
  if (out == 2 * in) return o >> 1;
  return min(in - 1, (int64_t)((float)o * ((float)in / (float)out)));
}

static int64_t bypass_start(const BinarizeGeometry& g, int d, int64_t o) {
  return g.transposed ? nearest(o, g.in_size[d], g.out_size[d])
                      : o * g.stride[d] - g.bypass_offset[d];
}

static int64_t clamped(const BinarizeGeometry& g, int d, int64_t i) {
  return i < 0 ? 0 : min(i, g.in_size[d] - 1);
}

// A memcpy of a few floats without the call.
static inline void copy_floats(const float* from, int64_t count, float* to) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    Floats v;
    __builtin_memcpy(&v, from + k, sizeof(v));
    __builtin_memcpy(to + k, &v, sizeof(v));
  }
  for (; k < count; ++k) to[k] = from[k];
}

// Adds kCount pixels, and the current sum if `more` is set, and multiplies.
template <int kCount>
static void add_places(const float* const* x, bool more, float times, int64_t channels,
                       float* __restrict to) {
  int64_t k = 0;
  for (; k + kLanes <= channels; k += kLanes) {
    for (int i = 0; i < kCount; ++i) __builtin_prefetch(x[i] + k + kAhead);
    Floats v = load_as<Floats>(x[0] + k);
    if (more) v += load_as<Floats>(to + k);
#pragma GCC unroll 4
    for (int i = 1; i < kCount; ++i) v += load_as<Floats>(x[i] + k);
    v *= times;
    __builtin_memcpy(to + k, &v, sizeof(v));
  }
  for (; k < channels; ++k) {
    float v = more ? to[k] + x[0][k] : x[0][k];
    for (int i = 1; i < kCount; ++i) v += x[i][k];
    to[k] = v * times;
  }
}

// The mean over the window that starts at pixel `from`.
static void window_mean(const BinarizeGeometry& g, const Source& s, int64_t n,
                        const int64_t from[3], float* __restrict to) {
  const int64_t all = g.stride[0] * g.stride[1] * g.stride[2];
  const float* x[4];
  int64_t have = 0, done = 0;
  for (int64_t wz = 0; wz < g.stride[0]; ++wz) {
    for (int64_t wy = 0; wy < g.stride[1]; ++wy) {
      for (int64_t wx = 0; wx < g.stride[2]; ++wx) {
        x[have++] = s.at(n, clamped(g, 0, from[0] + wz), clamped(g, 1, from[1] + wy),
                         clamped(g, 2, from[2] + wx));
        if (have < 4 && done + have < all) continue;
        const bool more = done > 0;
        done += have;
        const float times = done == all ? 1 / (float)all : 1;
        if (have == 4) add_places<4>(x, more, times, s.channels, to);
        if (have == 3) add_places<3>(x, more, times, s.channels, to);
        if (have == 2) add_places<2>(x, more, times, s.channels, to);
        if (have == 1) add_places<1>(x, more, times, s.channels, to);
        have = 0;
      }
    }
  }
}

// All input channels at one output position: read directly, or gathered in `map`.
static const float* bypass_pixel(const Call& c, int64_t n, const int64_t at[3], float* map) {
  const BinarizeGeometry& g = *c.g;
  const bool windows = has_windows(g);
  int64_t from[3];
  for (int d = 0; d < 3; ++d) from[d] = bypass_start(g, d, at[d]);
  float* to = map;
  for (int64_t i = 0; i < g.sources; ++i) {
    const Source s(c, i);
    const float* x =
        s.at(n, clamped(g, 0, from[0]), clamped(g, 1, from[1]), clamped(g, 2, from[2]));
    if (!windows && g.sources == 1) return x;
    if (windows) {
      window_mean(g, s, n, from, to);
    } else {
      copy_floats(x, s.channels, to);
    }
    to += s.channels;
  }
  return map;
}

// A thread's memory for the bypass of a block.
struct BypassScratch {
  float *pixels, *rest, *means, *map;
};

// Means of neighbors for a stretch of a row, if no mean combines channels of two sources: source by
// source, all pixels at once if they are contiguous.
static void stage_means(const Call& c, int64_t n, const int64_t at[3], int64_t first, int64_t count,
                        const BypassScratch& scratch) {
  const BinarizeGeometry& g = *c.g;
  const int64_t rest = c.plan.bypass_rest, size = g.in_channels / g.out_channels;
  const int64_t start = bypass_start(g, 2, at[2]);
  float* to = scratch.rest + first * rest;
  for (int64_t i = 0; i < g.sources; ++i) {
    const Source s(c, i);
    const int64_t groups = s.channels / size;
    const int64_t low = s.small(clamped(g, 2, start));
    const int64_t pixels = s.small(clamped(g, 2, start + count - 1)) + 1 - low;
    const float* x = s.at(n, clamped(g, 0, bypass_start(g, 0, at[0])),
                          clamped(g, 1, bypass_start(g, 1, at[1])), clamped(g, 2, start));
    const bool all = pixels == count && groups == rest;
    float* means = all ? to : scratch.means;
    if (s.col == s.channels) {
      contiguous_means(x, size, groups * pixels, means);
    } else {
      for (int64_t k = 0; k < pixels; ++k) {
        contiguous_means(x + k * s.col, size, groups, means + k * groups);
      }
    }
    // A pixel of an upsampled feature map occurs several times, and so does one at the border.
    for (int64_t j = 0, k = 0; !all && j < pixels; ++j) {
      const int64_t end = j + 1 < pixels ? (low + j + 1) * s.up - start : count;
      for (; k < end; ++k) copy_floats(means + j * groups, groups, to + k * rest);
    }
    to += groups;
  }
}

// Gathers `count` pixels, starting at output `at`, from pixel `first` of a block.
static void stage_bypass(const Call& c, int64_t n, const int64_t at[3], int64_t every,
                         int64_t first, int64_t count, const BypassScratch& scratch) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const int64_t channels = g.in_channels, rest = p.bypass_rest;
  const bool interleaved = g.bypass == BINARIZE_INTERLEAVED;
  int64_t o[3] = {at[0], at[1], at[2]};
  if (p.bypass_stored) {
    for (int64_t i = first; i < first + count; ++i, o[2] += every) {
      float* stored = scratch.pixels + i * channels;
      const float* pixel = bypass_pixel(c, n, o, stored);
      if (pixel != stored) copy_floats(pixel, channels, stored);
      if (rest) fuse_down(stored, channels, rest, interleaved, scratch.rest + i * rest);
    }
    return;
  }
  if (p.bypass_apart) return stage_means(c, n, at, first, count, scratch);
  // Neighbors read the same pixel of an upsampled feature map.
  const bool once = g.transposed || has_windows(g);
  const int64_t repeat = once ? 1 : p.repeat;
  const int64_t start = bypass_start(g, 2, o[2]);
  int64_t same = repeat == 1 ? 0 : (start % repeat + repeat) % repeat;
  for (int64_t i = first; i < first + count; ++i, o[2] += every, ++same) {
    float* to = scratch.rest + i * rest;
    if (same == repeat) same = 0;
    if (same > 0 && i > first) {
      copy_floats(to - rest, rest, to);
    } else {
      fuse_down(bypass_pixel(c, n, o, scratch.map), channels, rest, interleaved, to);
    }
  }
}
