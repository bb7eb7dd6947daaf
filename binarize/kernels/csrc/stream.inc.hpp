// Video: a unit that keeps what its windows read and counted, and on the next frame recounts the
// windows whose bits changed in many places, corrects those that changed in few, and keeps the
// rest. Counts are integers, so that all three are equal to counting anew, bit for bit.

// Items that a window reads one after the other: an item is what a pixel has for one group.
struct Part {
  int64_t line, item, items;  // from the window's first item
  int64_t first;              // bytes of codes that the window reads before
};

// The caller's memory: what has been read (`held`), and its counts, in the order of the look-ups if
// they count. Per call, which items changed: `index` is their cumulative number per line.
struct Stream {
  BinarizeStream* of;
  int64_t lines, line_bytes, items, item_bytes, groups;
  int64_t item_bits, ignored;
  int64_t lanes;       // counts per output
  int64_t bytes_read;  // by a window, of a group
  int64_t line_entries;
  uint8_t* held;
  uint16_t* sums;
  int32_t *counts, *index;
  uint32_t* entries;  // changed nibbles of codes: position in the line << 8 | new << 4 | old
  Part* part;
  int64_t parts, first_output, bytes;
};

static inline int64_t ones_of(uint64_t v) {
  v = v - ((v >> 1) & 0x5555555555555555u);
  v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
  v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return (int64_t)((v * 0x0101010101010101u) >> 56);
}

static void add_to(int64_t& counter, int64_t amount) {
  __atomic_fetch_add(&counter, amount, __ATOMIC_RELAXED);
}

// Windows of a block by what is done with them.
struct Sorted {
  int64_t recounts, corrections;
  int64_t recount[kMaxBlockPixels], correct[kMaxBlockPixels];
  int64_t line[kMaxBlockPixels], item[kMaxBlockPixels];  // of those that are corrected
};

#if defined(BINARIZE_LOOKUP)

// Row old + 16 new, entry w: by how much the number of bits that differ from w grows.
struct ChangeTable {
  int8_t row[256][16];
};

static constexpr ChangeTable make_change_table() {
  ChangeTable t = {};
  const LookupTable single = make_lookup_table();
  for (int pair = 0; pair < 256; ++pair) {
    for (int w = 0; w < 16; ++w) {
      t.row[pair][w] = (int8_t)(single.row[pair / 16][w] - single.row[pair % 16][w]);
    }
  }
  return t;
}

alignas(64) static constexpr ChangeTable kChangeTable = make_change_table();
constexpr int64_t kHeldChanges = 31;    // whose sums a signed byte holds
constexpr int64_t kMostChanges = 1024;  // of a window that is corrected

// What a correction takes, in nibbles that are recounted in the same time: a window, and a change.
// Measured on AVX2 (benchmarks/stream.py --units); the fewer the lanes, the cheaper a recount.
struct Cost {
  int64_t window, change;
};

static Cost correction_cost(const BinarizeGeometry& g) {
  if (is_halved(g, kLookup)) return {200, 6};
  return g.out_channels / g.groups <= kLookup ? Cost{100, 4} : Cost{60, 2};
}

static bool pays(const BinarizeGeometry& g, int64_t changes, int64_t reads) {
  const Cost cost = correction_cost(g);
  return changes <= kMostChanges && cost.window * g.groups + cost.change * changes < reads;
}

static int64_t stream_lanes(const BinarizeGeometry& g) {
  return g.groups * lookup_lanes_of(g.out_channels / g.groups);
}

// Whether 16 bits hold all counts.
static bool counts_are_short(const BinarizeGeometry& g, const Plan& p) {
  for (int64_t i = 0; i < p.phases; ++i) {
    if (make_phase(g, i).steps * row_codes(g, p.coded) > kShortSteps / (p.coded / 4)) return false;
  }
  return true;
}

