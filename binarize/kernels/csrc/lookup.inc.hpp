// Counting by table look-up: the lanes of a register are output channels, an index is the 4 weight
// bits that each of them has for 4 input channels, and the table belongs to the pixel's 4 channels.
// README.md has the mathematics, the order of the lanes and the limits.

static int64_t portable_bytes(const BinarizeGeometry& g) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < phase_count(g); ++i) {
    const Phase f = make_phase(g, i);
    bytes += 8 * f.words + 4 * f.sums;
  }
  return bytes;
}

#if defined(BINARIZE_LOOKUP)

constexpr int64_t kLookup = BINARIZE_LOOKUP;

// Row x, entry w of a table: how many of 4 bits differ. A code is the offset of a pixel's row.
// 2-bit activations would use another table of 256 rows, with 16-bit codes.
struct LookupTable {
  uint8_t row[16][16];
};

static constexpr LookupTable make_lookup_table() {
  LookupTable t = {};
  for (int x = 0; x < 16; ++x) {
    for (int w = 0; w < 16; ++w) {
      const int d = x ^ w;
      t.row[x][w] = (uint8_t)((d & 1) + (d >> 1 & 1) + (d >> 2 & 1) + (d >> 3 & 1));
    }
  }
  return t;
}

// Row x + 16 y: rows x and y of the table, each half a register long.
struct PairTable {
  uint8_t row[256][kLookup];
};

static constexpr PairTable make_pair_table() {
  PairTable t = {};
  const LookupTable single = make_lookup_table();
  for (int x = 0; x < 256; ++x) {
    for (int i = 0; i < kLookup; ++i) {
      t.row[x][i] = single.row[i < kLookup / 2 ? x % 16 : x / 16][i % 16];
    }
  }
  return t;
}

alignas(64) static constexpr LookupTable kTable = make_lookup_table();
alignas(64) static constexpr PairTable kPairTable = make_pair_table();
constexpr int64_t kTableMax = 4;                    // largest entry
constexpr int64_t kShortSteps = 65535 / kTableMax;  // steps that fit in 16 bits
constexpr int64_t kTilePixels = 8;                  // maximum pixels of a tile
static_assert(kChunkSteps * kTableMax <= 255 && kChunkSteps % 2 == 0, "sums in bytes");
static_assert(2 * kLookup <= kMaxBlockLanes, "sums of a block");

// Lanes of the next block of outputs, of which `rest` are left.
static inline int64_t lookup_lanes(int64_t rest) {
  if (rest <= kLookup) return kLookup;
  const bool three = rest > 2 * kLookup && rest <= 3 * kLookup && 3 * kLookup <= kMaxBlockLanes;
  return three ? 3 * kLookup : 2 * kLookup;
}

static int64_t lookup_lanes_of(int64_t outputs) {
  int64_t lanes = 0;
  for (int64_t at = 0; at < outputs;) {
    const int64_t block = lookup_lanes(outputs - at);
    lanes += block, at += block;
  }
  return lanes;
}

// Byte of a register, or of half a register, that belongs to a lane: bytes widened to 16 and 32
// bits by masks and shifts alone must come out in the order of the channels.
static int64_t lookup_place(int64_t lane, int64_t width) {
  const int64_t quarter = width / 4;
  return lane % quarter * 4 + lane / quarter;
}

// Look-ups per code for one register of lanes.
static int64_t looks_per_code(const BinarizeGeometry& g, int64_t bits) {
  return is_halved(g, kLookup) ? 1 : bits / 4;
}

// Bytes of all outputs' weights for one phase.
static int64_t lookup_phase_bytes(const BinarizeGeometry& g, const Phase& f) {
  const int64_t bits = code_bits(g, kLookup), looks = looks_per_code(g, bits);
  return g.groups * lookup_lanes_of(g.out_channels / g.groups) * f.steps * row_codes(g, bits) *
         looks;
}

// A prepared weight: the portable one, followed by the same bits in the order of the look-ups.
static int64_t prepared_bytes(const BinarizeGeometry& g) {
  if (!code_bits(g, kLookup)) return 0;
  int64_t bytes = ceil_div(portable_bytes(g), 64) * 64 + 64;
  for (int64_t i = 0; i < phase_count(g); ++i) bytes += lookup_phase_bytes(g, make_phase(g, i));
  return bytes;
}

