// The buffer type that gives llama.cpp's CPU backend our products of quantized matrices.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace hostler {

/// ggml is not the one whose layouts are known: this process goes on with its own products.
class NotAttached : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// From now on models that this process loads have the matrices packed that there are kernels for; returns what these are:
/// a type and an instruction set each, such as "q4_1 avx512_vnni". Nothing where there are none for this processor.
///
/// To be called before the first model is loaded, by one thread; a second call changes nothing. `llama_library` is the
/// path that llama.cpp's library was loaded from.
///
/// Throws NotAttached.
std::vector<std::string> attach_packed_buffers(const std::string& llama_library);

}  // namespace hostler