// The nibbles of 8 bytes of codes, a byte each.
static inline uint64_t nibbles_of(uint64_t codes, bool pairs) {
  if (!pairs) return codes >> 4 & 0x0f0f0f0f0f0f0f0fu;
  constexpr int shift = kLookup == 32 ? 5 : 6;
  static_assert(1 << shift == kLookup, "see spread_bytes");
  const uint64_t bytes = codes >> shift & 0x00ff00ff00ff00ffu;
  return (bytes | bytes << 4) & 0x0f0f0f0f0f0f0f0fu;
}

// Appends the changed nibbles of 8 bytes of codes at a position; returns how many bits changed.
static inline int64_t add_changes(uint64_t now, uint64_t before, bool pairs, int64_t position,
                                  uint32_t*& to) {
  const uint64_t a = nibbles_of(before, pairs), b = nibbles_of(now, pairs), changed = a ^ b;
  const uint64_t both = a | b << 4;
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    *to = (uint32_t)(position + k) << 8 | (uint32_t)(both >> 8 * k & 0xff);
    to += (changed >> 8 * k & 0xff) != 0;
  }
  return ones_of(changed);
}

typedef int8_t Changes __attribute__((vector_size(kLookup)));
typedef int16_t SignedShorts __attribute__((vector_size(kLookup)));

// Copies a window's changes, for one group; positions become those in the window.
static int64_t collect_changes(const Stream& s, int64_t line, int64_t item, uint32_t* to) {
  int64_t count = 0;
  for (const Part* part = s.part; part < s.part + s.parts; ++part) {
    const int64_t at = line + part->line, from = item + part->item;
    const int32_t* index = s.index + at * (s.items + 1) + from;
    const uint32_t* entry = s.entries + at * s.line_entries + index[0];
    const int64_t entries = index[part->items] - index[0];
    const uint32_t moved = (uint32_t)(part->first - from * s.item_bytes) << 8;
    // 8 at a time: a loop of few turns, whose number is easily predicted.
    for (int64_t k = 0; k < entries; k += 8) {
      typedef uint32_t Entries __attribute__((vector_size(32)));
      const Entries eight = load_as<Entries>(entry + k) + moved;
      __builtin_memcpy(to + count + k, &eight, sizeof(eight));
    }
    count += entries;
  }
  return count;
}

// Adds changes to a window's sums, for one group and `kWide` registers of lanes.
template <int kWide, bool kHalves>
static __attribute__((noinline)) void correct_window(const uint32_t* entry, int64_t count,
                                                     const uint8_t* weight, uint16_t* sums) {
  Bytes low = {}, high = {};
  for (int64_t k = 0; k < kLookup; ++k) (k < kLookup / 2 ? low : high)[k] = 0xff;
  constexpr int64_t bytes = kHalves ? kLookup / 2 : kWide * kLookup;
  while (count > 0) {
    Bytes sum[kWide];
    BINARIZE_UNROLL
    for (int v = 0; v < kWide; ++v) sum[v] = Bytes{};
    const uint32_t* end = entry + min(count, kHeldChanges);
    count -= end - entry;
    for (; entry < end; ++entry) {
      const int64_t position = *entry >> 8;
      Bytes row = table_row((const uint8_t*)kChangeTable.row[*entry & 0xff]);
      const uint8_t* w = weight + position * bytes;
      if (kHalves) {
        // A register has the weights of both nibbles of a code.
        row &= position % 2 ? high : low;
        w -= position % 2 * bytes;
      }
      BINARIZE_UNROLL
      for (int v = 0; v < kWide; ++v) sum[v] += look_up(row, load_as<Bytes>(w + v * kLookup));
    }
    BINARIZE_UNROLL
    for (int v = 0; v < kWide; ++v) {
      const SignedShorts pairs = load_as<SignedShorts>(&sum[v]);
      uint16_t* to = sums + v * kLookup;
      SignedShorts even = load_as<SignedShorts>(to) + ((pairs << 8) >> 8);
      SignedShorts odd = load_as<SignedShorts>(to + kLookup / 2) + (pairs >> 8);
      __builtin_memcpy(to, &even, sizeof(even));
      __builtin_memcpy(to + kLookup / 2, &odd, sizeof(odd));
    }
  }
}

