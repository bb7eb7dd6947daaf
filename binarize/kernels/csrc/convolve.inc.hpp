// From bits to the result: counting and the epilogue, block by block, and the stages of a unit.

// Sums of all residuals for `count` outputs of a row, starting at output `at`.
static void join_residuals(const Call& c, int64_t n, const int64_t at[3], int64_t every,
                           int64_t count, float* scratch) {
  const BinarizeGeometry& g = *c.g;
  const int64_t channels = g.out_channels;
  for (int64_t i = 0; i < count; ++i, scratch += channels) {
    const float* have = nullptr;
    for (int64_t r = 0; r < g.residuals; ++r) {
      const int64_t* s = g.residual + 4 * r;
      const float* from =
          c.residual(r) + n * s[0] + at[0] * s[1] + at[1] * s[2] + (at[2] + i * every) * s[3];
      if (have) {
        for (int64_t o = 0; o < channels; ++o) scratch[o] = have[o] + from[o];
      }
      have = have ? scratch : from;
    }
  }
}

// A thread's memory for one block.
struct ThreadScratch {
  int32_t* counts;
  BypassScratch bypass;
  float* residual;
  uint16_t* sums;  // of table look-ups

  ThreadScratch(const Call& c, int64_t slot) {
    const Plan& p = c.plan;
    float* at = p.thread_memory + slot * p.thread_floats;
    counts = (int32_t*)at;
    at += p.block * p.count_stride;
    bypass.pixels = at;
    at += p.bypass_stored ? p.block * c.g->in_channels : 0;
    bypass.rest = at;
    at += p.block * p.bypass_rest;
    bypass.means = at;
    at += p.bypass_apart ? p.block * p.bypass_rest : 0;
    bypass.map = at;
    at += c.g->in_channels;
    residual = at;
    at += c.g->residuals > 1 ? p.block * c.g->out_channels : 0;
    sums = (uint16_t*)at;
  }
};

// Values that all blocks of one sample share.
static void begin_block(const Call& c, int64_t n, const ThreadScratch& scratch, Block& b) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const Work& w = *c.work;
  const int64_t every = w.phase.dim[2].every;
  b.channels = g.out_channels;
  b.count_stride = p.count_stride;
  b.counts = scratch.counts;
  b.scale = p.scale + n * g.out_channels;
  b.offset = c.floats(BINARIZE_OFFSET);
  b.shift = w.act[0], b.slope = w.act[1], b.out_shift = w.act[2];
  b.coding = c.floats(BINARIZE_CODING);
  b.element = b.coding ? 1 : sizeof(float);
  b.y_step = every * g.out_channels * b.element;
  b.residual_step = g.residuals == 1 ? every * g.residual[3] : g.out_channels;
  b.copies = p.bypass_copies;
  b.segments = p.bypass_straight ? g.sources : 1;
  for (int64_t i = 0; i < b.segments; ++i) {
    b.segment[i] = {g.in_channels, g.in_channels};
    if (p.bypass_straight) b.segment[i] = {g.source[6 * i], g.source[6 * i + 5]};
  }
  b.segment[kSegments] = {g.out_channels - b.copies * g.in_channels, p.bypass_rest};
}

