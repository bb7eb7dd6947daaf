// Codes of 8-bit layers, in each instruction set's own file: needs no other file, and no other file
// needs it. The compiler vectorizes the loop.
namespace {

// codes = clip(round(x * inverse) + zero, 0, 255), ties to even; NaN becomes 0.
inline void write_codes(const float* x, int64_t count, float inverse, int32_t zero,
                        uint8_t* codes) {
  const float lowest = (float)-zero, highest = (float)(255 - zero);
  for (int64_t i = 0; i < count; ++i) {
    float v = x[i] * inverse;
    v = v > lowest ? v : lowest;
    v = v < highest ? v : highest;
    codes[i] = (uint8_t)((int32_t)__builtin_rintf(v) + zero);
  }
}

}  // namespace
