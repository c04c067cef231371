// What this processor, and the system for it, can do: the sets of instructions that the kernels are compiled for.
#pragma once

namespace hostler::processor {

/// AVX2 with FMA and F16C.
bool has_avx2() noexcept;

/// The same and AVX-VNNI.
bool has_avx_vnni() noexcept;

/// AVX-512 F, BW and VL.
bool has_avx512() noexcept;

/// The same and VNNI.
bool has_avx512_vnni() noexcept;

}  // namespace hostler::processor
