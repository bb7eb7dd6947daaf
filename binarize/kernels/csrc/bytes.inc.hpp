// Registers of floats and bytes of 8-bit codes.

#if !defined(BINARIZE_BYTES)
static inline Ints widen_bytes(const uint8_t* from) {
  Ints v;
  for (int64_t i = 0; i < kLanes; ++i) v[i] = from[i];
  return v;
}
static inline void narrow_to_bytes(Ints v, uint8_t* to) {
  for (int64_t i = 0; i < kLanes; ++i) to[i] = (uint8_t)v[i];
}
#endif

// Values as codes minus the code of zero, as Coding does it.
template <class F>
static inline __attribute__((always_inline)) F centred_lanes(const Coding& coding, F x) {
  const F lowest = F{} + coding.lowest, highest = F{} + coding.highest;
  F v = x * coding.inverse;
  v = v > lowest ? v : lowest;
  v = v < highest ? v : highest;
  return (v + 0x1.8p23f) - 0x1.8p23f;
}

// Values as codes; F is a register of floats, part of one, or a float.
template <class F>
static inline __attribute__((always_inline)) void write_lanes(const Coding& coding, F x,
                                                              uint8_t* to) {
  const F v = centred_lanes(coding, x);
  if constexpr (sizeof(F) == sizeof(Floats)) {
    narrow_to_bytes(__builtin_convertvector(v, Ints) + coding.zero, to);
  } else {
    float part[sizeof(F) / sizeof(float)];
    __builtin_memcpy(part, &v, sizeof(v));
    for (size_t i = 0; i < sizeof(F) / sizeof(float); ++i) {
      to[i] = (uint8_t)((int32_t)part[i] + coding.zero);
    }
  }
}
