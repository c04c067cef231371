// Attention of float32 queries over keys and values in float16 or Q8_0: llama.cpp's GGML_OP_FLASH_ATTN_EXT, in float32.
//
// llama.cpp's kernel takes the heads one by one, sums values in 16 bits for fewer than 64 tokens, and converts keys once for
// each head that shares them. Here a tile of rows (the heads that share keys and values, times tokens) goes over chunks of 64
// positions, whose keys and values are converted once. Chunks are always the same and are merged in their order, so that a
// row's result does not depend on what is evaluated beside it, nor on the number of threads.
//
// Ownership: plain functions over the caller's memory. Nothing here knows ggml.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hostler::attention {

constexpr std::int64_t kChunk = 64;
constexpr std::int64_t kMaxRows = 64;
constexpr std::int64_t kMaxWidth = 256;

/// Memory with a stride in bytes for each of what it is counted by; `row` is a token's or a position's.
struct View {
  const char* data;
  std::size_t row;
  std::size_t head;
  std::size_t stream;
};

struct Problem {
  std::int64_t width;  // of a head: a multiple of 16, at most kMaxWidth
  std::int64_t n_heads;
  std::int64_t n_kv_heads;   // n_heads is a multiple
  std::int64_t n_tokens;     // of each stream
  std::int64_t n_positions;  // a multiple of 16
  std::int64_t n_streams;
  float scale;
  bool is_q8_0;  // keys and values are Q8_0, the width is a multiple of 32; else float16
  View q;        // float32
  View k;
  View v;
  View mask;   // float16 by token and position, added to the scaled products; data may be null
  float* out;  // (n_streams, n_tokens, n_heads, width)
};

/// How a problem is cut for so many threads.
struct Plan {
  std::int64_t tile_tokens;
  std::int64_t n_tiles;        // of a stream's tokens
  std::int64_t unit_kv_heads;  // all of them for few tokens: their keys lie side by side
  std::int64_t n_chunks;
  bool is_split;  // a unit is one chunk of a tile, else a whole tile
  std::int64_t n_units;
  std::size_t scratch_bytes;  // of each thread
  std::size_t partial_bytes;  // of all: what units leave for merge()
};

Plan make_plan(const Problem& problem, int n_threads);

/// Evaluate one unit; any thread, each with scratch of its own (aligned to 64 bytes). `next_unit` is the one that this thread
/// will probably take next: its keys and values are fetched meanwhile; n_units where there is none.
using Attend = void (*)(const Problem& problem, const Plan& plan, std::int64_t unit, std::int64_t next_unit, char* scratch,
                        float* partials);

/// Merge what split units left, once all are done: part `part` of `n_parts`, one for each thread.
using Merge = void (*)(const Problem& problem, const Plan& plan, std::int64_t part, std::int64_t n_parts,
                       const float* partials);

/// The same in the instructions of one set.
struct Kernel {
  const char* instruction_set;
  Attend attend;
  Merge merge;
};

extern const Kernel kAvx512;
extern const Kernel kAvx2;

/// Those that this processor can run, the fastest first; behind the last a null pointer.
const Kernel* const* kernels() noexcept;

/// Whether there is a kernel for such a problem on this processor.
bool can_attend(const Problem& problem) noexcept;

}  // namespace hostler::attention
