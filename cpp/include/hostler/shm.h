// One block of memory that two processes see: the host creates it, the worker attaches it.
//
// Linux:   a memfd. It has no name, so nothing can be left behind: the last closed descriptor frees it, whoever was
//          killed. Its size is sealed, so no peer can shrink it under us (which would turn our next access into SIGBUS).
// macOS:   shm_open under a random name, unlinked by whoever attaches it first, at the latest by its creator's end.
// Windows: a named file mapping backed by the page file; it goes with its last handle.
//
// Ownership: the object owns its mapping and its descriptor or handle; move-only. No thread may touch `data()` once
// the object is gone.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace hostler {

class SharedMemory {
 public:
  /// New zero-filled memory of `bytes` bytes. Throws std::system_error.
  static SharedMemory create(std::size_t bytes);

  /// The memory that `handle_for_child()` of another process named ("fd:5", "name:..."). A descriptor passed so stays
  /// the caller's and is marked close-on-exec, so that it does not leak into the worker's own children.
  /// Throws std::invalid_argument for a handle that has neither form, std::system_error when it cannot be mapped.
  static SharedMemory attach(std::string_view handle);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

  /// What a child process passes to attach(): "fd:N" (N must be passed on, see fd()) or "name:...".
  std::string handle_for_child() const;

  /// The descriptor that the child must inherit; -1 where memory goes by name.
  int fd() const noexcept { return fd_; }

  /// The name shared by all processes that map this memory; empty where memory goes by descriptor.
  const std::string& name() const noexcept { return name_; }

 private:
  SharedMemory() = default;
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  int fd_ = -1;                // Linux: our own close-on-exec descriptor
  void* os_handle_ = nullptr;  // Windows: the mapping's HANDLE
  std::string name_;           // macOS, Windows
  bool owns_name_ = false;     // macOS: unlink when released
};

}  // namespace hostler
