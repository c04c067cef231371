// The attention on memory that ends where it must, in threads: the sanitizers see each byte beyond and each race.
// That it is attention is test_attention.py's.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "attention.h"
#include "check.h"

using namespace hostler::attention;

namespace {

std::size_t bytes(std::int64_t n, std::size_t size) { return static_cast<std::size_t>(n) * size; }

/// Of so many numbers.
std::size_t stored_bytes(std::int64_t n, bool is_q8_0) { return is_q8_0 ? bytes(n / 32, 34) : bytes(n, 2); }

std::vector<std::uint16_t> drawn_keys(std::int64_t n, bool is_q8_0) {
  std::mt19937 random(1);
  std::vector<std::uint16_t> words(stored_bytes(n, is_q8_0) / 2);
  for (std::size_t i = 0; i < words.size(); ++i) {
    const bool is_byte_pair = is_q8_0 && i % 17 != 0;
    words[i] = static_cast<std::uint16_t>(is_byte_pair ? random() : 0x3000 + random() % 0x0c00);  // 0.125 to 1
  }
  return words;
}

std::vector<std::uint16_t> values_of_one_half(std::int64_t n, bool is_q8_0) {
  std::vector<std::uint16_t> words(stored_bytes(n, is_q8_0) / 2, is_q8_0 ? 0x4040 : 0x3800);  // 64 / 128
  for (std::size_t i = 0; is_q8_0 && i < words.size(); i += 17) words[i] = 0x2000;             // 1 / 128
  return words;
}

/// Everybody sees everything, and all values are one half: so is every result.
void attend_stored(const Kernel& kernel, bool is_q8_0, std::int64_t width, std::int64_t n_heads, std::int64_t n_kv_heads,
                   std::int64_t n_tokens, std::int64_t n_positions, std::int64_t n_streams, int n_threads) {
  const std::vector<float> q(bytes(n_streams * n_tokens * n_heads * width, 1), 0.5f);
  const auto k = drawn_keys(n_streams * n_positions * n_kv_heads * width, is_q8_0);
  const auto v = values_of_one_half(n_streams * n_positions * n_kv_heads * width, is_q8_0);
  const std::vector<std::uint16_t> mask(bytes(n_streams * n_tokens * n_positions, 1), 0);
  std::vector<float> out(q.size());
  Problem problem{};
  problem.width = width;
  problem.n_heads = n_heads;
  problem.n_kv_heads = n_kv_heads;
  problem.n_tokens = n_tokens;
  problem.n_positions = n_positions;
  problem.n_streams = n_streams;
  problem.scale = 0.125f;
  problem.is_q8_0 = is_q8_0;
  const std::int64_t row = n_kv_heads * width;
  problem.q = {reinterpret_cast<const char*>(q.data()), bytes(n_heads * width, 4), bytes(width, 4),
               bytes(n_tokens * n_heads * width, 4)};
  problem.k = {reinterpret_cast<const char*>(k.data()), stored_bytes(row, is_q8_0), stored_bytes(width, is_q8_0),
               stored_bytes(n_positions * row, is_q8_0)};
  problem.v = problem.k;
  problem.v.data = reinterpret_cast<const char*>(v.data());
  problem.mask = {reinterpret_cast<const char*>(mask.data()), bytes(n_positions, 2), 0, bytes(n_tokens * n_positions, 2)};
  problem.out = out.data();
  if (!can_attend(problem)) return;
  const Plan plan = make_plan(problem, n_threads);
  std::vector<float> partials(plan.partial_bytes / sizeof(float));
  const auto each = [&](auto work) {
    std::vector<std::thread> threads;
    for (int t = 0; t < n_threads; ++t) threads.emplace_back([&, t] { work(t); });
    for (std::thread& thread : threads) thread.join();
  };
  each([&](int t) {
    const std::unique_ptr<char[]> scratch(new char[plan.scratch_bytes]);
    for (std::int64_t unit = t; unit < plan.n_units; unit += n_threads) {
      kernel.attend(problem, plan, unit, unit + n_threads, scratch.get(), partials.data());
    }
  });
  if (plan.is_split) {
    each([&](int t) { kernel.merge(problem, plan, t, n_threads, partials.data()); });
  }
  for (const float value : out) CHECK(std::fabs(value - 0.5f) < 1e-4f);
}

void attend_in_threads(std::int64_t width, std::int64_t n_heads, std::int64_t n_kv_heads, std::int64_t n_tokens,
                       std::int64_t n_positions, std::int64_t n_streams, int n_threads) {
  for (const Kernel* const* kernel = kernels(); *kernel != nullptr; ++kernel) {
    for (const bool is_q8_0 : {false, true}) {
      if (is_q8_0 && width % 32 != 0) continue;
      attend_stored(**kernel, is_q8_0, width, n_heads, n_kv_heads, n_tokens, n_positions, n_streams, n_threads);
    }
  }
}

}  // namespace

TEST("one token over many positions is split and merged") { attend_in_threads(64, 9, 3, 1, 1040, 1, 3); }

TEST("many streams are not split") { attend_in_threads(64, 9, 3, 1, 80, 40, 2); }

TEST("many tokens go by tiles, the last of which is smaller") { attend_in_threads(64, 6, 2, 37, 144, 1, 2); }

TEST("odd widths and few tokens keep to their memory") {
  for (const std::int64_t width : {16, 48, 80, 96, 256}) {
    for (const std::int64_t n_tokens : {1, 2, 3, 5, 8}) attend_in_threads(width, 4, 2, n_tokens, 32, 2, 2);
  }
}

TEST("one head's keys for all") { attend_in_threads(32, 64, 1, 2, 64, 1, 2); }

CHECK_MAIN()
