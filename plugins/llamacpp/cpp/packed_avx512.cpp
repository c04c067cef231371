// AVX-512 with VNNI: one instruction multiplies 64 unsigned weights with signed activations and sums them by fours.
// Compiled with these instructions allowed, so nothing may be included whose inline functions others use, too.
#include <immintrin.h>

#include "packed.h"

namespace hostler::packed {
namespace {

/// The four 8-bit activations at `values` in each of sixteen places.
inline __m512i spread(const std::int8_t* values) {
  int four;
  __builtin_memcpy(&four, values, sizeof four);
  return _mm512_set1_epi32(four);
}

/// A tile's weights as unsigned bytes, four values of each row a register; value i is step * weight + least.
struct Unpacked {
  __m512i weights[8];
  __m512 step;
  __m512 least;
};

inline __m512 floats(const std::uint16_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

inline Unpacked unpack(const Q4_1::Tile& tile) {
  const __m512i low = _mm512_set1_epi8(15);
  Unpacked unpacked;
  for (int i = 0; i < 4; ++i) {
    const __m512i pairs = _mm512_loadu_si512(tile.q[i]);
    unpacked.weights[i] = _mm512_and_si512(pairs, low);
    unpacked.weights[i + 4] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
  }
  unpacked.step = floats(tile.d);
  unpacked.least = floats(tile.m);
  return unpacked;
}

inline Unpacked unpack(const Q8_0::Tile& tile) {
  Unpacked unpacked;
  for (int i = 0; i < 8; ++i) unpacked.weights[i] = _mm512_loadu_si512(tile.q[i]);
  unpacked.step = floats(tile.d);
  unpacked.least = _mm512_mul_ps(unpacked.step, _mm512_set1_ps(-128.0f));
  return unpacked;
}

template <class Tile, int kVectors>
void multiply_tile(const Tile* tiles, std::int64_t n_blocks, const Activations* group, float* products, std::int64_t stride) {
  __m512 total[kVectors];
  for (int v = 0; v < kVectors; ++v) total[v] = _mm512_setzero_ps();
  for (std::int64_t b = 0; b < n_blocks; ++b, ++tiles, group += kGroupVectors) {
    const Unpacked tile = unpack(*tiles);
    for (int v = 0; v < kVectors; ++v) {
      const Activations& block = group[v];
      __m512i sum = _mm512_setzero_si512();
      for (int i = 0; i < 8; ++i) sum = _mm512_dpbusd_epi32(sum, tile.weights[i], spread(block.q + 4 * i));
      const __m512 scale = _mm512_mul_ps(tile.step, _mm512_set1_ps(block.scale));
      total[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[v]);
      total[v] = _mm512_fmadd_ps(tile.least, _mm512_set1_ps(block.sum), total[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(products + v * stride, total[v]);
}

template <class Tile>
void multiply(const void* matrix, std::int64_t n_blocks, std::int64_t first_tile, std::int64_t last_tile,
              const Activations* rounded, std::int64_t n_vectors, float* products, std::int64_t stride) {
  using MultiplyTile = void (*)(const Tile*, std::int64_t, const Activations*, float*, std::int64_t);
  constexpr MultiplyTile kMultiplyTile[kGroupVectors + 1] = {
      nullptr,
      multiply_tile<Tile, 1>,
      multiply_tile<Tile, 2>,
      multiply_tile<Tile, 3>,
      multiply_tile<Tile, 4>,
      multiply_tile<Tile, 5>,
      multiply_tile<Tile, 6>,
      multiply_tile<Tile, 7>,
      multiply_tile<Tile, 8>,
  };
  const auto* tiles = static_cast<const Tile*>(matrix);
  for (std::int64_t tile = first_tile; tile < last_tile; ++tile) {
    for (std::int64_t v = 0; v < n_vectors; v += kGroupVectors) {
      const std::int64_t n = n_vectors - v < kGroupVectors ? n_vectors - v : kGroupVectors;
      kMultiplyTile[n](tiles + tile * n_blocks, n_blocks, rounded + v * n_blocks,
                       products + v * stride + tile * kTileRows, stride);
    }
  }
}

void round(const float* vector, std::int64_t n_blocks, std::int64_t index, Activations* rounded) {
  Activations* block = rounded + index / kGroupVectors * kGroupVectors * n_blocks + index % kGroupVectors;
  for (std::int64_t b = 0; b < n_blocks; ++b, vector += kBlockValues, block += kGroupVectors) {
    const __m512 first = _mm512_loadu_ps(vector);
    const __m512 second = _mm512_loadu_ps(vector + 16);
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second)));
    const float scale = most / 127.0f;
    const __m512 inverse = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
    const __m512i first_q = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
    const __m512i second_q = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block->q), _mm512_cvtepi32_epi8(first_q));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block->q + 16), _mm512_cvtepi32_epi8(second_q));
    block->scale = scale;
    block->sum = scale * static_cast<float>(_mm512_reduce_add_epi32(_mm512_add_epi32(first_q, second_q)));
  }
}

}  // namespace

const Kernels kQ4_1Avx512{"avx512_vnni", "q4_1", 3, sizeof(Q4_1::Block), pack_q4_1, round, multiply<Q4_1::Tile>};
const Kernels kQ8_0Avx512{"avx512_vnni", "q8_0", 8, sizeof(Q8_0::Block), pack_q8_0, round, multiply<Q8_0::Tile>};

}  // namespace hostler::packed
