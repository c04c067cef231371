// Products of a quantized matrix with rows of float32, from a layout in which sixteen of the matrix's rows lie side by side.
//
// llama.cpp multiplies these types one row with one vector at a time on x86. Here a tile of sixteen rows, or half of one, is
// unpacked once for up to eight vectors, and each instruction multiplies 64 or 32 of its weights. The arithmetic is llama.cpp's: activations are
// rounded to 8 bits in blocks of 32 with one scale each, products of a block are summed as integers, blocks in float32.
//
// Ownership: plain functions over the caller's memory, which threads share as they like. Nothing here knows ggml.
// Source of the blocks: block_q4_1 and block_q8_0 in llama.cpp's ggml-common.h. Steps and offsets are float16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hostler::packed {

constexpr int kBlockValues = 32;
constexpr int kTileRows = 16;
constexpr int kGroupVectors = 8;

/// Value i is d * q[i] + m. The low halves of a row's bytes are values 0 to 15, the high ones 16 to 31.
struct Q4_1 {
  struct Block {
    std::uint16_t d;
    std::uint16_t m;
    std::uint8_t q[16];
  };
  /// The same 32 values of sixteen rows. Byte 4 * r + j of `q[i]` is byte 4 * i + j of row r's `q`.
  struct Tile {
    std::uint16_t d[kTileRows];
    std::uint16_t m[kTileRows];
    std::uint8_t q[4][4 * kTileRows];
  };
};

/// Value i is d * q[i].
struct Q8_0 {
  struct Block {
    std::uint16_t d;
    std::int8_t q[32];
  };
  /// Likewise, with 128 added to each value: the instructions want one side without signs.
  struct Tile {
    std::uint16_t d[kTileRows];
    std::uint8_t q[8][4 * kTileRows];
  };
};

static_assert(sizeof(Q4_1::Block) == 20 && sizeof(Q4_1::Tile) == kTileRows * sizeof(Q4_1::Block));
static_assert(sizeof(Q8_0::Block) == 34 && sizeof(Q8_0::Tile) == kTileRows * sizeof(Q8_0::Block));

/// 32 values of one vector.
struct Activations {
  float scale;
  float sum;  // of the 32 values: scale * (q[0] + ... + q[31])
  std::int8_t q[kBlockValues];
};
static_assert(sizeof(Activations) == 40);

/// Round vector number `index` of `n_blocks` blocks; `rounded` is where all of them go, rounded_bytes() in size.
/// They lie in groups of eight: in a group, block b of vector v is number 8 * b + v.
using Round = void (*)(const float* vector, std::int64_t n_blocks, std::int64_t index, Activations* rounded);

/// Products of the tiles of sixteen rows `first_tile` to `last_tile` (excluded) with all vectors.
/// Row r's product with vector v goes to `products[v * stride + r]`.
using Multiply = void (*)(const void* tiles, std::int64_t n_blocks, std::int64_t first_tile, std::int64_t last_tile,
                          const Activations* rounded, std::int64_t n_vectors, float* products, std::int64_t stride);

/// One type of matrix on one instruction set.
struct Kernels {
  const char* instruction_set;
  const char* type;  // as ggml names it
  int ggml_type;     // enum ggml_type
  std::size_t block_bytes;
  /// Put `n_rows` rows of `n_blocks` blocks into tiles of as many bytes, which must not overlap with them.
  void (*pack)(const void* blocks, std::int64_t n_rows, std::int64_t n_blocks, void* tiles);
  Round round;
  Multiply multiply;
};

/// Whether a matrix of this shape has a packed form: `n_rows` rows of `n_columns` values.
constexpr bool can_pack(std::int64_t n_rows, std::int64_t n_columns) {
  return n_rows > 0 && n_rows % kTileRows == 0 && n_columns > 0 && n_columns % kBlockValues == 0;
}

/// Bytes that `n_vectors` vectors of `n_columns` values take when rounded: whole groups of eight.
constexpr std::size_t rounded_bytes(std::int64_t n_vectors, std::int64_t n_columns) {
  const std::int64_t n_groups = (n_vectors + kGroupVectors - 1) / kGroupVectors;
  return static_cast<std::size_t>(n_groups * kGroupVectors * (n_columns / kBlockValues)) * sizeof(Activations);
}

void pack_q4_1(const void* blocks, std::int64_t n_rows, std::int64_t n_blocks, void* tiles);
void pack_q8_0(const void* blocks, std::int64_t n_rows, std::int64_t n_blocks, void* tiles);

extern const Kernels kQ4_1Avx512;
extern const Kernels kQ8_0Avx512;
extern const Kernels kQ4_1AvxVnni;
extern const Kernels kQ8_0AvxVnni;
extern const Kernels kQ4_1Avx2;
extern const Kernels kQ8_0Avx2;

/// A list without ownership.
struct KernelsList {
  const Kernels* const* first;
  std::size_t size;
  const Kernels* const* begin() const { return first; }
  const Kernels* const* end() const { return first + size; }
};

/// All that were built, the fastest of a type first.
KernelsList all_kernels() noexcept;

/// Whether this processor has what they need.
bool can_run(const Kernels& kernels) noexcept;

}  // namespace hostler::packed
