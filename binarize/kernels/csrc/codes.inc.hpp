// Codes of 8-bit layers, in each instruction set's own file: needs no other file. The compiler
// vectorizes its loops.
namespace {

// How values become codes: clip(round(x * inverse) + zero, 0, 255), ties to even; NaN becomes 0.
struct Coding {
  float inverse, lowest, highest;
  int32_t zero;

  Coding(float inverse, int32_t zero)
      : inverse(inverse), lowest((float)-zero), highest((float)(255 - zero)), zero(zero) {}

  // The code minus `zero`. Adding 1.5 * 2^23 leaves no bits for a fraction; not all processors have
  // an instruction that rounds.
  inline __attribute__((always_inline)) float centred(float x) const {
    float v = x * inverse;
    v = v > lowest ? v : lowest;
    v = v < highest ? v : highest;
    return (v + 0x1.8p23f) - 0x1.8p23f;
  }
};

inline void write_codes(const float* x, int64_t count, float inverse, int32_t zero,
                        uint8_t* codes) {
  const Coding coding(inverse, zero);
  for (int64_t i = 0; i < count; ++i) codes[i] = (uint8_t)((int32_t)coding.centred(x[i]) + zero);
}

}  // namespace