static void prepare_weight(const BinarizeGeometry& g, const uint64_t* words, uint8_t* out) {
  const int64_t portable = portable_bytes(g), total = prepared_bytes(g);
  __builtin_memcpy(out, words, (size_t)portable);
  __builtin_memset(out + portable, 0, (size_t)(total - portable));
  uint8_t* to = out + ceil_div(portable, 64) * 64;
  const int64_t out_group = g.out_channels / g.groups, blocks = ceil_div(out_group, 8);
  const int64_t bits = code_bits(g, kLookup), looks = looks_per_code(g, bits);
  const int64_t nibbles = bits / 4, width = is_halved(g, kLookup) ? kLookup / 2 : kLookup;
  const int64_t codes = row_codes(g, bits), string_words = ceil_div(codes * bits, 64);
  for (int64_t i = 0; i < phase_count(g); ++i) {
    const Phase f = make_phase(g, i);
    const int64_t reads = f.steps * string_words;
    for (int64_t group = 0; group < g.groups; ++group) {
      const uint64_t* of_group = words + group * blocks * reads * 8;
      for (int64_t first = 0; first < out_group;) {
        const int64_t lanes = lookup_lanes(out_group - first);
        const int64_t step = is_halved(g, kLookup) ? width : lanes;
        for (int64_t l = 0; l < min(lanes, out_group - first); ++l) {
          const int64_t o = first + l;
          const int64_t place = l / width * width + lookup_place(l % width, width);
          const uint64_t* from = of_group + o / 8 * reads * 8 + o % 8;
          for (int64_t s = 0; s < f.steps; ++s) {
            for (int64_t k = 0; k < codes * nibbles; ++k) {
              const uint64_t word = from[(s * string_words + k / 16) * 8];
              to[(s * codes * nibbles + k) * step + place] = (uint8_t)(word >> (k % 16 * 4) & 15);
            }
          }
        }
        to += lanes * f.steps * codes * looks;
        first += lanes;
      }
    }
    words += f.words;
  }
}

// Expands 4 bits each, 32 in all, to a byte each, as offsets into a table of rows of 16 bytes.
static inline uint64_t spread_nibbles(uint64_t x) {
  x = (x | x << 16) & 0x0000ffff0000ffffu;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  return (x << 4 | x << 8) & 0xf0f0f0f0f0f0f0f0u;
}

// Expands 8 bits each, 32 in all, to 16 bits each, as offsets into rows of kLookup bytes.
static inline uint64_t spread_bytes(uint64_t x) {
  x = (x | x << 16) & 0x0000ffff0000ffffu;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  return x * kLookup;
}

// 32 bits become 8 bytes of codes.
template <bool kPairs>
static inline uint64_t spread(uint64_t x) {
  return kPairs ? spread_bytes(x & 0xffffffffu) : spread_nibbles(x & 0xffffffffu);
}

// Codes of `items` strings of `words` words; each has `bytes` of them.
template <bool kPairs>
static void spread_row(const uint64_t* from, int64_t items, int64_t words, int64_t bytes,
                       uint8_t* to) {
  if (bytes == 16 * words) {
    for (int64_t i = 0; i < items * words; ++i) {
      const uint64_t both[2] = {spread<kPairs>(from[i]), spread<kPairs>(from[i] >> 32)};
      __builtin_memcpy(to + 16 * i, both, sizeof(both));
    }
  } else if (bytes == 8 && words == 1) {
    for (int64_t i = 0; i < items; ++i) {
      const uint64_t eight = spread<kPairs>(from[i]);
      __builtin_memcpy(to + 8 * i, &eight, sizeof(eight));
    }
  } else if (bytes <= 4) {
    for (int64_t i = 0; i < items; ++i) {
      const uint32_t four = (uint32_t)spread<kPairs>(from[i * words]);
      __builtin_memcpy(to + bytes * i, &four, sizeof(four));
    }
  } else {
    // Bytes beyond an item's codes are overwritten by the next; the row ends in a gap.
    for (int64_t i = 0; i < items; ++i, from += words, to += bytes) {
      for (int64_t k = 0; k < bytes; k += 8) {
        const uint64_t eight = spread<kPairs>(from[k / 16] >> (k % 16 * 4));
        __builtin_memcpy(to + k, &eight, sizeof(eight));
      }
    }
  }
}

