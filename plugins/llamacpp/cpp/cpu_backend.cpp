// llama.cpp asks its CPU backend for "extra" buffer types, tries each with each matrix, and puts a matrix into the first one
// that says it can multiply it; the product is then left to the traits that the type names. ggml's own repacked types come in
// the same way. Ours is put behind them, so that it gets only what they do not want. Before it computes an operation, whatever
// it is, the backend asks these types for traits that do it; so attention comes in as well, which has no matrix of ours.
//
// Ownership: the type, its traits and the table of ggml's functions live as long as the process. ggml's threads call
// compute_forward together, all with the same operation; everything else is called by the thread that loads.
#include "cpu_backend.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "attention.h"
#include "ggml_layout.h"
#include "packed.h"

#ifdef HOSTLER_X86
#include <dlfcn.h>
#endif

namespace hostler {

#ifndef HOSTLER_X86

std::vector<std::string> attach_to_cpu_backend(const std::string&) { return {}; }

#else

namespace {

using ggml::Buffer;
using ggml::BufferType;
using ggml::ComputeParams;
using ggml::Tensor;

constexpr std::size_t kAlignment = 64;
constexpr std::int64_t kMostRoundedByEach = 4;
// So few vectors are rounded by every thread for itself: that takes less than waiting for each other.

/// ggml's functions that are needed here.
struct Functions {
  ggml::BufferTypes& (*extra_buffer_types)();
  BufferType* (*cpu_buffer_type)();
  Buffer* (*alloc_buffer)(BufferType*, std::size_t);
  bool (*is_host)(BufferType*);
  void* (*cpu_reg)();
  void* (*reg_dev_get)(void* reg, std::size_t index);
  void (*barrier)(ggml::Threadpool*);
  void (*set_chunk)(ggml::Threadpool*, int);
  int (*add_chunk)(ggml::Threadpool*, int);
};

Functions g_ggml;

/// The fastest of each type; empty until attached.
std::vector<packed::Kernels> g_kernels;

/// Where an operation's own memory begins, aligned: up to kAlignment behind what ggml gives.
char* work_of(const ComputeParams& params) {
  const auto address = reinterpret_cast<std::uintptr_t>(params.wdata);
  return reinterpret_cast<char*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

std::int64_t vectors_of(const Tensor& tensor) { return tensor.ne[1] * tensor.ne[2] * tensor.ne[3]; }

const float* vector_at(const Tensor& tensor, std::int64_t index) {
  const std::int64_t plane = index / tensor.ne[1];
  const std::size_t offset = static_cast<std::size_t>(index % tensor.ne[1]) * tensor.nb[1] +
                             static_cast<std::size_t>(plane % tensor.ne[2]) * tensor.nb[2] +
                             static_cast<std::size_t>(plane / tensor.ne[2]) * tensor.nb[3];
  return reinterpret_cast<const float*>(static_cast<const char*>(tensor.data) + offset);
}

class PackedProduct final : public ggml::TensorTraits {
 public:
  explicit PackedProduct(const packed::Kernels& kernels) : kernels_(kernels) {}

  const packed::Kernels& kernels() const { return kernels_; }

  bool work_size(int n_threads, const Tensor* op, std::size_t& size) override {
    const std::int64_t n_vectors = vectors_of(*op->src[1]);
    const std::size_t n_copies = n_vectors <= kMostRoundedByEach ? static_cast<std::size_t>(n_threads) : 1;
    size = n_copies * packed::rounded_bytes(n_vectors, op->src[0]->ne[0]) + kAlignment;
    return true;
  }

  bool compute_forward(ComputeParams* params, Tensor* op) override {
    const Tensor& matrix = *op->src[0];
    const Tensor& vectors = *op->src[1];
    const std::int64_t n_blocks = matrix.ne[0] / packed::kBlockValues;
    const std::int64_t n_tiles = matrix.ne[1] / packed::kTileRows;
    const std::int64_t n_vectors = vectors_of(vectors);
    const void* tiles = matrix.data;
    auto* products = static_cast<float*>(op->data);
    const std::int64_t stride = matrix.ne[1];  // a product's tensor is made by ggml, without gaps

    if (n_vectors <= kMostRoundedByEach) {
      const std::size_t n_bytes = packed::rounded_bytes(n_vectors, matrix.ne[0]);
      char* own = work_of(*params) + static_cast<std::size_t>(params->ith) * n_bytes;
      auto* rounded = reinterpret_cast<packed::Activations*>(own);
      for (std::int64_t v = 0; v < n_vectors; ++v) kernels_.round(vector_at(vectors, v), n_blocks, v, rounded);
      const std::int64_t first = n_tiles * params->ith / params->nth;
      const std::int64_t last = n_tiles * (params->ith + 1) / params->nth;
      kernels_.multiply(tiles, n_blocks, first, last, rounded, n_vectors, products, stride);
      return true;
    }

    auto* rounded = reinterpret_cast<packed::Activations*>(work_of(*params));
    for (std::int64_t v = params->ith; v < n_vectors; v += params->nth) {
      kernels_.round(vector_at(vectors, v), n_blocks, v, rounded);
    }
    if (params->ith == 0) g_ggml.set_chunk(params->threadpool, params->nth);
    g_ggml.barrier(params->threadpool);
    // Several pieces a thread: whoever is held up by a neighbour leaves more of them to the others.
    const std::int64_t n_pieces = n_tiles < 8 * params->nth ? n_tiles : 8 * params->nth;
    for (std::int64_t piece = params->ith; piece < n_pieces; piece = g_ggml.add_chunk(params->threadpool, 1)) {
      const std::int64_t first = n_tiles * piece / n_pieces;
      const std::int64_t last = n_tiles * (piece + 1) / n_pieces;
      kernels_.multiply(tiles, n_blocks, first, last, rounded, n_vectors, products, stride);
    }
    return true;
  }

 private:
  packed::Kernels kernels_;
};

/// GGML_OP_FLASH_ATTN_EXT where keys and values are float16 or Q8_0 and nothing unusual is asked for.
class Attention final : public ggml::TensorTraits {
 public:
  static bool can_attend(const Tensor* op) {
    const Tensor* mask = op->src[3];
    const Tensor& q = *op->src[0];
    const Tensor& k = *op->src[1];
    const Tensor& v = *op->src[2];
    const bool fits = mask == nullptr || (mask->ne[0] >= k.ne[1] && mask->ne[1] >= q.ne[1] && mask->ne[2] == 1 &&
                                          (mask->ne[3] == 1 || mask->ne[3] == q.ne[3]) && mask->nb[0] == 2);
    float max_bias;
    float softcap;
    std::memcpy(&max_bias, op->op_params + 1, sizeof max_bias);
    std::memcpy(&softcap, op->op_params + 2, sizeof softcap);
    return fits && op->src[4] == nullptr && max_bias == 0.0f && softcap == 0.0f && q.type == ggml::kTypeF32 &&
           q.nb[0] == sizeof(float) && has_kernel(k) && v.type == k.type && v.nb[0] == k.nb[0] && k.ne[0] == v.ne[0] &&
           k.ne[1] == v.ne[1] && k.ne[2] == v.ne[2] && q.ne[3] == k.ne[3] && attention::can_attend(problem_of(op));
  }

  bool work_size(int n_threads, const Tensor* op, std::size_t& size) override {
    const attention::Plan plan = attention::make_plan(problem_of(op), n_threads);
    size = kAlignment + plan.scratch_bytes * static_cast<std::size_t>(n_threads) + plan.partial_bytes;
    return true;
  }

  bool compute_forward(ComputeParams* params, Tensor* op) override {
    const attention::Problem problem = problem_of(op);
    const attention::Plan plan = attention::make_plan(problem, params->nth);
    const attention::Kernel& kernel = *attention::kernels()[0];
    char* memory = work_of(*params);
    char* scratch = memory + plan.scratch_bytes * static_cast<std::size_t>(params->ith);
    auto* partials = reinterpret_cast<float*>(memory + plan.scratch_bytes * static_cast<std::size_t>(params->nth));
    if (params->ith == 0) g_ggml.set_chunk(params->threadpool, params->nth);
    g_ggml.barrier(params->threadpool);
    for (std::int64_t unit = params->ith; unit < plan.n_units; unit = g_ggml.add_chunk(params->threadpool, 1)) {
      kernel.attend(problem, plan, unit, unit + params->nth, scratch, partials);
    }
    if (plan.is_split) {
      g_ggml.barrier(params->threadpool);
      kernel.merge(problem, plan, params->ith, params->nth, partials);
    }
    return true;
  }

 private:
  /// Dense within a row: float16, or blocks of 32 and their factor.
  static bool has_kernel(const Tensor& k) {
    return (k.type == ggml::kTypeF16 && k.nb[0] == 2) || (k.type == ggml::kTypeQ8_0 && k.nb[0] == 34);
  }

  static attention::View view_of(const Tensor* tensor) {
    if (tensor == nullptr) return {};
    return {static_cast<const char*>(tensor->data), tensor->nb[1], tensor->nb[2], tensor->ne[3] == 1 ? 0 : tensor->nb[3]};
  }

  static attention::Problem problem_of(const Tensor* op) {
    attention::Problem problem{};
    const Tensor& q = *op->src[0];
    const Tensor& k = *op->src[1];
    problem.width = k.ne[0];
    problem.n_heads = q.ne[2];
    problem.n_kv_heads = k.ne[2];
    problem.n_tokens = q.ne[1];
    problem.n_positions = k.ne[1];
    problem.n_streams = q.ne[3];
    std::memcpy(&problem.scale, op->op_params, sizeof problem.scale);
    problem.is_q8_0 = k.type == ggml::kTypeQ8_0;
    problem.q = view_of(op->src[0]);
    problem.k = view_of(op->src[1]);
    problem.v = view_of(op->src[2]);
    problem.mask = view_of(op->src[3]);
    problem.out = static_cast<float*>(op->data);
    return problem;
  }
};

BufferType* packed_buffer_type();

bool is_packed(const Tensor* tensor) { return tensor->buffer != nullptr && tensor->buffer->buft == packed_buffer_type(); }

class PackedBufferType final : public ggml::ExtraBufferType {
 public:
  PackedBufferType() : products_(g_kernels.begin(), g_kernels.end()) {}

  bool supports_op(void*, const Tensor* op) override {
    if (op->op != ggml::kOpMulMat || !is_packed(op->src[0])) return false;
    const Tensor& matrix = *op->src[0];
    const Tensor& vectors = *op->src[1];
    return product_of(matrix) != nullptr && matrix.ne[2] == 1 && matrix.ne[3] == 1 &&
           packed::can_pack(matrix.ne[1], matrix.ne[0]) && vectors.type == ggml::kTypeF32 && vectors.nb[0] == sizeof(float) &&
           (vectors.buffer == nullptr || g_ggml.is_host(vectors.buffer->buft));
  }

  ggml::TensorTraits* get_tensor_traits(const Tensor* op) override {
    if (op->op == ggml::kOpFlashAttnExt) return Attention::can_attend(op) ? &attention_ : nullptr;
    return op->op == ggml::kOpMulMat && is_packed(op->src[0]) ? product_of(*op->src[0]) : nullptr;
  }

  PackedProduct* product_of(const Tensor& matrix) {
    for (PackedProduct& product : products_) {
      if (product.kernels().ggml_type == matrix.type) return &product;
    }
    return nullptr;
  }

 private:
  std::vector<PackedProduct> products_;
  Attention attention_;
};

int init_tensor(Buffer*, Tensor*) { return ggml::kStatusSuccess; }

void set_tensor(Buffer*, Tensor* tensor, const void* data, std::size_t offset, std::size_t size) {
  auto* type = static_cast<PackedBufferType*>(static_cast<ggml::ExtraBufferType*>(packed_buffer_type()->context));
  const PackedProduct* product = type->product_of(*tensor);
  const std::int64_t n_blocks = tensor->ne[0] / packed::kBlockValues;
  // llama.cpp sets a weight whole, once; ggml's packed types die of anything else, too.
  if (product == nullptr || offset != 0 ||
      size != static_cast<std::size_t>(tensor->ne[1] * n_blocks) * product->kernels().block_bytes) {
    std::fprintf(stderr, "hostler: %s is set in parts, which packed matrices cannot be; this is a bug\n", tensor->name);
    std::abort();
  }
  product->kernels().pack(data, tensor->ne[1], n_blocks, tensor->data);
}

const char* get_name(BufferType*) { return "CPU_HOSTLER"; }

std::size_t get_alignment(BufferType*) { return kAlignment; }

Buffer* alloc_buffer(BufferType* type, std::size_t size) {
  Buffer* buffer = g_ggml.alloc_buffer(g_ggml.cpu_buffer_type(), size);
  if (buffer == nullptr) return nullptr;
  buffer->buft = type;
  buffer->iface.init_tensor = init_tensor;
  buffer->iface.set_tensor = set_tensor;
  buffer->iface.get_tensor = nullptr;  // what is packed is not given back
  buffer->iface.cpy_tensor = nullptr;
  return buffer;
}

BufferType* packed_buffer_type() {
  static PackedBufferType extra;
  static BufferType type{{get_name, alloc_buffer, get_alignment, nullptr, nullptr, nullptr},
                         g_ggml.reg_dev_get(g_ggml.cpu_reg(), 0),
                         static_cast<ggml::ExtraBufferType*>(&extra)};
  return &type;
}

/// A library that is loaded already, with its functions and those of the libraries it was linked with.
class Library {
 public:
  explicit Library(const std::string& path) : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
    if (handle_ == nullptr) throw NotAttached(path + " is not loaded");
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() { dlclose(handle_); }  // its first loader keeps it

  template <class Function>
  void find(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(dlsym(handle_, name));
    if (function == nullptr) throw NotAttached(path_ + " has no " + name);
  }

 private:
  std::string path_;
  void* handle_;
};

/// Throws where ggml is not the one whose layouts are known.
void check_version(const Library& llama, void* cpu_reg) {
  const char* (*version)();
  const char* (*type_name)(int);
  const char* (*op_name)(int);
  llama.find(version, "ggml_version");
  llama.find(type_name, "ggml_type_name");
  llama.find(op_name, "ggml_op_name");
  if (std::strcmp(version(), ggml::kVersion) != 0) {
    throw NotAttached(std::string("ggml is ") + version() + ", and the layouts of " + ggml::kVersion + " are known");
  }
  if (*static_cast<const int*>(cpu_reg) != ggml::kBackendApi || std::strcmp(op_name(ggml::kOpMulMat), "MUL_MAT") != 0 ||
      std::strcmp(op_name(ggml::kOpFlashAttnExt), "FLASH_ATTN_EXT") != 0) {
    throw NotAttached(std::string("ggml says that it is ") + version() + ", but its layouts are others");
  }
}

std::vector<packed::Kernels> fastest_kernels() {
  std::vector<packed::Kernels> found;
  for (const packed::Kernels* kernels : packed::all_kernels()) {
    const auto is_same = [&](const packed::Kernels& other) { return other.ggml_type == kernels->ggml_type; };
    if (packed::can_run(*kernels) && std::none_of(found.begin(), found.end(), is_same)) found.push_back(*kernels);
  }
  return found;
}

std::vector<std::string> names() {
  std::vector<std::string> names;
  for (const packed::Kernels& kernels : g_kernels) {
    names.push_back(std::string(kernels.type) + " " + kernels.instruction_set);
  }
  return names;
}

}  // namespace

std::vector<std::string> attach_to_cpu_backend(const std::string& llama_library) {
  if (!g_kernels.empty()) return names();
  const std::vector<packed::Kernels> found = fastest_kernels();
  if (found.empty()) return {};
  const Library llama(llama_library);
  llama.find(g_ggml.cpu_reg, "ggml_backend_cpu_reg");
  check_version(llama, g_ggml.cpu_reg());
  llama.find(g_ggml.extra_buffer_types, "_Z39ggml_backend_cpu_get_extra_buffer_typesv");
  llama.find(g_ggml.barrier, "ggml_barrier");
  llama.find(g_ggml.set_chunk, "ggml_threadpool_chunk_set");
  llama.find(g_ggml.add_chunk, "ggml_threadpool_chunk_add");
  llama.find(g_ggml.cpu_buffer_type, "ggml_backend_cpu_buffer_type");
  llama.find(g_ggml.alloc_buffer, "ggml_backend_buft_alloc_buffer");
  llama.find(g_ggml.is_host, "ggml_backend_buft_is_host");
  llama.find(g_ggml.reg_dev_get, "ggml_backend_reg_dev_get");
  g_kernels = found;
  g_ggml.extra_buffer_types().push_back(packed_buffer_type());
  return names();
}

#endif

}  // namespace hostler
