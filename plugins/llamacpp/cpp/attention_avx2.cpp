// AVX2 with FMA and F16C.
// Compiled with these instructions allowed, so nothing may be included whose inline functions others use, too.
#include <immintrin.h>

#include "attention.h"

namespace hostler::attention {
namespace {

using Floats = __m256;
constexpr int kLanes = 8;
constexpr int kKeyRows = 6;
constexpr int kValueParts = 2;

inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats all(float value) { return _mm256_set1_ps(value); }
inline Floats load(const float* at) { return _mm256_loadu_ps(at); }
inline void store(float* at, Floats values) { _mm256_storeu_ps(at, values); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline float first_of(Floats values) { return _mm256_cvtss_f32(values); }

inline float largest_of(Floats values) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

inline float sum_of(Floats values) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

inline Floats halves(const char* at) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))); }

inline Floats all_half(const char* at) {
  short half;
  __builtin_memcpy(&half, at, sizeof half);
  return _mm256_cvtph_ps(_mm_set1_epi16(half));
}

inline Floats small(const char* at) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}

inline Floats add_where_seen(Floats score, Floats mask) {
  const Floats nothing = all(-__builtin_inff());
  return _mm256_blendv_ps(nothing, add(score, mask), _mm256_cmp_ps(mask, nothing, _CMP_NEQ_OQ));
}

inline Floats nearest_whole(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline Floats times_power(Floats x, Floats n) {
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return multiply(x, _mm256_castsi256_ps(power));
}

inline Floats where_at_least(float least, Floats x, Floats value) {
  return _mm256_and_ps(_mm256_cmp_ps(x, all(least), _CMP_GE_OQ), value);
}

/// Eight registers of eight numbers, rows for columns.
inline void transpose(Floats (&rows)[kLanes]) {
  Floats pairs[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  Floats fours[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m256d one = _mm256_castps_pd(pairs[i + j]);
      const __m256d other = _mm256_castps_pd(pairs[i + j + 2]);
      fours[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(one, other));
      fours[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(one, other));
    }
  }
  // fours[4 * g + c] holds columns c and 4 + c of rows 4 * g to 4 * g + 3.
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2f128_ps(fours[c], fours[4 + c], 0x20);
    rows[4 + c] = _mm256_permute2f128_ps(fours[c], fours[4 + c], 0x31);
  }
}

}  // namespace
}  // namespace hostler::attention

#include "attention_kernel.h"

namespace hostler::attention {

const Kernel kAvx2{"avx2", attend_as_stored, merge_units};

}  // namespace hostler::attention
