// hostler_llamacpp._kernels: the Python face of cpp/. Import hostler_llamacpp.kernels instead.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "packed.h"
#include "packed_buffer.h"


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
  if (!packed::can_pack(n_rows, n_columns) || matrix.size() != static_cast<std::size_t>(n_rows * n_blocks) * kernels.block_bytes ||
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

}  // namespace
}  // namespace hostler

NB_MODULE(_kernels, module) {
  using namespace hostler;
  module.doc() = "Products of quantized matrices for llama.cpp's CPU backend. Import hostler_llamacpp.kernels instead.";
  nb::exception<NotAttached>(module, "NotAttached");
  module.def("attach", attach_packed_buffers, "llama_library"_a,
             "Have matrices packed from now on; which types, with which instructions. NotAttached says why not.");
  module.def("kernels", kernels, "Pairs of a type and an instruction set that this processor can run.");
  module.def("multiply", multiply, "type"_a, "instruction_set"_a, "matrix"_a, "vectors"_a, "n_rows"_a,
             "Products (n_vectors, n_rows) of a matrix, as files hold it, and float32 vectors: for tests.");
}
