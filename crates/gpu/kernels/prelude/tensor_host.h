// The same on the simulated GPU. Copies arrive at once.
extern "C" bool sim_last_to_come(unsigned *counter, unsigned count);
extern "C" void sim_more_shared();

inline uint from_lane(uint v, uint lane, int line) { return sim_exchange(v, lane, line); }

FN void mma_bytes(int *c, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, int line = __builtin_LINE()) {
  const uint lane = here().lane, g = lane / 4, q = lane % 4;
  for (uint p = 0; p < 4; p++) {
    const uint a[2][2] = {{from_lane(a0, 4 * g + p, line), from_lane(a2, 4 * g + p, line)},
                          {from_lane(a1, 4 * g + p, line), from_lane(a3, 4 * g + p, line)}};
    for (uint n = 0; n < 2; n++) {
      const uint b[2] = {from_lane(b0, 4 * (2 * q + n) + p, line), from_lane(b1, 4 * (2 * q + n) + p, line)};
      for (uint row = 0; row < 2; row++)
        for (uint half = 0; half < 2; half++)
          for (uint i = 0; i < 32; i += 8) c[2 * row + n] += int((a[row][half] >> i) & 255u) * int((signed char)(b[half] >> i));
    }
  }
}
FN void mma_halves(float *c, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, int line = __builtin_LINE()) {
  const uint lane = here().lane, g = lane / 4, q = lane % 4;
  for (uint p = 0; p < 4; p++) {
    const uint a[2][2] = {{from_lane(a0, 4 * g + p, line), from_lane(a2, 4 * g + p, line)},
                          {from_lane(a1, 4 * g + p, line), from_lane(a3, 4 * g + p, line)}};
    for (uint n = 0; n < 2; n++) {
      const uint b[2] = {from_lane(b0, 4 * (2 * q + n) + p, line), from_lane(b1, 4 * (2 * q + n) + p, line)};
      for (uint row = 0; row < 2; row++)
        for (uint half = 0; half < 2; half++)
          for (uint i = 0; i < 32; i += 16) c[2 * row + n] += half_bits((a[row][half] >> i) & 0xFFFFu) * half_bits((b[half] >> i) & 0xFFFFu);
    }
  }
}

// Places are counted from an address that every thread of a group knows.
FN unsigned long sim_base() { return (unsigned long)sim_shared(0, 0) & ~0xFFFFul; }
FN uint copy_place(const uint *p) { return uint((unsigned long)p - sim_base()); }
FN void copy_16(uint place, const uint *from, bool there) {
  uint *to = (uint *)(sim_base() + place);
  for (int i = 0; i < 4; i++) to[i] = there ? from[i] : 0u;
}
FN void copies_end() {}
template <int N> FN void copies_but() {}

FN void others_may_begin() {}
FN void wait_for_others() {}

FN uint fma_pairs(uint a, uint b, uint c) {
  return bits_of_half(fma_halves(a & 0xFFFFu, b & 0xFFFFu, c & 0xFFFFu)) | bits_of_half(fma_halves(a >> 16, b >> 16, c >> 16)) << 16;
}
FN uint add_pairs(uint a, uint b) {
  return bits_of_half(add_halves(a & 0xFFFFu, b & 0xFFFFu)) | bits_of_half(add_halves(a >> 16, b >> 16)) << 16;
}
FN uint pick_signs(uint a, uint b, uint which) {
  uint r = 0;
  for (int i = 0; i < 4; i++) {
    const uint digit = which >> (4 * i) & 15u, byte = ((digit & 4u) ? b : a) >> (8 * (digit & 3u)) & 255u;
    r |= ((digit & 8u) ? ((byte & 128u) ? 255u : 0u) : byte) << (8 * i);
  }
  return r;
}
FN uint pick_bytes(uint a, uint b, uint which) { return pick_signs(a, b, which & 0x7777u); }
FN int round_to_int(float v) { return int(__builtin_rintf(v)); }

FN uint half_at(uint place, uint i) { return (*(const uint *)(sim_base() + place + i / 2 * 4) >> (16 * (i & 1))) & 0xFFFFu; }
FN void load_matrices(uint *r, uint place, int line = __builtin_LINE()) {
  const uint lane = here().lane, g = lane / 4, q = lane % 4;
  for (uint i = 0; i < 4; i++) {
    const uint row = from_lane(place, 8 * i + g, line);
    r[i] = half_at(row, 2 * q) | half_at(row, 2 * q + 1) << 16;
  }
}
FN void load_turned_matrices(uint *r, uint place, int line = __builtin_LINE()) {
  const uint lane = here().lane, g = lane / 4, q = lane % 4;
  for (uint i = 0; i < 4; i++) {
    const uint first = from_lane(place, 8 * i + 2 * q, line), second = from_lane(place, 8 * i + 2 * q + 1, line);
    r[i] = half_at(first, g) | half_at(second, g) << 16;
  }
}
FN uint pair_of_halves(float a, float b) { return bits_of_half(a) | bits_of_half(b) << 16; }
FN float exp2_f32(float v) { return __builtin_exp2f(v); }

FN bool last_to_come(uint *counter, uint count, uint lane, int line = __builtin_LINE()) {
  sim_exchange(0, 32, line);
  const uint last = lane == 0 ? sim_last_to_come(counter, count) : 0;
  return sim_exchange(last, 0, line + 1000000) != 0;
}
FN float4 from_others(const float *p) { return *(const float4 *)p; }