// Pixels of a block and where they read and write, one stretch of a row after the other.
static __attribute__((noinline)) void place_block(const Call& c, int64_t n, int64_t first,
                                                  const ThreadScratch& scratch, Block& b,
                                                  const uint8_t** pixel) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const Work& w = *c.work;
  const Phase& f = w.phase;
  const Dim& fx = f.dim[2];
  // Strings are per output of a row: their taps start at 0.
  const bool rows = g.folded && p.gathered;
  const int64_t start = rows ? 0 : fx.start + p.before[2];
  const int64_t step = (rows ? 1 : fx.step) * w.line[2];
  int64_t x = first % fx.out, row = first / fx.out, at[3], out[3];
  b.runs = 0;
  for (int64_t i = 0; i < b.pixels; x = 0, ++row) {
    at[0] = row / f.dim[1].out, at[1] = row % f.dim[1].out;
    int64_t bits = n * w.sample + start * w.line[2] + x * step;
    for (int d = 0; d < 2; ++d) {
      const Dim& m = f.dim[d];
      bits += (m.start + p.before[d] + at[d] * m.step) * w.line[d];
      out[d] = m.first + at[d] * m.every;
    }
    out[2] = fx.first + x * fx.every;
    const int64_t count = min(fx.out - x, b.pixels - i);
    for (int64_t k = 0; k < count; ++k) pixel[i + k] = w.base + (bits + k * step) * w.element;
    Run run = {};
    run.y = (uint8_t*)c.tensors[BINARIZE_RESULT] +
            (((n * g.out_size[0] + out[0]) * g.out_size[1] + out[1]) * g.out_size[2] + out[2]) *
                b.channels * b.element;
    if (g.residuals == 1) {
      const int64_t* s = g.residual;
      run.residual = c.residual(0) + n * s[0] + out[0] * s[1] + out[1] * s[2] + out[2] * s[3];
    } else if (g.residuals > 1) {
      run.residual = scratch.residual + i * b.channels;
      join_residuals(c, n, out, fx.every, count, scratch.residual + i * b.channels);
    }
    if (g.bypass != BINARIZE_NONE) {
      run.bypass[0] = scratch.bypass.pixels + i * g.in_channels;
      run.bypass[kSegments] = scratch.bypass.rest + i * p.bypass_rest;
      for (int64_t k = 0; p.bypass_straight && k < g.sources; ++k) {
        run.bypass[k] =
            Source(c, k).at(n, clamped(g, 0, bypass_start(g, 0, out[0])),
                            clamped(g, 1, bypass_start(g, 1, out[1])), bypass_start(g, 2, out[2]));
      }
      if (p.bypass_stored || p.bypass_rest) {
        stage_bypass(c, n, out, fx.every, i, count, scratch.bypass);
      }
    }
    const int32_t* numbers = w.numbers[2] + x;
    const int64_t line =
        (w.numbers[0][at[0]] * w.patterns[1] + w.numbers[1][at[1]]) * w.patterns[2];
    for (int64_t k = 0; k < count; k += run.pixels) {
      // Numbers only increase along a row.
      run.pixels = numbers[count - 1] == numbers[k] ? count - k : 1;
      while (k + run.pixels < count && numbers[k + run.pixels] == numbers[k]) ++run.pixels;
      run.table = p.table + (line + numbers[k]) * b.channels;
      b.run[b.runs++] = run;
      run.y += run.pixels * b.y_step;
      run.residual += g.residuals ? run.pixels * b.residual_step : 0;
      for (int64_t s = 0; s <= kSegments; ++s) {
        if (run.bypass[s]) run.bypass[s] += run.pixels * b.segment[s].step;
      }
    }
    i += count;
    x += count;
  }
}

static void convolve_item(Call& c, int64_t item, int64_t slot) {
  const Work& w = *c.work;
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const int64_t n = item / w.items, part = item % w.items, channels = g.out_channels;
  const int64_t end = min(w.phase.outputs, (part + 1) * p.span);
  const ThreadScratch scratch(c, slot);
  Block b;
  begin_block(c, n, scratch, b);
  const int64_t tile = p.coded ? 2 * kPixels : kPixels;
  b.sums = nullptr;
  if (c.tensors[BINARIZE_RESULT_MEANS]) {
    b.sums = p.sum_part + (n * p.sum_rows + w.sum_row + part) * channels;
    for (int64_t o = 0; o < channels; ++o) b.sums[o] = 0;
  }
  const uint8_t* pixel[kMaxBlockPixels];
  for (int64_t first = part * p.span; first < end; first += p.block) {
    b.pixels = min(p.block, end - first);
    place_block(c, n, first, scratch, b, pixel);
    const int64_t rounded = ceil_div(b.pixels, tile) * tile;
    for (int64_t i = b.pixels; i < rounded; ++i) pixel[i] = pixel[b.pixels - 1];
    if (c.stream) {
      const int64_t output = c.stream->first_output + n * w.phase.outputs + first;
      count_changed(c, output, pixel, b.pixels, scratch.counts, scratch.sums);
    } else if (p.coded) {
      count_lookup(c, pixel, b.pixels, scratch.counts, scratch.sums);
    } else if (g.depthwise) {
      count_depthwise(c, pixel, b.pixels, scratch.counts);
    } else {
      count_dense(c, pixel, rounded, scratch.counts);
    }
    w.finish(b);
  }
}

static void skip_phase(Call& c) {
  Work& w = *c.work;
  w.words += w.phase.words;
  w.tap_sums += w.phase.sums;
  if (c.plan.coded) w.lookup += lookup_phase_bytes(*c.g, w.phase);
  ++w.index;
}

// Prepares the next phase that has outputs.
static void begin_phase(Call& c) {
  Work& w = *c.work;
  for (;;) {
    w.phase = make_phase(*c.g, w.index);
    if (w.phase.outputs > 0) break;
    skip_phase(c);
  }
  make_table(c);
  if (c.plan.coded) {
    make_chunks(c);
  } else {
    make_offsets(c);
  }
  if (c.g->depthwise) repeat_weight(c);
  if (c.stream) make_parts(c);
  w.items = ceil_div(w.phase.outputs, c.plan.span);
}