// By look-ups: brings the sums of a block up to date, then widens them to counts.
static void count_changed_lookup(const Call& c, Stream& s, const Sorted& sorted, int64_t output,
                                 const uint8_t* const* pixel, int64_t pixels, int32_t* counts,
                                 uint16_t* scratch) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const int64_t out_group = g.out_channels / g.groups, code_group = p.code_pixel / g.groups;
  const bool halved = is_halved(g, kLookup);
  const int64_t looks = looks_per_code(g, p.coded);
  const uint8_t* weight = c.work->lookup;
  uint16_t* sums = s.sums + output * s.lanes;
  const uint8_t* moved[kMaxBlockPixels + kTilePixels];
  for (int64_t group = 0; group < g.groups; ++group) {
    for (int64_t i = 0; i < sorted.recounts + kTilePixels - 1 && sorted.recounts; ++i) {
      moved[i] = pixel[sorted.recount[min(i, sorted.recounts - 1)]] + group * code_group;
    }
    for (int64_t first = 0; first < out_group;) {
      const int64_t block = lookup_lanes(out_group - first);
      const Tile tile = choose_tile(block / kLookup, p.coded, halved);
      const auto correct = halved                 ? correct_window<1, true>
                           : block == kLookup     ? correct_window<1, false>
                           : block == 2 * kLookup ? correct_window<2, false>
                                                  : correct_window<3, false>;
      for (int64_t i = 0; i < sorted.corrections; ++i) {
        uint32_t entries[kMostChanges + 8];
        const int64_t count = collect_changes(s, sorted.line[i], sorted.item[i] + group, entries);
        correct(entries, count, weight, sums + sorted.correct[i] * s.lanes);
      }
      for (const Chunk* k = p.chunks; k < p.chunks + c.work->chunks && sorted.recounts; ++k) {
        for (int64_t i = 0; i < sorted.recounts; i += tile.pixels) {
          tile.count(moved + i, *k, weight, k == p.chunks, scratch + i * block);
        }
        weight += k->codes * looks * block;
      }
      if (!sorted.recounts) weight += s.bytes_read / (p.coded / 4) * looks * block;
      for (int64_t i = 0; i < sorted.recounts; ++i) {
        uint16_t* at = sums + sorted.recount[i] * s.lanes;
        const size_t size = sizeof(*at) * (size_t)block;
        if (c.work->chunks) {
          __builtin_memcpy(at, scratch + i * block, size);
        } else {
          __builtin_memset(at, 0, size);
        }
      }
      widen_block(sums, s.lanes, pixels, min(block, out_group - first), halved, false,
                  counts + group * out_group + first, p.count_stride);
      sums += block;
      first += block;
    }
  }
}

#else

static bool pays(const BinarizeGeometry&, int64_t, int64_t) { return false; }
static int64_t stream_lanes(const BinarizeGeometry&) { return 0; }
static bool counts_are_short(const BinarizeGeometry&, const Plan&) { return false; }
static inline int64_t add_changes(uint64_t, uint64_t, bool, int64_t, uint32_t*&) { return 0; }
static void count_changed_lookup(const Call&, Stream&, const Sorted&, int64_t,
                                 const uint8_t* const*, int64_t, int32_t*, uint16_t*) {}

#endif

