// AVX-512. Compiled with these instructions allowed, so nothing may be included whose inline functions others use, too.
#include <immintrin.h>

#include "attention.h"

namespace hostler::attention {
namespace {

using Floats = __m512;
constexpr int kLanes = 16;
constexpr int kKeyRows = 8;
constexpr int kValueParts = 4;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats all(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* at) { return _mm512_loadu_ps(at); }
inline void store(float* at, Floats values) { _mm512_storeu_ps(at, values); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline float largest_of(Floats values) { return _mm512_reduce_max_ps(values); }
inline float sum_of(Floats values) { return _mm512_reduce_add_ps(values); }
inline float first_of(Floats values) { return _mm512_cvtss_f32(values); }

inline Floats halves(const char* at) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))); }

inline Floats all_half(const char* at) {
  short half;
  __builtin_memcpy(&half, at, sizeof half);
  return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}

inline Floats small(const char* at) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}

inline Floats add_where_seen(Floats score, Floats mask) {
  const Floats nothing = all(-__builtin_inff());
  return _mm512_mask_add_ps(nothing, _mm512_cmp_ps_mask(mask, nothing, _CMP_NEQ_OQ), score, mask);
}

inline Floats nearest_whole(Floats x) { return _mm512_roundscale_ps(x, 0); }

inline Floats times_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }

inline Floats where_at_least(float least, Floats x, Floats value) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(least), _CMP_GE_OQ), value);
}

/// Sixteen registers of sixteen numbers, rows for columns.
inline void transpose(Floats (&rows)[kLanes]) {
  Floats pairs[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  Floats fours[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d one = _mm512_castps_pd(pairs[i + j]);
      const __m512d other = _mm512_castps_pd(pairs[i + j + 2]);
      fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(one, other));
      fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(one, other));
    }
  }
  // fours[4 * g + c] holds column c, 4 + c, 8 + c, 12 + c of rows 4 * g to 4 * g + 3.
  for (int c = 0; c < 4; ++c) {
    const Floats low = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88);
    const Floats low_odd = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xdd);
    const Floats high = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
    const Floats high_odd = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(low, high, 0xdd);
    rows[4 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    rows[12 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
}

}  // namespace
}  // namespace hostler::attention

#include "attention_kernel.h"

namespace hostler::attention {

const Kernel kAvx512{"avx512", attend_as_stored, merge_units};

}  // namespace hostler::attention
