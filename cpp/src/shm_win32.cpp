// Shared memory on Windows: a named mapping of the page file. Compiled, never run here; see docs/ring-format.md.
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <cstdint>
#include <random>
#include <stdexcept>
#include <system_error>

#include "hostler/shm.h"

namespace hostler {
namespace {

[[noreturn]] void fail(const char* what) {
  throw std::system_error(static_cast<int>(::GetLastError()), std::system_category(), what);
}

std::string random_name() {
  std::random_device device;
  constexpr char kHex[] = "0123456789abcdef";
  std::string name = "Local\\hostler-ring-";  // Local: this logon session only
  for (int i = 0; i < 32; ++i) name += kHex[device() & 15U];
  return name;
}

}  // namespace

SharedMemory SharedMemory::create(std::size_t bytes) {
  SharedMemory memory;
  memory.name_ = random_name();
  const auto wide = static_cast<std::uint64_t>(bytes);
  HANDLE mapping = ::CreateFileMappingA(INVALID_HANDLE_VALUE, nullptr, PAGE_READWRITE, static_cast<DWORD>(wide >> 32U),
                                        static_cast<DWORD>(wide), memory.name_.c_str());
  if (mapping == nullptr) fail("cannot create the token ring's shared memory (CreateFileMapping)");
  memory.os_handle_ = mapping;
  if (::GetLastError() == ERROR_ALREADY_EXISTS) {
    throw std::runtime_error("another process already made shared memory of the name " + memory.name_);
  }
  memory.data_ = static_cast<std::byte*>(::MapViewOfFile(mapping, FILE_MAP_ALL_ACCESS, 0, 0, bytes));
  if (memory.data_ == nullptr) fail("cannot map the token ring's shared memory");
  memory.size_ = bytes;
  return memory;
}

SharedMemory SharedMemory::attach(std::string_view handle) {
  constexpr std::string_view kPrefix = "name:";
  if (handle.substr(0, kPrefix.size()) != kPrefix) {
    throw std::invalid_argument("'" + std::string(handle) +
                                "' is no shared-memory handle; pass on what handle_for_child() returned in the host");
  }
  SharedMemory memory;
  memory.name_ = std::string(handle.substr(kPrefix.size()));
  HANDLE mapping = ::OpenFileMappingA(FILE_MAP_ALL_ACCESS, FALSE, memory.name_.c_str());
  if (mapping == nullptr) fail("cannot attach the token ring's shared memory (OpenFileMapping)");
  memory.os_handle_ = mapping;
  memory.data_ = static_cast<std::byte*>(::MapViewOfFile(mapping, FILE_MAP_ALL_ACCESS, 0, 0, 0));
  if (memory.data_ == nullptr) fail("cannot map the token ring's shared memory");
  MEMORY_BASIC_INFORMATION information{};
  if (::VirtualQuery(memory.data_, &information, sizeof information) == 0) fail("cannot read the ring's size");
  memory.size_ = information.RegionSize;  // rounded up to whole pages; the segment's header has the exact size
  return memory;
}

std::string SharedMemory::handle_for_child() const { return "name:" + name_; }

void SharedMemory::release() noexcept {
  if (data_ != nullptr) ::UnmapViewOfFile(data_);
  if (os_handle_ != nullptr) ::CloseHandle(os_handle_);
  data_ = nullptr;
  os_handle_ = nullptr;
}

}  // namespace hostler

#endif
