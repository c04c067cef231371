// Every kernel this processor can run, on memory that ends where it must: the sanitizers see each byte beyond.
// That the products are right is test_kernels.py's; here they are compared between each other and with a plain loop.
#include <cmath>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "packed.h"

using namespace hostler::packed;

namespace {

constexpr std::uint16_t kOneHalf = 0x3800;   // float16
constexpr std::uint16_t kMinusOne = 0xbc00;  // float16

/// A matrix of random values whose steps are 0.5 and whose offsets, where it has some, are -1.
std::vector<unsigned char> drawn_matrix(const Kernels& kernels, std::int64_t n_rows, std::int64_t n_blocks) {
  std::mt19937 random(7);
  std::vector<unsigned char> matrix(static_cast<std::size_t>(n_rows * n_blocks) * kernels.block_bytes);
  for (unsigned char& byte : matrix) byte = static_cast<unsigned char>(random());
  for (std::size_t i = 0; i < matrix.size(); i += kernels.block_bytes) {
    std::memcpy(&matrix[i], &kOneHalf, 2);
    if (kernels.block_bytes == sizeof(Q4_1::Block)) std::memcpy(&matrix[i + 2], &kMinusOne, 2);
  }
  return matrix;
}

float weight(const Kernels& kernels, const unsigned char* block, int i) {
  if (kernels.block_bytes == sizeof(Q8_0::Block)) return 0.5f * static_cast<float>(static_cast<signed char>(block[2 + i]));
  const int pair = block[4 + i % 16];
  return 0.5f * static_cast<float>(i < 16 ? pair & 15 : pair >> 4) - 1.0f;
}

struct Product {
  std::vector<unsigned char> tiles;
  std::vector<Activations> rounded;
  std::vector<float> products;
  std::vector<float> expected;
};

/// Vectors hold whole numbers up to 127, and 127 itself in every block, so that rounding changes none.
Product multiplied(const Kernels& kernels, std::int64_t n_rows, std::int64_t n_blocks, std::int64_t n_vectors, int n_threads) {
  const auto matrix = drawn_matrix(kernels, n_rows, n_blocks);
  Product result;
  result.tiles.resize(matrix.size());
  kernels.pack(matrix.data(), n_rows, n_blocks, result.tiles.data());
  std::mt19937 random(9);
  const std::int64_t n_columns = n_blocks * kBlockValues;
  std::vector<float> vectors(static_cast<std::size_t>(n_vectors * n_columns));
  for (std::size_t i = 0; i < vectors.size(); ++i) {
    vectors[i] = i % kBlockValues == 3 ? 127.0f : static_cast<float>(static_cast<int>(random() % 255) - 127);
  }
  result.rounded.resize(rounded_bytes(n_vectors, n_columns) / sizeof(Activations));
  for (std::int64_t v = 0; v < n_vectors; ++v) {
    kernels.round(vectors.data() + v * n_columns, n_blocks, v, result.rounded.data());
  }
  result.products.resize(static_cast<std::size_t>(n_vectors * n_rows));
  std::vector<std::thread> threads;
  const std::int64_t n_tiles = n_rows / kTileRows;
  for (int t = 0; t < n_threads; ++t) {
    threads.emplace_back([&, t] {
      kernels.multiply(result.tiles.data(), n_blocks, n_tiles * t / n_threads, n_tiles * (t + 1) / n_threads,
                       result.rounded.data(), n_vectors, result.products.data(), n_rows);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::int64_t v = 0; v < n_vectors; ++v) {
    for (std::int64_t r = 0; r < n_rows; ++r) {
      double sum = 0;
      for (std::int64_t i = 0; i < n_columns; ++i) {
        const auto number = static_cast<std::size_t>(r * n_blocks + i / kBlockValues);
        const unsigned char* block = matrix.data() + number * kernels.block_bytes;
        sum += static_cast<double>(weight(kernels, block, static_cast<int>(i % kBlockValues))) *
               static_cast<double>(vectors[static_cast<std::size_t>(v * n_columns + i)]);
      }
      result.expected.push_back(static_cast<float>(sum));
    }
  }
  return result;
}

}  // namespace

TEST("every number of vectors is multiplied, and nothing beyond is touched") {
  for (const Kernels* kernels : all_kernels()) {
    if (!can_run(*kernels)) continue;
    for (std::int64_t n_vectors = 1; n_vectors <= 17; ++n_vectors) {
      const Product product = multiplied(*kernels, 48, 3, n_vectors, 1);
      for (std::size_t i = 0; i < product.products.size(); ++i) {
        CHECK(std::fabs(product.products[i] - product.expected[i]) <= 0.01f * (1.0f + std::fabs(product.expected[i])));
      }
    }
  }
}

TEST("threads that share the tiles write each product once") {
  for (const Kernels* kernels : all_kernels()) {
    if (!can_run(*kernels)) continue;
    const Product product = multiplied(*kernels, 80, 2, 9, 3);
    for (std::size_t i = 0; i < product.products.size(); ++i) {
      CHECK(std::fabs(product.products[i] - product.expected[i]) <= 0.01f * (1.0f + std::fabs(product.expected[i])));
    }
  }
}

TEST("shapes without whole tiles or blocks cannot be packed") {
  CHECK(can_pack(16, 32));
  CHECK(!can_pack(8, 32));
  CHECK(!can_pack(16, 48));
  CHECK(!can_pack(0, 32));
  CHECK(!can_pack(16, 0));
}

CHECK_MAIN()
