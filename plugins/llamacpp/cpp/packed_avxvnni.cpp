// AVX-VNNI, with AVX2, FMA and F16C: Intel's processors for desktops since 2021, AMD's since Zen 5. One instruction
// multiplies 32 unsigned weights with signed activations and sums them by fours.
// Compiled with these instructions allowed, so nothing may be included whose inline functions others use, too.
#include "packed_halves.h"

namespace hostler::packed {
namespace {

struct ByFours {
  static constexpr bool kHasSigns = false;
  static __m256i prepare(__m256i weights) { return weights; }
  static __m256i add(__m256i sum, __m256i weights, __m256i x) { return _mm256_dpbusd_avx_epi32(sum, weights, x); }
  static __m256i finish(__m256i sum) { return sum; }
};

}  // namespace

const Kernels kQ4_1AvxVnni{"avx_vnni", "q4_1", 3, sizeof(Q4_1::Block), pack_q4_1, round, multiply<Q4_1::Tile, ByFours>};
const Kernels kQ8_0AvxVnni{"avx_vnni", "q8_0", 8, sizeof(Q8_0::Block), pack_q8_0, round, multiply<Q8_0::Tile, ByFours>};

}  // namespace hostler::packed
