// How a problem is cut; no special instructions here.
#include "attention.h"

#include "processor.h"

namespace hostler::attention {
namespace {

constexpr std::int64_t kTileRows = 48;
/// Rows of a head's tile up to which a unit takes all heads.
constexpr std::int64_t kFewRows = 12;
/// Units a thread from which on they are even enough without splitting.
constexpr std::int64_t kUnitsEach = 8;
/// Of partial results: with many tokens or positions a tile is enough of a unit. estimate.py counts them.
constexpr std::size_t kMostPartialBytes = std::size_t{16} << 20;

struct Runnable {
  const Kernel* kernels[3] = {};
};

Runnable find_runnable() noexcept {
  Runnable found;
#ifdef HOSTLER_X86
  const Kernel** next = found.kernels;
  if (processor::has_avx512()) *next++ = &kAvx512;
  if (processor::has_avx2()) *next++ = &kAvx2;
#endif
  return found;
}

}  // namespace

const Kernel* const* kernels() noexcept {
  static const Runnable runnable = find_runnable();
  return runnable.kernels;
}

bool can_attend(const Problem& problem) noexcept {
  return kernels()[0] != nullptr && problem.width > 0 && problem.width % (problem.is_q8_0 ? 32 : 16) == 0 &&
         problem.width <= kMaxWidth && problem.n_kv_heads > 0 && problem.n_heads % problem.n_kv_heads == 0 &&
         problem.n_heads / problem.n_kv_heads <= kMaxRows && problem.n_tokens > 0 && problem.n_positions > 0 &&
         problem.n_positions % 16 == 0 && problem.n_streams > 0;
}

Plan make_plan(const Problem& problem, int n_threads) {
  const std::int64_t n_shared = problem.n_heads / problem.n_kv_heads;
  Plan plan{};
  plan.tile_tokens = n_shared >= kTileRows ? 1 : kTileRows / n_shared;
  if (plan.tile_tokens > problem.n_tokens) plan.tile_tokens = problem.n_tokens;
  plan.n_tiles = (problem.n_tokens + plan.tile_tokens - 1) / plan.tile_tokens;
  plan.n_chunks = (problem.n_positions + kChunk - 1) / kChunk;
  plan.unit_kv_heads = plan.tile_tokens * n_shared <= kFewRows ? problem.n_kv_heads : 1;
  const std::int64_t n_whole = problem.n_streams * (problem.n_kv_heads / plan.unit_kv_heads) * plan.n_tiles;
  const std::int64_t n_rows = plan.tile_tokens * n_shared * plan.unit_kv_heads;
  const std::int64_t n_partial_floats = n_whole * plan.n_chunks * n_rows * (problem.width + 2);
  const std::size_t partial_bytes = static_cast<std::size_t>(n_partial_floats) * sizeof(float);
  plan.is_split = n_threads > 1 && n_whole < kUnitsEach * n_threads && partial_bytes <= kMostPartialBytes;
  plan.n_units = plan.is_split ? n_whole * plan.n_chunks : n_whole;
  // Queries, results of a chunk and of all, scores; two numbers of a row twice; keys and values.
  const std::int64_t n_floats = n_rows * (3 * problem.width + kChunk + 4) + 2 * kChunk * problem.width;
  plan.scratch_bytes = (static_cast<std::size_t>(n_floats) * sizeof(float) + 511) / 64 * 64;
  plan.partial_bytes = plan.is_split ? partial_bytes : 0;
  return plan;
}

}  // namespace hostler::attention
