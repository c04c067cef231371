// AVX2 with FMA and F16C.
// Compiled with these instructions allowed, so nothing may be included whose inline functions others use, too.
#include "packed_halves.h"

namespace hostler::packed {
namespace {

/// Of weights up to 15: a block's products are summed in 16 bits, which 8 * 2 * 15 * 127 = 30,480 does not overflow.
struct SmallSum {
  static constexpr bool kHasSigns = false;
  static __m256i prepare(__m256i weights) { return weights; }
  static __m256i add(__m256i sum, __m256i weights, __m256i x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x));
  }
  static __m256i finish(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};

/// Of weights with 8 bits: signs go to the activations, since the instruction wants one side without; two products, at most
/// 2 * 128 * 127 = 32,512, fit into 16 bits.
struct SignedSum {
  static constexpr bool kHasSigns = true;
  struct Weights {
    __m256i values;
    __m256i sizes;
  };
  static Weights prepare(__m256i weights) {
    const __m256i values = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
    return {values, _mm256_abs_epi8(values)};
  }
  static __m256i add(__m256i sum, Weights weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(weights.sizes, _mm256_sign_epi8(x, weights.values));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static __m256i finish(__m256i sum) { return sum; }
};

}  // namespace

const Kernels kQ4_1Avx2{"avx2", "q4_1", 3, sizeof(Q4_1::Block), pack_q4_1, round, multiply<Q4_1::Tile, SmallSum>};
const Kernels kQ8_0Avx2{"avx2", "q8_0", 8, sizeof(Q8_0::Block), pack_q8_0, round, multiply<Q8_0::Tile, SignedSum>};

}  // namespace hostler::packed
