// What a phase's work items share, and the sum that a count of 0 differing bits represents.

struct Block;

// Shared by the work items of one phase.
struct Work {
  int64_t index;  // of the phase
  Phase phase;
  const uint64_t* words;  // of its weight
  const uint8_t* lookup;  // of its weight in the order of the look-ups
  int64_t chunks;         // of its look-ups
  const int32_t* tap_sums;
  int64_t sum_row;  // of its first item
  int32_t* numbers[3];
  int64_t patterns[3];
  const float* act[3];  // shift, slope, shift after it
  void (*finish)(const Block&);
  int64_t items;        // per sample
  const uint8_t* base;  // bits, strings or codes
  int64_t element;      // bytes of a word or a code
  int64_t line[3];      // elements per step of z, y, x
  int64_t sample;       // elements per sample
};

// Windows that overlap the border: for every output position of a dimension, the index of its
// pattern, and for every combination of patterns and every channel, the sum that a count of 0
// differing bits represents. Zero padding is stored as 0-bits, which count as -1; the tap sums
// correct for that here.
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
    if (start >= 0 && start + (m.taps - 1) * m.tap_step < m.in) return;
    if (start < 0) from = min(m.taps, ceil_div(-start, m.tap_step));
    to = start >= m.in ? 0 : min(m.taps, (m.in - 1 - start) / m.tap_step + 1);
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