// Fills in the sizes and, unless `memory` is null, the addresses; false if a unit cannot be
// streamed.
static bool plan_stream(const BinarizeGeometry& g, const Plan& p, char* memory, Stream& s) {
  if (p.coded && !counts_are_short(g, p)) return false;
  const int64_t pixels = p.gathered ? p.string_pixels : p.padded[2];
  s.groups = p.coded ? g.groups : 1;
  s.lines = g.samples * p.padded[0] * p.padded[1];
  s.items = pixels * s.groups;
  s.item_bytes =
      p.coded ? p.code_pixel / g.groups : 8 * (p.gathered ? g.groups * p.string_words : p.words);
  s.line_bytes = p.coded ? p.code_line : s.items * s.item_bytes;
  s.item_bits = g.in_channels / s.groups * (p.gathered && g.folded ? g.kernel[2] : 1);
  s.lanes = p.coded ? stream_lanes(g) : g.out_channels;
  // Positions have 24 bits; a word of codes may begin at the last byte.
  s.line_entries = p.coded ? s.items * s.item_bytes + 8 : 0;
  if (s.line_entries >= 1 << 24) return false;
  int64_t used = 0, taps = 0;
  for (int64_t i = 0; i < p.phases; ++i) taps = max(taps, make_phase(g, i).taps);
  auto take = [&](int64_t bytes) {
    char* at = memory ? memory + used : nullptr;
    used += ceil_div(bytes, 64) * 64 + 64;
    return at;
  };
  const int64_t outputs = g.samples * g.out_size[0] * g.out_size[1] * g.out_size[2] * s.lanes;
  s.held = (uint8_t*)take(s.lines * s.line_bytes);
  s.sums = (uint16_t*)take(p.coded ? 2 * outputs : 0);
  s.counts = (int32_t*)take(p.coded ? 0 : 4 * outputs);
  s.index = (int32_t*)take(4 * s.lines * (s.items + 1));
  s.entries = (uint32_t*)take(4 * s.lines * s.line_entries);  // reads may go 32 bytes beyond
  s.part = (Part*)take((int64_t)sizeof(Part) * taps);
  s.bytes = used;
  return true;
}

// Compares a line of what windows read with the previous frame's, and holds what is new.
static void compare_item(Call& c, int64_t line, int64_t) {
  Stream& s = *c.stream;
  const Plan& p = c.plan;
  const uint8_t* now = (p.coded      ? p.codes
                        : p.gathered ? (const uint8_t*)p.strings
                                     : (const uint8_t*)p.bits) +
                       line * s.line_bytes;
  uint8_t* held = s.held + line * s.line_bytes;
  int32_t* index = s.index + line * (s.items + 1);
  if (!s.of->valid) {
    __builtin_memcpy(held, now, (size_t)s.line_bytes);
    return;
  }
  const int64_t bytes = s.item_bytes, limit = s.ignored;
  uint32_t *const entries = s.entries + line * s.line_entries, *entry = entries;
  int32_t words = 0;
  int64_t changed = 0;
  for (int64_t item = 0, at = 0; item < s.items; ++item, at += bytes) {
    index[item] = p.coded ? (int32_t)(entry - entries) : words;
    uint32_t* const begin = entry;
    int64_t bits = 0, count = 0;
    for (int64_t k = 0; k < bytes; k += 8) {
      uint64_t a = 0, b = 0;
      if (k + 8 <= bytes) {
        a = load_as<uint64_t>(now + at + k), b = load_as<uint64_t>(held + at + k);
      } else {
        __builtin_memcpy(&a, now + at + k, (size_t)(bytes - k));
        __builtin_memcpy(&b, held + at + k, (size_t)(bytes - k));
      }
      if (a == b) continue;
      ++count;
      bits += p.coded ? add_changes(a, b, p.coded == 8, at + k, entry) : ones_of(a ^ b);
    }
    changed += bits;
    if (bits <= limit) {
      entry = begin;
    } else {
      words += (int32_t)count;
      __builtin_memcpy(held + at, now + at, (size_t)bytes);
    }
  }
  index[s.items] = p.coded ? (int32_t)(entry - entries) : words;
  add_to(s.of->bits, s.items * s.item_bits);
  add_to(s.of->changed_bits, changed);
}