static void next_phase(Call& c) {
  Work& w = *c.work;
  w.sum_row += w.items;
  if (c.stream) c.stream->first_output += c.g->samples * w.phase.outputs;
  skip_phase(c);
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

// The inputs of the epilogue, and where bits are read.
static void begin_work(const Call& c, Work& w) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const void* const* tensors = c.tensors;
  const bool active =
      tensors[BINARIZE_ACT_SHIFT] || tensors[BINARIZE_ACT_SLOPE] || tensors[BINARIZE_ACT_OUT_SHIFT];
  // An activation without some part uses the neutral value in this memory.
  float* neutral = p.scale + g.samples * g.out_channels;
  for (int i = 0; i < 3; ++i) {
    w.act[i] = c.floats(BINARIZE_ACT_SHIFT + i);
    if (w.act[i]) continue;
    for (int64_t o = 0; o < g.out_channels; ++o) neutral[o] = i == 1 ? 1.0f : 0.0f;
    w.act[i] = neutral;
    neutral += g.out_channels;
  }
  w.finish = choose_finish(g.bypass != BINARIZE_NONE, g.residuals > 0, active,
                           tensors[BINARIZE_CODING] != nullptr);
  w.base = c.stream  ? c.stream->held
           : p.coded ? p.codes
                     : (const uint8_t*)(p.gathered ? p.strings : p.bits);
  w.element = p.coded ? 1 : 8;
  w.line[2] = p.coded ? p.code_pixel : p.gathered ? g.groups * p.string_words : p.words;
  w.line[1] = p.coded ? p.code_line : w.line[2] * (p.gathered ? p.string_pixels : p.padded[2]);
  w.line[0] = w.line[1] * p.padded[1];
  w.sample = w.line[0] * p.padded[0];

  w.words = (const uint64_t*)tensors[BINARIZE_WEIGHT];
  int64_t all_words = 0;
  for (int64_t i = 0; i < p.phases; ++i) all_words += make_phase(g, i).words;
  w.tap_sums = (const int32_t*)(w.words + all_words);
  w.lookup = (const uint8_t*)w.words + (p.coded ? ceil_div(portable_bytes(g), 64) * 64 : 0);
  w.index = w.sum_row = 0;
}

// How the weight is counted: bits of a code for look-ups, 0 for words.
static int64_t counted_bits(const BinarizeGeometry& g) {
  return g.prepared == 1 + kSet ? code_bits(g, kLookup) : 0;
}

static int64_t stream_bytes(const BinarizeGeometry& g) {
  Plan plan;
  Stream stream;
  make_plan(g, counted_bits(g), false, 1, nullptr, plan);
  return plan_stream(g, plan, nullptr, stream) ? stream.bytes : 0;
}

// Runs the unit; with the state of a stream, unless that is null.
static int32_t run_unit(const BinarizeGeometry& g, const void* const* tensors, int64_t threads,
                        BinarizeRunner runner, BinarizeStream* state) {
  Call c;
  Work w;
  Stream stream;
  c.g = &g;
  c.tensors = tensors;
  c.work = &w;
  make_plan(g, counted_bits(g), tensors[BINARIZE_RESULT_MEANS] != nullptr, threads,
            (char*)tensors[BINARIZE_SCRATCH], c.plan);
  c.stream = nullptr;
  if (state) {
    if (!plan_stream(g, c.plan, (char*)state->memory, stream)) return BINARIZE_BAD_GEOMETRY;
    stream.of = state;
    stream.ignored = (int64_t)(state->tolerance * (double)stream.item_bits);
    stream.first_output = 0;
    c.stream = &stream;
  }
  begin_work(c, w);

  int64_t count = 0;
  auto add = [&](void (*item)(Call&, int64_t, int64_t), int64_t items, void (*after)(Call&)) {
    c.plan.stages[count++] = {item, after, items, 0, 0, 0};
  };
  if (takes_means(c)) {
    add(mean_item, c.plan.mean_rows, make_thresholds);
  } else {
    make_thresholds(c);
  }
  const int64_t planes = g.samples * c.plan.padded[0];
  const bool strings_apart = (c.plan.gathered || c.plan.coded) && c.plan.segments > 1;
  auto last = [&](bool is_last) { return is_last ? begin_counting : nullptr; };
  add(pack_item, planes * c.plan.row_groups * c.plan.segments, last(!strings_apart && !state));
  if (strings_apart) add(regroup_item, planes * c.plan.padded[1], last(!state));
  if (state) add(compare_item, stream.lines, begin_counting);
  for (int64_t i = 0; i < c.plan.phases; ++i) {
    const int64_t outputs = make_phase(g, i).outputs;
    if (outputs > 0) add(convolve_item, g.samples * ceil_div(outputs, c.plan.span), next_phase);
  }
  c.plan.stages[count - 1].after = make_result_means;
  run_stages(c, c.plan.stages, count, threads, runner);
  if (state) state->valid = 1;
  return BINARIZE_OK;
}
