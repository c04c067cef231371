// What needs no special instructions: the packing, and what this processor can run.
#include "packed.h"

#include <cstring>

#include "processor.h"

namespace hostler::packed {
namespace {

template <class Type, class PackRow>
void pack(const void* from, std::int64_t n_rows, std::int64_t n_blocks, void* to, PackRow pack_row) {
  const auto* blocks = static_cast<const typename Type::Block*>(from);
  auto* tile = static_cast<typename Type::Tile*>(to);
  for (std::int64_t first = 0; first < n_rows; first += kTileRows) {
    for (std::int64_t b = 0; b < n_blocks; ++b, ++tile) {
      for (int r = 0; r < kTileRows; ++r) {
        const typename Type::Block& block = blocks[(first + r) * n_blocks + b];
        tile->d[r] = block.d;
        pack_row(block, r, *tile);
      }
    }
  }
}

#ifdef HOSTLER_X86
constexpr const Kernels* kAll[] = {
    &kQ4_1Avx512,  &kQ8_0Avx512,
#ifdef HOSTLER_AVX_VNNI
    &kQ4_1AvxVnni, &kQ8_0AvxVnni,
#endif
    &kQ4_1Avx2,    &kQ8_0Avx2,
};
#endif

}  // namespace

void pack_q4_1(const void* blocks, std::int64_t n_rows, std::int64_t n_blocks, void* tiles) {
  pack<Q4_1>(blocks, n_rows, n_blocks, tiles, [](const Q4_1::Block& block, int r, Q4_1::Tile& tile) {
    tile.m[r] = block.m;
    for (int i = 0; i < 4; ++i) std::memcpy(tile.q[i] + 4 * r, block.q + 4 * i, 4);
  });
}

void pack_q8_0(const void* blocks, std::int64_t n_rows, std::int64_t n_blocks, void* tiles) {
  pack<Q8_0>(blocks, n_rows, n_blocks, tiles, [](const Q8_0::Block& block, int r, Q8_0::Tile& tile) {
    for (int i = 0; i < 8; ++i) {
      std::uint32_t four;
      std::memcpy(&four, block.q + 4 * i, 4);
      four ^= 0x80808080u;
      std::memcpy(tile.q[i] + 4 * r, &four, 4);
    }
  });
}

#ifdef HOSTLER_X86

KernelsList all_kernels() noexcept { return {kAll, sizeof kAll / sizeof *kAll}; }

bool can_run(const Kernels& kernels) noexcept {
  if (std::strcmp(kernels.instruction_set, "avx512_vnni") == 0) return processor::has_avx512_vnni();
  if (std::strcmp(kernels.instruction_set, "avx_vnni") == 0) return processor::has_avx_vnni();
  return processor::has_avx2();
}

#else

KernelsList all_kernels() noexcept { return {nullptr, 0}; }

bool can_run(const Kernels&) noexcept { return false; }

#endif

}  // namespace hostler::packed