// Codes of one row of bits or strings.
static void code_row(const Call& c, int64_t line) {
  const Plan& p = c.plan;
  const int64_t pixels = p.gathered ? p.string_pixels : p.padded[2];
  const int64_t groups = p.gathered ? c.g->groups : 1, items = pixels * groups;
  const int64_t words = p.gathered ? p.string_words : p.words;
  const uint64_t* from = (p.gathered ? p.strings : p.bits) + line * items * words;
  uint8_t* to = p.codes + line * p.code_line;
  if (p.coded == 8) {
    spread_row<true>(from, items, words, p.code_pixel / groups, to);
  } else {
    spread_row<false>(from, items, words, p.code_pixel / groups, to);
  }
}

// Where a window's codes are, in stretches that are read sequentially, divided into chunks after
// each of which the bytes are widened.
static void make_chunks(const Call& c) {
  const Work& w = *c.work;
  const Phase& f = w.phase;
  const Plan& p = c.plan;
  const BinarizeGeometry& g = *c.g;
  const bool rows = p.gathered && g.folded;
  const int64_t taps2 = rows ? 1 : f.dim[2].taps, steps = f.dim[0].taps * f.dim[1].taps * taps2;
  const int64_t size = p.coded / 4, codes = p.code_pixel / size / g.groups;
  const int64_t total = steps * codes, held = kChunkSteps / looks_per_code(g, p.coded);
  const int64_t chunks = max(1, ceil_div(total, held));
  const int64_t most = min(held, ceil_div(ceil_div(total, chunks), 2) * 2);
  Stretch* to = p.stretches;
  Chunk* chunk = p.chunks;
  *chunk = {to, to, 0};
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t x = step % taps2, y = step / taps2 % f.dim[1].taps,
                  z = step / (taps2 * f.dim[1].taps);
    int64_t at = z * f.dim[0].tap_step * w.line[0] + y * f.dim[1].tap_step * w.line[1] +
                 x * f.dim[2].tap_step * w.line[2];
    for (int64_t left = codes; left > 0;) {
      if (chunk->codes == most) {
        ++chunk;
        *chunk = {to, to, 0};
      }
      const int64_t count = min(left, most - chunk->codes);
      if (chunk->end > chunk->first && to[-1].offset + size * to[-1].count == at) {
        to[-1].count += count;
      } else {
        *to++ = {at, count};
      }
      chunk->end = to;
      chunk->codes += count;
      at += size * count, left -= count;
    }
  }
  c.work->chunks = total > 0 ? chunk + 1 - p.chunks : 0;
}

#define BINARIZE_UNROLL _Pragma("GCC unroll 8")

// GCC would add several steps in another order, for which there are too few registers.
#if defined(BINARIZE_EMULATED)
#define BINARIZE_IN_REGISTER(v)
#else
#define BINARIZE_IN_REGISTER(v) __asm__("" : "+v"(v))
#endif

typedef uint16_t Shorts __attribute__((vector_size(kLookup)));

// How a code is looked up: 4 bits in all lanes; 4 of its 8 bits in each half of a register; 8 bits
// with two look-ups in all lanes.
enum class Look { kNibble, kHalves, kPair };

