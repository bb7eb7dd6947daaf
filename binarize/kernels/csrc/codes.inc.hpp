// Codes of 8-bit layers, in each instruction set's own file: included after nothing, used by
// nothing else. The compiler makes vectors of the loop.
namespace {

// codes = clip(round(x * inverse) + zero, 0, 255), halves to even; NaN becomes 0.
inline void write_codes(const float* x, int64_t count, float inverse, int32_t zero,
                        uint8_t* codes) {
  const float least = (float)-zero, largest = (float)(255 - zero);
  for (int64_t i = 0; i < count; ++i) {
    float v = x[i] * inverse;
    v = v > least ? v : least;
    v = v < largest ? v : largest;
    codes[i] = (uint8_t)((int32_t)__builtin_rintf(v) + zero);
  }
}

}  // namespace
