// How a problem is cut; no special instructions here.
#include "attention.h"

namespace hostler::attention {

namespace {

constexpr std::int64_t kTileRows = 48;
/// Rows of a head's tile up to which a unit takes all heads.
constexpr std::int64_t kFewRows = 12;
/// Units a thread from which on they are even enough without splitting.
constexpr std::int64_t kUnitsEach = 8;

}  // namespace

Plan make_plan(const Problem& problem, int n_threads) {
  const std::int64_t n_shared = problem.n_heads / problem.n_kv_heads;
  Plan plan{};
  plan.tile_tokens = n_shared >= kTileRows ? 1 : kTileRows / n_shared;
  if (plan.tile_tokens > problem.n_tokens) plan.tile_tokens = problem.n_tokens;
  plan.n_tiles = (problem.n_tokens + plan.tile_tokens - 1) / plan.tile_tokens;
  plan.n_chunks = (problem.n_positions + kChunk - 1) / kChunk;
  plan.unit_kv_heads = plan.tile_tokens * n_shared <= kFewRows ? problem.n_kv_heads : 1;
  const std::int64_t n_whole = problem.n_streams * (problem.n_kv_heads / plan.unit_kv_heads) * plan.n_tiles;
  plan.is_split = n_threads > 1 && n_whole < kUnitsEach * n_threads;
  plan.n_units = plan.is_split ? n_whole * plan.n_chunks : n_whole;
  const std::int64_t n_rows = plan.tile_tokens * n_shared * plan.unit_kv_heads;
  // Queries, results of a chunk and of all, scores; two numbers of a row twice; keys and values.
  const std::int64_t n_floats = n_rows * (3 * problem.width + kChunk + 4) + 2 * kChunk * problem.width;
  plan.scratch_bytes = (static_cast<std::size_t>(n_floats) * sizeof(float) + 511) / 64 * 64;
  if (plan.is_split) {
    plan.partial_bytes = static_cast<std::size_t>(plan.n_units * n_rows * (problem.width + 2)) * sizeof(float);
  }
  return plan;
}

#ifndef HOSTLER_X86

bool can_attend(const Problem&) noexcept { return false; }
void attend(const Problem&, const Plan&, std::int64_t, std::int64_t, char*, float*) {}
void merge(const Problem&, const Plan&, std::int64_t, std::int64_t, const float*) {}

#endif

}  // namespace hostler::attention