// Sums of one chunk, kTile pixels and kWide registers of lanes.
template <int kTile, int kWide, Look kLook>
static __attribute__((noinline)) void look_up_tile(const uint8_t* const* pixel, const Chunk& chunk,
                                                   const uint8_t* weight, bool first,
                                                   uint16_t* sums) {
  typedef std::conditional_t<kLook == Look::kNibble, uint8_t, uint16_t> Code;
  const uint8_t* table = kLook == Look::kNibble ? &kTable.row[0][0] : &kPairTable.row[0][0];
  Bytes sum[kTile][kWide];
  BINARIZE_UNROLL
  for (int i = 0; i < kTile; ++i) {
    BINARIZE_UNROLL
    for (int v = 0; v < kWide; ++v) sum[i][v] = Bytes{};
  }
  constexpr int64_t bytes = kWide * kLookup;
  const Code* at[kTile];
  for (const Stretch* s = chunk.first; s < chunk.end; ++s) {
    BINARIZE_UNROLL
    for (int i = 0; i < kTile; ++i) at[i] = (const Code*)(pixel[i] + s->offset);
    const int64_t count = s->count;
    auto step = [&](int64_t k, int64_t inside, const uint8_t* from) __attribute__((always_inline)) {
      Bytes w[kWide];
      BINARIZE_UNROLL
      for (int v = 0; v < kWide; ++v) {
        w[v] = load_as<Bytes>(from + v * kLookup);
        BINARIZE_IN_REGISTER(w[v]);
      }
      BINARIZE_UNROLL
      for (int i = 0; i < kTile; ++i) {
        const uint8_t* entry = table + at[i][k] + inside;
        const Bytes row = kLook == Look::kHalves ? load_as<Bytes>(entry) : table_row(entry);
        BINARIZE_UNROLL
        for (int v = 0; v < kWide; ++v) {
          sum[i][v] += look_up(row, w[v]);
          BINARIZE_IN_REGISTER(sum[i][v]);
        }
      }
    };
    int64_t k = 0;
    if constexpr (kLook == Look::kPair) {
      for (; k < count; ++k, weight += 2 * bytes) {
        step(k, 0, weight);
        step(k, kLookup / 2, weight + bytes);
      }
    } else {
      for (; k + 2 <= count; k += 2, weight += 2 * bytes) {
        step(k, 0, weight);
        step(k + 1, 0, weight + bytes);
      }
      if (k < count) {
        step(k, 0, weight);
        weight += bytes;
      }
    }
  }
  BINARIZE_UNROLL
  for (int i = 0; i < kTile; ++i) {
    BINARIZE_UNROLL
    for (int v = 0; v < kWide; ++v) {
      const Shorts pairs = load_as<Shorts>(&sum[i][v]);
      Shorts even = pairs & 0xff, odd = pairs >> 8;
      uint16_t* to = sums + (i * kWide + v) * kLookup;
      if (!first) {
        even += load_as<Shorts>(to);
        odd += load_as<Shorts>(to + kLookup / 2);
      }
      __builtin_memcpy(to, &even, sizeof(even));
      __builtin_memcpy(to + kLookup / 2, &odd, sizeof(odd));
    }
  }
}

typedef uint32_t Quarter __attribute__((vector_size(kLookup)));
typedef uint32_t HalfQuarter __attribute__((vector_size(kLookup / 2)));

// Sums in 16 bits, for a register's lanes or half as many, to counts in 32 bits, in the order of
// the channels. Writes as many lanes as fill whole quarters.
template <class Wide>
static inline __attribute__((always_inline)) void widen_sums(const uint16_t* even,
                                                             const uint16_t* odd, int64_t lanes,
                                                             bool more, int32_t* to) {
  constexpr int64_t quarter = (int64_t)(sizeof(Wide) / sizeof(uint32_t));
  Wide e = load_as<Wide>(even), o = load_as<Wide>(odd);
  Wide part[4] = {e & 0xffff, o & 0xffff, e >> 16, o >> 16};
  BINARIZE_UNROLL
  for (int k = 0; k < 4; ++k) {
    if (k * quarter >= lanes) break;
    if (more) part[k] += load_as<Wide>(to + k * quarter);
    __builtin_memcpy(to + k * quarter, &part[k], sizeof(Wide));
  }
}