// Where a phase's windows read.
static void make_parts(const Call& c) {
  Stream& s = *c.stream;
  const Plan& p = c.plan;
  const Phase& f = c.work->phase;
  const bool rows = p.gathered && c.g->folded;
  const int64_t taps2 = rows ? 1 : f.dim[2].taps, steps = f.dim[0].taps * f.dim[1].taps * taps2;
  s.parts = 0;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t x = step % taps2, y = step / taps2 % f.dim[1].taps,
                  z = step / (taps2 * f.dim[1].taps);
    const int64_t line = z * f.dim[0].tap_step * p.padded[1] + y * f.dim[1].tap_step;
    const int64_t item = x * f.dim[2].tap_step * s.groups;
    Part* last = s.part + s.parts - 1;
    if (s.groups == 1 && s.parts && last->line == line && last->item + last->items == item) {
      ++last->items;
    } else {
      s.part[s.parts++] = {line, item, 1, step * s.item_bytes};
    }
  }
  s.bytes_read = steps * s.item_bytes;
}

// Brings the counts of a block up to date and copies them to the thread's memory.
static void count_changed(const Call& c, int64_t output, const uint8_t* const* pixel,
                          int64_t pixels, int32_t* counts, uint16_t* sums) {
  Stream& s = *c.stream;
  const Plan& p = c.plan;
  const Work& w = *c.work;
  const int64_t pixel_bytes = s.item_bytes * s.groups;
  // Of all groups, in bytes of codes (a nibble each) or in words.
  const int64_t reads = p.coded ? s.bytes_read * s.groups : s.bytes_read / 8;
  Sorted sorted;
  sorted.recounts = sorted.corrections = 0;
  const int64_t step_items = (p.gathered && c.g->folded ? 1 : w.phase.dim[2].step) * s.groups;
  const int64_t step = step_items * s.item_bytes;
  int64_t work = 0, at = -step - 1, line = 0, item = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    int64_t changes = 0;
    if (s.of->valid) {
      const int64_t offset = pixel[i] - w.base;
      if (offset - at == step && item + step_items < s.items) {
        item += step_items;
      } else {
        line = offset / s.line_bytes;
        item = offset % s.line_bytes / pixel_bytes * s.groups;
      }
      at = offset;
      for (const Part* part = s.part; part < s.part + s.parts; ++part) {
        const int32_t* index = s.index + (line + part->line) * (s.items + 1) + item + part->item;
        // Groups lie next to each other; with several, a part is one item.
        changes += index[s.groups == 1 ? part->items : s.groups] - index[0];
      }
      if (!changes) continue;
    }
    if (s.of->valid && p.coded && pays(*c.g, changes, reads)) {
      sorted.line[sorted.corrections] = line, sorted.item[sorted.corrections] = item;
      sorted.correct[sorted.corrections++] = i;
      work += changes;
    } else {
      sorted.recount[sorted.recounts++] = i;
      work += reads;
    }
  }
  add_to(s.of->windows, pixels);
  add_to(s.of->corrected, sorted.corrections);
  add_to(s.of->recounted, sorted.recounts);
  add_to(s.of->work, pixels * reads);
  add_to(s.of->work_done, work);
  if (p.coded) {
    count_changed_lookup(c, s, sorted, output, pixel, pixels, counts, sums);
    return;
  }
  const int64_t channels = c.g->out_channels;
  const size_t size = sizeof(int32_t) * (size_t)channels;
  int32_t* kept = s.counts + output * channels;
  if (sorted.recounts) {
    const uint8_t* moved[kMaxBlockPixels];
    const int64_t rounded = ceil_div(sorted.recounts, kPixels) * kPixels;
    for (int64_t i = 0; i < rounded; ++i) {
      moved[i] = pixel[sorted.recount[min(i, sorted.recounts - 1)]];
    }
    if (c.g->depthwise) {
      count_depthwise(c, moved, sorted.recounts, counts);
    } else {
      count_dense(c, moved, rounded, counts);
    }
    for (int64_t i = 0; i < sorted.recounts; ++i) {
      __builtin_memcpy(kept + sorted.recount[i] * channels, counts + i * p.count_stride, size);
    }
  }
  if (sorted.recounts == pixels) return;
  for (int64_t i = 0; i < pixels; ++i) {
    __builtin_memcpy(counts + i * p.count_stride, kept + i * channels, size);
  }
}
