// What ggml keeps to itself: the layouts through which its CPU backend lets a buffer type bring its own products.
//
// They are those of ggml 0.25.3, the version that llama-cpp-python 0.3.36 holds, and may change with any other; attach()
// refuses every other. When kVersion is moved, compare with ggml.h, ggml-backend-impl.h, ggml-cpu/traits.h and
// ggml-cpu/ggml-cpu-impl.h there. Names are ggml's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hostler::ggml {

constexpr const char* kVersion = "0.25.3";
constexpr int kBackendApi = 2;

constexpr int kTypeF32 = 0;
constexpr int kTypeF16 = 1;
constexpr int kTypeQ8_0 = 8;
constexpr int kOpMulMat = 29;
constexpr int kOpFlashAttnExt = 74;
constexpr int kStatusSuccess = 0;

struct Buffer;
struct BufferType;
struct Threadpool;

struct Tensor {
  int type;
  Buffer* buffer;
  std::int64_t ne[4];
  std::size_t nb[4];
  int op;
  std::int32_t op_params[16];
  std::int32_t flags;
  Tensor* src[10];
  Tensor* view_src;
  std::size_t view_offs;
  void* data;
  char name[64];
  void* extra;
  char padding[8];
};

struct BufferTypeInterface {
  const char* (*get_name)(BufferType*);
  Buffer* (*alloc_buffer)(BufferType*, std::size_t size);
  std::size_t (*get_alignment)(BufferType*);
  std::size_t (*get_max_size)(BufferType*);
  std::size_t (*get_alloc_size)(BufferType*, const Tensor*);
  bool (*is_host)(BufferType*);
};

struct BufferType {
  BufferTypeInterface iface;
  void* device;
  void* context;
};

struct BufferInterface {
  void (*free_buffer)(Buffer*);
  void* (*get_base)(Buffer*);
  int (*init_tensor)(Buffer*, Tensor*);
  void (*memset_tensor)(Buffer*, Tensor*, std::uint8_t value, std::size_t offset, std::size_t size);
  void (*set_tensor)(Buffer*, Tensor*, const void* data, std::size_t offset, std::size_t size);
  void (*get_tensor)(Buffer*, const Tensor*, void* data, std::size_t offset, std::size_t size);
  void (*set_tensor_2d)(Buffer*, Tensor*, const void*, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t);
  void (*get_tensor_2d)(Buffer*, const Tensor*, void*, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t);
  bool (*cpy_tensor)(Buffer*, const Tensor* from, Tensor* to);
  void (*clear)(Buffer*, std::uint8_t value);
  void (*reset)(Buffer*);
};

struct Buffer {
  BufferInterface iface;
  BufferType* buft;
  void* context;
  std::size_t size;
  int usage;
};

struct ComputeParams {
  int ith;
  int nth;
  std::size_t wsize;
  void* wdata;
  Threadpool* threadpool;
  bool use_ref;
};

/// ggml::cpu::tensor_traits: the same virtual functions in the same order, which is all that ggml's calls go by.
class TensorTraits {
 public:
  virtual ~TensorTraits() = default;
  virtual bool work_size(int n_threads, const Tensor* op, std::size_t& size) = 0;
  virtual bool compute_forward(ComputeParams* params, Tensor* op) = 0;
};

/// ggml::cpu::extra_buffer_type, likewise.
class ExtraBufferType {
 public:
  virtual ~ExtraBufferType() = default;
  virtual bool supports_op(void* device, const Tensor* op) = 0;
  virtual TensorTraits* get_tensor_traits(const Tensor* op) = 0;
};

using BufferTypes = std::vector<BufferType*>;

}  // namespace hostler::ggml