static void widen_block(const uint16_t* sums, int64_t step, int64_t pixels, int64_t lanes,
                        bool pairs, bool more, int32_t* to, int64_t stride) {
  typedef uint16_t HalfShorts __attribute__((vector_size(kLookup / 2)));
  constexpr int64_t quarter = kLookup / 4;
  for (int64_t i = 0; i < pixels; ++i, to += stride, sums += step) {
    if (pairs) {
      HalfShorts half[2];
      for (int k = 0; k < 2; ++k) {
        half[k] = load_as<HalfShorts>(sums + 2 * k * quarter) +
                  load_as<HalfShorts>(sums + (2 * k + 1) * quarter);
      }
      widen_sums<HalfQuarter>((const uint16_t*)&half[0], (const uint16_t*)&half[1], lanes, more,
                              to);
      continue;
    }
    for (int64_t at = 0; at < lanes; at += kLookup) {
      widen_sums<Quarter>(sums + at, sums + at + kLookup / 2, lanes - at, more, to + at);
    }
  }
}

struct Tile {
  void (*count)(const uint8_t* const*, const Chunk&, const uint8_t*, bool, uint16_t*);
  int64_t pixels;
};

template <int kPixels, int kWide, Look kLook>
static constexpr Tile tile_of() {
  return {look_up_tile<kPixels, kWide, kLook>, kPixels};
}

// For this many registers of lanes. As many sums, weights and rows as fit into the registers.
static Tile choose_tile(int64_t wide, int64_t bits, bool halved) {
  if (halved) return tile_of<8, 1, Look::kHalves>();
  if (bits == 8) {
    if (wide == 3) return tile_of<3, 3, Look::kPair>();
    return wide == 2 ? tile_of<4, 2, Look::kPair>() : tile_of<4, 1, Look::kPair>();
  }
  if (wide == 3) return tile_of<3, 3, Look::kNibble>();
  return wide == 2 ? tile_of<4, 2, Look::kNibble>() : tile_of<8, 1, Look::kNibble>();
}

static void count_lookup(const Call& c, const uint8_t* const* pixel, int64_t pixels,
                         int32_t* counts, uint16_t* sums) {
  const BinarizeGeometry& g = *c.g;
  const Plan& p = c.plan;
  const int64_t out_group = g.out_channels / g.groups, code_group = p.code_pixel / g.groups;
  const int64_t rounded = pixels + kTilePixels - 1;  // whole tiles of any size
  const bool halved = is_halved(g, kLookup);
  const int64_t looks = looks_per_code(g, p.coded);
  // In 16 bits; for halves, the sum of both.
  const int64_t most = kShortSteps / (p.coded / 4);
  const uint8_t* weight = c.work->lookup;
  const uint8_t* moved[kMaxBlockPixels + kTilePixels];
  for (int64_t group = 0; group < g.groups; ++group) {
    for (int64_t i = 0; i < rounded; ++i) moved[i] = pixel[min(i, pixels - 1)] + group * code_group;
    for (int64_t first = 0; first < out_group;) {
      const int64_t block = lookup_lanes(out_group - first);
      const int64_t lanes = min(block, out_group - first);
      int32_t* to = counts + group * out_group + first;
      const Tile tile = choose_tile(block / kLookup, p.coded, halved);
      int64_t held = 0;  // codes in 16 bits
      bool more = false;
      auto widen = [&] {
        widen_block(sums, block, pixels, lanes, halved, more, to, p.count_stride);
      };
      for (const Chunk* k = p.chunks; k < p.chunks + c.work->chunks; ++k) {
        if (held + k->codes > most) {
          widen();
          more = true;
          held = 0;
        }
        for (int64_t i = 0; i < pixels; i += tile.pixels) {
          tile.count(moved + i, *k, weight, held == 0, sums + i * block);
        }
        held += k->codes;
        weight += k->codes * looks * block;
      }
      if (c.work->chunks == 0) {
        __builtin_memset(sums, 0, sizeof(*sums) * (size_t)(pixels * block));
      }
      widen();
      first += block;
    }
  }
}

#else

constexpr int64_t kLookup = 0;
static int64_t lookup_phase_bytes(const BinarizeGeometry&, const Phase&) { return 0; }
static void code_row(const Call&, int64_t) {}
static void make_chunks(const Call&) {}
static void count_lookup(const Call&, const uint8_t* const*, int64_t, int32_t*, uint16_t*) {}

#endif
