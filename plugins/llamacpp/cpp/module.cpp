// hostler_llamacpp._kernels: the Python face of cpp/. Import hostler_llamacpp.kernels instead.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "attention.h"
#include "cpu_backend.h"
#include "packed.h"


namespace nb = nanobind;
using namespace nb::literals;

namespace hostler {
namespace {

/// Those that this processor can run.
std::vector<std::pair<std::string, std::string>> kernels() {
  std::vector<std::pair<std::string, std::string>> found;
  for (const packed::Kernels* kernels : packed::all_kernels()) {
    if (packed::can_run(*kernels)) found.emplace_back(kernels->type, kernels->instruction_set);
  }
  return found;
}

const packed::Kernels& find(const std::string& type, const std::string& instruction_set) {
  for (const packed::Kernels* kernels : packed::all_kernels()) {
    if (type == kernels->type && instruction_set == kernels->instruction_set && packed::can_run(*kernels)) return *kernels;
  }
  throw nb::value_error("this processor has no such kernels");
}

nb::bytes multiply(const std::string& type, const std::string& instruction_set, const nb::bytes& matrix,
                   const nb::bytes& vectors, std::int64_t n_rows) {
  const packed::Kernels& kernels = find(type, instruction_set);
  const auto n_all = static_cast<std::int64_t>(matrix.size() / kernels.block_bytes);
  const std::int64_t n_blocks = n_rows > 0 ? n_all / n_rows : 0;
  const std::int64_t n_columns = n_blocks * packed::kBlockValues;
  const std::size_t vector_bytes = static_cast<std::size_t>(n_columns) * sizeof(float);
  if (!packed::can_pack(n_rows, n_columns) ||
      matrix.size() != static_cast<std::size_t>(n_rows * n_blocks) * kernels.block_bytes ||
      vectors.size() % vector_bytes != 0) {
    throw nb::value_error("the sizes of matrix and vectors do not go together");
  }
  const auto n_vectors = static_cast<std::int64_t>(vectors.size() / vector_bytes);
  std::vector<char> tiles(matrix.size());
  kernels.pack(matrix.c_str(), n_rows, n_blocks, tiles.data());
  std::vector<packed::Activations> rounded(packed::rounded_bytes(n_vectors, n_columns) / sizeof(packed::Activations));
  for (std::int64_t v = 0; v < n_vectors; ++v) {
    kernels.round(reinterpret_cast<const float*>(vectors.c_str()) + v * n_columns, n_blocks, v, rounded.data());
  }
  std::vector<float> products(static_cast<std::size_t>(n_vectors * n_rows));
  kernels.multiply(tiles.data(), n_blocks, 0, n_rows / packed::kTileRows, rounded.data(), n_vectors, products.data(), n_rows);
  return nb::bytes(products.data(), products.size() * sizeof(float));
}

/// n_heads, n_kv_heads, n_tokens, n_streams.
using Shape = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

std::vector<std::string> attention_kernels() {
  std::vector<std::string> found;
  for (const attention::Kernel* const* kernel = attention::kernels(); *kernel != nullptr; ++kernel) {
    found.emplace_back((*kernel)->instruction_set);
  }
  return found;
}

const attention::Kernel& find_attention(const std::string& instruction_set) {
  for (const attention::Kernel* const* kernel = attention::kernels(); *kernel != nullptr; ++kernel) {
    if (instruction_set == (*kernel)->instruction_set) return **kernel;
  }
  throw nb::value_error("this processor has no such kernels");
}

nb::bytes attend(const std::string& type, const std::string& instruction_set, const nb::bytes& q, const nb::bytes& k,
                 const nb::bytes& v, const nb::bytes& mask, const Shape& shape, float scale, int n_threads) {
  const attention::Kernel& kernel = find_attention(instruction_set);
  const auto [n_heads, n_kv_heads, n_tokens, n_streams] = shape;
  attention::Problem problem{};
  const std::int64_t n_q_rows = n_streams * n_tokens * n_heads;
  problem.width = n_q_rows > 0 ? static_cast<std::int64_t>(q.size() / sizeof(float)) / n_q_rows : 0;
  problem.is_q8_0 = type == "q8_0";
  const auto stored = [&](std::int64_t n) { return static_cast<std::size_t>(problem.is_q8_0 ? n / 32 * 34 : 2 * n); };
  const std::int64_t row = n_kv_heads * problem.width;  // of keys, and of values
  problem.n_heads = n_heads;
  problem.n_kv_heads = n_kv_heads;
  problem.n_tokens = n_tokens;
  problem.n_positions = n_streams > 0 && stored(row) > 0 ? static_cast<std::int64_t>(k.size() / stored(row)) / n_streams : 0;
  problem.n_streams = n_streams;
  problem.scale = scale;
  const auto n_mask = static_cast<std::size_t>(n_streams * n_tokens * problem.n_positions);
  if (problem.n_positions == 0 || q.size() != static_cast<std::size_t>(n_q_rows * problem.width) * sizeof(float) ||
      k.size() != stored(n_streams * problem.n_positions * row) || v.size() != k.size() || (type != "f16" && type != "q8_0") ||
      (mask.size() != 0 && mask.size() != 2 * n_mask) || n_threads < 1 || !attention::can_attend(problem)) {
    throw nb::value_error("there is no kernel for this shape on this processor");
  }
  const auto bytes = [](std::int64_t n, std::size_t size) { return static_cast<std::size_t>(n) * size; };
  const std::int64_t q_row = n_heads * problem.width;
  problem.q = {static_cast<const char*>(q.data()), bytes(q_row, 4), bytes(problem.width, 4), bytes(n_tokens * q_row, 4)};
  problem.k = {static_cast<const char*>(k.data()), stored(row), stored(problem.width), stored(problem.n_positions * row)};
  problem.v = problem.k;
  problem.v.data = static_cast<const char*>(v.data());
  if (mask.size() != 0) {
    problem.mask = {static_cast<const char*>(mask.data()), bytes(problem.n_positions, 2), 0,
                    bytes(n_tokens * problem.n_positions, 2)};
  }
  std::vector<float> out(q.size() / sizeof(float));
  problem.out = out.data();
  const attention::Plan plan = attention::make_plan(problem, n_threads);
  std::vector<float> partials(plan.partial_bytes / sizeof(float));
  std::vector<char> scratch(plan.scratch_bytes + 64);
  const auto aligned = (reinterpret_cast<std::uintptr_t>(scratch.data()) + 63) / 64 * 64;
  for (std::int64_t unit = 0; unit < plan.n_units; ++unit) {
    kernel.attend(problem, plan, unit, unit + 1, reinterpret_cast<char*>(aligned), partials.data());
  }
  if (plan.is_split) {
    for (int part = 0; part < n_threads; ++part) kernel.merge(problem, plan, part, n_threads, partials.data());
  }
  return nb::bytes(out.data(), out.size() * sizeof(float));
}

}  // namespace
}  // namespace hostler

NB_MODULE(_kernels, module) {
  using namespace hostler;
  module.doc() = "Products of matrices and attention for llama.cpp's CPU backend. Import hostler_llamacpp.kernels instead.";
  nb::exception<NotAttached>(module, "NotAttached");
  module.def("attach", attach_to_cpu_backend, "llama_library"_a,
             "Have matrices packed from now on; which types, with which instructions. NotAttached says why not.");
  module.def("kernels", kernels, "Pairs of a type and an instruction set that this processor can run.");
  module.def("multiply", multiply, "type"_a, "instruction_set"_a, "matrix"_a, "vectors"_a, "n_rows"_a,
             "Products (n_vectors, n_rows) of a matrix, as files hold it, and float32 vectors: for tests.");
  module.def("attention_kernels", attention_kernels, "Instruction sets that attention can use here, the fastest first.");
  module.def("attend", attend, "type"_a, "instruction_set"_a, "q"_a, "k"_a, "v"_a, "mask"_a, "shape"_a, "scale"_a,
             "n_threads"_a,
             "Attention (n_streams, n_tokens, n_heads, width); keys and values are f16 or q8_0; cut as for "
             "n_threads: for tests.");
}
