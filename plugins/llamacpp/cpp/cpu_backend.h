// How llama.cpp's CPU backend comes to use our products of quantized matrices and our attention.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace hostler {

/// ggml is not the one whose layouts are known: this process goes on with its own products.
class NotAttached : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// From now on models that this process loads have the matrices packed that there are kernels for, and attention is ours where
/// there is a kernel for it; returns the types of matrices with their instruction sets, such as "q4_1 avx512_vnni". Nothing
/// where there are none for this processor.
///
/// To be called before the first model is loaded, by one thread; a second call changes nothing. `llama_library` is the
/// path that llama.cpp's library was loaded from.
///
/// Throws NotAttached.
std::vector<std::string> attach_to_cpu_backend(const std::string& llama_library);

}  // namespace hostler
