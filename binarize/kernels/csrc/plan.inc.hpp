// The plan of one call, computed from its geometry: phases, padded bits, scratch memory.
// Every instruction set's file includes it in its own namespace, so that no code compiled for one
// processor is ever shared with another.

// The number of floats in a register.
typedef float Floats __attribute__((vector_size(kRegister)));
typedef int32_t Ints __attribute__((vector_size(kRegister)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef int32_t Ints8 __attribute__((vector_size(32)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
constexpr int64_t kLanes = sizeof(Floats) / sizeof(float);

template <class T, class P>
static inline __attribute__((always_inline)) T load_as(const P* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

struct Dim {
  int64_t in;        // size of the enlarged input
  int64_t out;       // outputs of this phase
  int64_t taps;      // taps of this phase
  int64_t step;      // input positions per output
  int64_t start;     // input position of output 0, tap 0
  int64_t tap_step;  // input positions per tap
  int64_t first;     // first output in the result
  int64_t every;     // distance of the outputs in the result
};

struct Phase {
  Dim dim[3];
  int64_t outputs;  // positions
  int64_t taps;
  int64_t steps;  // taps after folding
  int64_t words;  // of packed weight
  int64_t sums;   // tap sums
};

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}

// One dimension of a transposed convolution's phase `rest`; layout.py places the same taps there.
static Dim transposed_dim(const BinarizeGeometry& g, int d, int64_t rest) {
  const int64_t s = g.stride[d], dil = g.dilation[d], k = g.kernel[d], p = g.before[d];
  Dim r = {g.in_size[d], 0, 0, 1, 0, 1, 0, s};
  r.first = ((rest - p) % s + s) % s;
  r.out = r.first < g.out_size[d] ? (g.out_size[d] - 1 - r.first) / s + 1 : 0;
  int64_t last = -1, before_last = -1;
  for (int64_t i = k - 1; i >= 0; --i) {
    if (i * dil % s != rest) continue;
    if (r.taps == 0) last = i;
    if (r.taps == 1) before_last = i;
    ++r.taps;
  }
  if (r.taps == 0) return r;
  r.start = floor_div(r.first + p - last * dil, s);
  if (r.taps > 1) r.tap_step = (last - before_last) * dil / s;
  return r;
}

static int64_t phase_count(const BinarizeGeometry& g) {
  return g.transposed ? g.stride[0] * g.stride[1] * g.stride[2] : 1;
}

static Phase make_phase(const BinarizeGeometry& g, int64_t index) {
  Phase r;
  r.outputs = r.taps = 1;
  int64_t rest = index;
  for (int d = 2; d >= 0; --d) {
    if (g.transposed) {
      r.dim[d] = transposed_dim(g, d, rest % g.stride[d]);
      rest /= g.stride[d];
    } else {
      r.dim[d] = {g.in_size[d], g.out_size[d], g.kernel[d], g.stride[d],
                  -g.before[d], g.dilation[d], 0,           1};
    }
    r.outputs *= r.dim[d].out;
    r.taps *= r.dim[d].taps;
  }
  const int64_t in_group = g.in_channels / g.groups, out_group = g.out_channels / g.groups;
  r.steps = g.folded ? r.dim[0].taps * r.dim[1].taps : r.taps;
  if (g.depthwise) {
    r.words = r.taps * ceil_div(g.in_channels, 64);
  } else {
    const int64_t row = g.folded ? in_group * g.kernel[2] : in_group;
    r.words = g.groups * ceil_div(out_group, 8) * r.steps * ceil_div(row, 64) * 8;
  }
  r.sums = (r.dim[0].taps + 1) * (r.dim[1].taps + 1) * (r.dim[2].taps + 1) * g.out_channels;
  return r;
}

constexpr int64_t kPixels = 4;           // pixels of a register tile
constexpr int64_t kMaxBlockPixels = 64;  // pixels of a block
constexpr int64_t kMaxBlockLanes = 128;  // lanes in which table look-ups count at a time
constexpr int64_t kSegment = 512;        // pixels of a row that one thread packs at a time
constexpr int64_t kSegments = 4;         // sources that a bypass is read from where they lie
constexpr int64_t kChunkSteps = 62;      // look-ups whose sums a byte holds, an even number

// Codes that a window reads sequentially.
struct Stretch {
  int64_t offset, count;
};

// Stretches with at most kChunkSteps look-ups in total.
struct Chunk {
  const Stretch *first, *end;
  int64_t codes;
};

// Whether the outputs fill half of a register of this many bytes, so that its halves can look up 4
// bits each at the same time.
static inline bool is_halved(const BinarizeGeometry& g, int64_t lookup) {
  return g.out_channels / g.groups <= lookup / 2;
}

// Bits per code of a pixel in table look-ups: 8 are read at once, 4 leave fewer lanes empty. With
// 0, bits of words are counted instead, as most lanes would be empty.
static inline int64_t code_bits(const BinarizeGeometry& g, int64_t lookup) {
  if (lookup == 0 || g.depthwise || g.out_channels / g.groups <= 8) return 0;
  return is_halved(g, lookup) || g.in_channels / g.groups % 8 == 0 ? 8 : 4;
}

// Codes of one step of the packed weight, with this many bits each.
static inline int64_t row_codes(const BinarizeGeometry& g, int64_t bits) {
  return ceil_div(g.in_channels / g.groups * (g.folded ? g.kernel[2] : 1), bits);
}

struct Call;

struct Plan {
  int64_t words;          // per pixel, all channels
  int64_t before[3];      // padding of the bits
  int64_t padded[3];      // size of the padded bits
  bool gathered;          // bits are brought into strings per group (and folded row)
  int64_t string_words;   // per group and tap
  int64_t string_pixels;  // per row
  int64_t block;          // pixels of a block
  int64_t span;           // pixels of a work item
  int64_t count_stride;   // int32 per pixel of a block
  int64_t coded;          // bits of a code, where table look-ups count; else 0
  int64_t code_pixel;     // bytes of codes per pixel, all groups
  int64_t code_line;      // bytes per row of codes
  int64_t phases;
  int64_t mean_rows;       // partial sums of the input, rows over all sources and samples
  int64_t sum_rows;        // partial sums of the output, rows per sample
  int64_t segments;        // of a padded row
  int64_t row_groups;      // of a padded plane: rows that read the same rows of the sources
  int64_t deviation_rows;  // per sample
  int64_t repeat;          // so many neighbours in a row read the same pixel of every source
  bool bypass_straight;    // its copies are read where the sources lie
  bool bypass_stored;      // its copies are brought into a thread's memory
  bool bypass_apart;       // no mean of it takes channels of two sources
  int64_t bypass_copies;   // of all input channels
  int64_t bypass_rest;     // channels that are means
  int64_t patterns[3];     // at most so many windows that hang over the border differently
  // Scratch memory.
  Stage<Call>* stages;
  float *level, *scale, *sum_part, *thread_memory;
  double *mean_part, *deviation;
  uint64_t *flip, *bits, *strings, *depth_weight;
  uint8_t* codes;
  Chunk* chunks;
  Stretch* stretches;
  int64_t* offsets;  // in words, of everything a window reads
  int32_t *table, *pattern;
  int64_t thread_floats;  // per thread
  int64_t bytes;
};

static int64_t row_segments(int64_t length) { return max(1, ceil_div(length, kSegment)); }

static int64_t divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

// Whether an output's bypass is a mean over several positions.
static bool has_windows(const BinarizeGeometry& g) {
  return !g.transposed && g.stride[0] * g.stride[1] * g.stride[2] > 1;
}

static void plan_bypass(const BinarizeGeometry& g, Plan& p) {
  p.repeat = 0;
  for (int64_t i = 0; i < g.sources; ++i) p.repeat = divisor(g.source[6 * i + 1], p.repeat);
  p.bypass_straight = p.bypass_stored = p.bypass_apart = false;
  p.bypass_copies = p.bypass_rest = 0;
  if (g.bypass == BINARIZE_NONE) return;
  p.bypass_copies = g.out_channels / g.in_channels;
  p.bypass_rest = g.out_channels % g.in_channels;
  if (p.bypass_copies == 0) {
    const int64_t size = g.in_channels / g.out_channels;
    p.bypass_apart = g.bypass == BINARIZE_CONTIGUOUS && !g.transposed && !has_windows(g) &&
                     g.in_channels % g.out_channels == 0;
    for (int64_t i = 0; i < g.sources; ++i) {
      if (g.source[6 * i] % size) p.bypass_apart = false;
    }
    return;
  }
  p.bypass_straight = !g.transposed && !has_windows(g) && g.sources <= kSegments &&
                      g.bypass_offset[2] <= 0 && g.out_size[2] - g.bypass_offset[2] <= g.in_size[2];
  for (int64_t i = 0; i < g.sources; ++i) {
    if (g.source[6 * i + 1] != 1) p.bypass_straight = false;
  }
  p.bypass_stored = !p.bypass_straight;
}

// Fills in the plan; only its size if `memory` is null.
static void make_plan(const BinarizeGeometry& g, int64_t coded, bool want_means, int64_t threads,
                      char* memory, Plan& p) {
  p.words = ceil_div(g.in_channels, 64);
  p.phases = phase_count(g);
  int64_t low[3] = {0, 0, 0}, high[3] = {0, 0, 0};
  int64_t outputs = 0, steps = 0, taps = 0;
  for (int d = 0; d < 3; ++d) {
    p.patterns[d] = 1;
    high[d] = g.in_size[d] - 1;
  }
  for (int64_t i = 0; i < p.phases; ++i) {
    const Phase phase = make_phase(g, i);
    outputs = max(outputs, phase.outputs);
    steps = max(steps, phase.steps);
    taps = max(taps, phase.taps);
    for (int d = 0; d < 3; ++d) {
      const Dim& m = phase.dim[d];
      if (m.taps == 0 || m.out == 0) continue;
      low[d] = min(low[d], m.start);
      high[d] = max(high[d], m.start + (m.out - 1) * m.step + (m.taps - 1) * m.tap_step);
      p.patterns[d] = max(p.patterns[d], min(m.out, 2 * m.taps + 1));
    }
  }
  for (int d = 0; d < 3; ++d) {
    p.before[d] = -low[d];
    p.padded[d] = high[d] + 1 - low[d];
  }
  const int64_t in_group = g.in_channels / g.groups;
  // Few pixels do not justify reading a weight that is twice as long.
  p.coded = g.samples * outputs > kPixels ? coded : 0;
  // Codes that belong to one tap and group are read directly.
  const bool gather = p.coded ? in_group % p.coded != 0 : g.folded || in_group % 64 != 0;
  p.gathered = !g.depthwise && gather && (g.folded || g.groups > 1);
  p.string_words = ceil_div(g.folded ? in_group * g.kernel[2] : in_group, 64);
  p.string_pixels = g.folded ? g.out_size[2] : p.padded[2];

  const int64_t bits = p.coded ? p.coded : 4;
  p.code_pixel =
      bits / 4 * (p.gathered ? g.groups * row_codes(g, bits) : ceil_div(g.in_channels, bits));
  p.code_line = ceil_div((p.gathered ? p.string_pixels : p.padded[2]) * p.code_pixel, 16) * 16 + 16;

  const int64_t round = g.depthwise ? 64 : 16, tile = p.coded ? 2 * kPixels : kPixels;
  // A group's last lanes may overlap the next group's, but not the next pixel.
  const int64_t over = p.coded && g.groups > 1 ? 15 : 0;
  p.count_stride = ceil_div(g.out_channels + over, round) * round;
  p.block = min(kMaxBlockPixels, max(tile, 8192 / p.count_stride / tile * tile));
  p.span = ceil_div(max(p.block, min(128, outputs / 16)), tile) * tile;

  plan_bypass(g, p);
  p.mean_rows = 0;
  for (int64_t i = 0; i < g.sources; ++i) {
    const int64_t up = g.source[6 * i + 1];
    p.mean_rows += g.samples * ceil_div(g.in_size[0], up) * ceil_div(g.in_size[1], up) *
                   row_segments(ceil_div(g.in_size[2], up));
  }
  p.segments = row_segments(g.in_size[2]);
  p.row_groups =
      floor_div(p.padded[1] - 1 - p.before[1], p.repeat) - floor_div(-p.before[1], p.repeat) + 1;
  p.deviation_rows = p.padded[0] * p.padded[1] * p.segments;
  p.sum_rows = p.phases * ceil_div(max(outputs, 1), p.span);

  int64_t used = 0;
  auto take = [&](int64_t bytes) {
    char* at = memory ? memory + used : nullptr;
    used += ceil_div(bytes, 64) * 64 + 64;
    return at;
  };
  const int64_t n = g.samples, c = g.in_channels, o = g.out_channels;
  const int64_t pixels = n * p.padded[0] * p.padded[1];
  p.stages = (Stage<Call>*)take((int64_t)sizeof(Stage<Call>) * (4 + p.phases));
  p.level = (float*)take(4 * n * c);
  p.mean_part = (double*)take(8 * p.mean_rows * c);
  p.scale = (float*)take(4 * (n + 3) * o);
  p.sum_part = (float*)take(want_means ? 4 * n * p.sum_rows * o : 0);
  p.deviation = (double*)take(8 * n * p.deviation_rows);
  p.flip = (uint64_t*)take(8 * g.sources * (p.words + 1));
  p.bits = (uint64_t*)take(8 * (pixels * p.padded[2] * p.words + 8));
  p.strings =
      (uint64_t*)take(p.gathered ? 8 * pixels * p.string_pixels * g.groups * p.string_words : 0);
  p.codes = (uint8_t*)take(p.coded ? pixels * p.code_line : 0);
  const int64_t chunks = p.coded ? taps * row_codes(g, bits) / (kChunkSteps / 2) * 2 + 2 : 0;
  p.chunks = (Chunk*)take((int64_t)sizeof(Chunk) * chunks);
  p.stretches = (Stretch*)take(p.coded ? (int64_t)sizeof(Stretch) * (taps + chunks) : 0);
  p.offsets = (int64_t*)take(p.coded ? 0 : 8 * steps * (g.depthwise ? 1 : p.string_words));
  p.depth_weight = (uint64_t*)take(g.depthwise ? 8 * steps * (p.words + 8) : 0);
  p.table = (int32_t*)take(4 * p.patterns[0] * p.patterns[1] * p.patterns[2] * o);
  p.pattern = (int32_t*)take(4 * (g.out_size[0] + g.out_size[1] + g.out_size[2]));
  const int64_t bypass = (p.bypass_stored ? c : 0) + p.bypass_rest * (p.bypass_apart ? 2 : 1);
  const int64_t residual = g.residuals > 1 ? o : 0;
  const int64_t sums = p.coded ? kMaxBlockLanes / 2 : 0;
  p.thread_floats = ceil_div(p.block * (p.count_stride + bypass + residual + sums) + c, 16) * 16;
  p.thread_memory = (float*)take(4 * threads * p.thread_floats);
  p.bytes = used;
}
