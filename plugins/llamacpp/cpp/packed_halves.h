// Half a tile at a time, in registers of 256 bits: what packed_avx2.cpp and packed_avxvnni.cpp have in common. For them alone,
// since everything here is compiled with the instructions that its includer allows: all of it has internal linkage.
#pragma once

#include <immintrin.h>

#include "packed.h"

namespace hostler::packed {
namespace {

constexpr int kHalfRows = kTileRows / 2;
/// More would not fit into sixteen registers.
constexpr int kVectorsAtOnce = 4;

/// The four 8-bit activations at `values` in each of eight places.
inline __m256i spread(const std::int8_t* values) {
  int four;
  __builtin_memcpy(&four, values, sizeof four);
  return _mm256_set1_epi32(four);
}

inline __m256i load(const std::uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

/// Values 4 * i to 4 * i + 3 of half a tile's rows, as unsigned bytes.
inline __m256i weights_of(const Q4_1::Tile& tile, int half, int i) {
  const __m256i pairs = load(tile.q[i % 4] + 4 * kHalfRows * half);
  return _mm256_and_si256(i < 4 ? pairs : _mm256_srli_epi16(pairs, 4), _mm256_set1_epi8(15));
}

inline __m256i weights_of(const Q8_0::Tile& tile, int half, int i) { return load(tile.q[i] + 4 * kHalfRows * half); }

inline __m256 floats(const std::uint16_t* halves) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}

/// What a weight of 0 stands for.
inline __m256 least_of(const Q4_1::Tile& tile, int half, __m256) { return floats(tile.m + kHalfRows * half); }
inline __m256 least_of(const Q8_0::Tile&, int, __m256 step) { return _mm256_mul_ps(step, _mm256_set1_ps(-128.0f)); }

/// Half a tile (`half` 0 or 1) with some vectors. `Sum` says how a block's products are summed:
///   prepare(weights)         once for all vectors
///   add(sum, prepared, x)    products with four activations, added to what `add` has returned before
///   finish(sum)              as eight 32-bit numbers
///   kHasSigns                prepare() has taken 128 from each weight, so that no weight stands for -128 steps
template <class Tile, class Sum, int kVectors>
void multiply_half(const Tile* tiles, int half, std::int64_t n_blocks, const Activations* group, float* products,
                   std::int64_t stride) {
  __m256 total[kVectors];
  for (int v = 0; v < kVectors; ++v) total[v] = _mm256_setzero_ps();
  for (std::int64_t b = 0; b < n_blocks; ++b, ++tiles, group += kGroupVectors) {
    __m256i sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = _mm256_setzero_si256();
    for (int i = 0; i < 8; ++i) {
      const auto weights = Sum::prepare(weights_of(*tiles, half, i));
      for (int v = 0; v < kVectors; ++v) sums[v] = Sum::add(sums[v], weights, spread(group[v].q + 4 * i));
    }
    const __m256 step = floats(tiles->d + kHalfRows * half);
    for (int v = 0; v < kVectors; ++v) {
      const __m256 scale = _mm256_mul_ps(step, _mm256_set1_ps(group[v].scale));
      total[v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(Sum::finish(sums[v])), scale, total[v]);
      if constexpr (!Sum::kHasSigns) {
        total[v] = _mm256_fmadd_ps(least_of(*tiles, half, step), _mm256_set1_ps(group[v].sum), total[v]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(products + v * stride, total[v]);
}

template <class Tile, class Sum>
void multiply(const void* matrix, std::int64_t n_blocks, std::int64_t first_tile, std::int64_t last_tile,
              const Activations* rounded, std::int64_t n_vectors, float* products, std::int64_t stride) {
  using MultiplyHalf = void (*)(const Tile*, int, std::int64_t, const Activations*, float*, std::int64_t);
  constexpr MultiplyHalf kMultiplyHalf[kVectorsAtOnce + 1] = {
      nullptr,
      multiply_half<Tile, Sum, 1>,
      multiply_half<Tile, Sum, 2>,
      multiply_half<Tile, Sum, 3>,
      multiply_half<Tile, Sum, 4>,
  };
  const auto* tiles = static_cast<const Tile*>(matrix);
  for (std::int64_t tile = first_tile; tile < last_tile; ++tile) {
    for (std::int64_t v = 0; v < n_vectors; v += kVectorsAtOnce) {
      const std::int64_t n = n_vectors - v < kVectorsAtOnce ? n_vectors - v : kVectorsAtOnce;
      const Activations* group = rounded + v / kGroupVectors * kGroupVectors * n_blocks + v % kGroupVectors;
      for (int half = 0; half < 2; ++half) {
        kMultiplyHalf[n](tiles + tile * n_blocks, half, n_blocks, group,
                         products + v * stride + tile * kTileRows + half * kHalfRows, stride);
      }
    }
  }
}

inline float most_of(__m256 values) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

inline int sum_of(__m256i values) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

void round(const float* vector, std::int64_t n_blocks, std::int64_t index, Activations* rounded) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  Activations* block = rounded + index / kGroupVectors * kGroupVectors * n_blocks + index % kGroupVectors;
  for (std::int64_t b = 0; b < n_blocks; ++b, vector += kBlockValues, block += kGroupVectors) {
    __m256 most = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) most = _mm256_max_ps(most, _mm256_andnot_ps(sign, _mm256_loadu_ps(vector + 8 * i)));
    const float largest = most_of(most);
    const float scale = largest / 127.0f;
    const __m256 inverse = _mm256_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(vector + 8 * i), inverse));
    // Packing goes by halves of a register: the last step puts the eight groups of four into order.
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block->q), _mm256_permutevar8x32_epi32(bytes, order));
    block->scale = scale;
    const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    block->sum = scale * static_cast<float>(sum_of(sums));
  }
}

}  // namespace
}  // namespace hostler::packed
