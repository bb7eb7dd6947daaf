// Counting: differing bits of windows and weights, for all pixels of a block.

// Offsets of everything that a window reads, in words from its first position.
static void make_offsets(const Call& c) {
  const Work& w = *c.work;
  const Phase& f = w.phase;
  const int64_t taps2 = c.g->folded ? 1 : f.dim[2].taps,
                words = c.g->depthwise ? 1 : c.plan.string_words;
  int64_t* to = c.plan.offsets;
  for (int64_t step = 0; step < f.steps; ++step) {
    const int64_t x = step % taps2, y = step / taps2 % f.dim[1].taps,
                  z = step / (taps2 * f.dim[1].taps);
    const int64_t at = z * f.dim[0].tap_step * w.line[0] + y * f.dim[1].tap_step * w.line[1] +
                       x * f.dim[2].tap_step * w.line[2];
    for (int64_t k = 0; k < words; ++k) *to++ = at + k;
  }
}

static void count_dense(const Call& c, const uint8_t* const* pixel, int64_t pixels,
                        int32_t* counts) {
  const BinarizeGeometry& g = *c.g;
  const int64_t words = c.plan.string_words, reads = c.work->phase.steps * words;
  const int64_t out_group = g.out_channels / g.groups, blocks = ceil_div(out_group, 8);
  const int64_t stride = c.plan.count_stride, block_words = reads * 8;
  const uint64_t* moved[kMaxBlockPixels];
  for (int64_t group = 0; group < g.groups; ++group) {
    for (int64_t i = 0; i < pixels; ++i) moved[i] = (const uint64_t*)pixel[i] + group * words;
    const uint64_t* weight = c.work->words + group * blocks * block_words;
    for (int64_t b = 0; b < blocks;) {
      const int64_t wide = min(kVectors, blocks - b);
      int32_t* to = counts + group * out_group + b * 8;
      const int64_t lanes = min(wide * 8, out_group - b * 8);
      for (int64_t i = 0; i < pixels; i += kPixels) {
        count_tile(wide, moved + i, c.plan.offsets, reads, weight + b * block_words, block_words,
                   to + i * stride, stride, lanes);
      }
      b += wide;
    }
  }
}

// 512 channels of a depthwise convolution at a time, with counts in bit planes.
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

static void count_depthwise(const Call& c, const uint8_t* const* pixel, int64_t pixels,
                            int32_t* counts) {
  const int64_t steps = c.work->phase.steps, words = c.plan.words, stride = c.plan.count_stride;
  const int64_t period = words + 8;
  int planes = 1;
  while (planes < kPlanes && (steps >> planes)) ++planes;
  const int top = planes > 3 ? planes : 3;
  const int64_t* offsets = c.plan.offsets;
  for (int64_t i = 0; i < pixels;) {
    int64_t run = 1;
    while (i + run < pixels && pixel[i + run] == pixel[i] + 8 * run * words) ++run;
    for (int64_t f = 0; f < run * words; f += 8) {
      const uint64_t *at = (const uint64_t*)pixel[i] + f, *weight = c.plan.depth_weight + f % words;
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
      for (int64_t l = 0; l < min(8, run * words - f); ++l) {
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
