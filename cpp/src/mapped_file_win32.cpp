// Mapped files on Windows. Compiled, never run here.
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <algorithm>
#include <string>
#include <system_error>

#include "hostler/mapped_file.h"

namespace hostler {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(static_cast<int>(::GetLastError()), std::system_category(), what);
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  std::shared_ptr<MappedFile> mapped(new MappedFile(RandomAccessFile(path)));
  if (mapped->size_bytes() == 0) throw std::invalid_argument(quoted(path) + " is empty");
  mapped->mapping_handle_ = ::CreateFileMappingW(mapped->file_.os_handle(), nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapped->mapping_handle_ == nullptr) fail("cannot map " + quoted(path));
  mapped->address_ = ::MapViewOfFile(mapped->mapping_handle_, FILE_MAP_READ, 0, 0, 0);
  if (mapped->address_ == nullptr) fail("cannot map " + quoted(path));
  return mapped;
}

MappedFile::~MappedFile() {
  if (address_ != nullptr) ::UnmapViewOfFile(address_);
  if (mapping_handle_ != nullptr) ::CloseHandle(mapping_handle_);
}

// Windows tells about our working set only, not about its file cache.
std::uint64_t MappedFile::resident_bytes(std::uint64_t /*offset*/, std::uint64_t /*length*/) const { return 0; }

std::optional<double> MappedFile::residency() const { return std::nullopt; }

void MappedFile::start_reading(std::uint64_t /*offset*/, std::uint64_t /*length*/) const noexcept {}

void MappedFile::pin() {
  // VirtualLock is bounded by the minimum working set, which starts at about 200 kB.
  SIZE_T smallest = 0;
  SIZE_T largest = 0;
  const auto bytes = static_cast<SIZE_T>(size_bytes());
  if (::GetProcessWorkingSetSize(::GetCurrentProcess(), &smallest, &largest) != 0) {
    ::SetProcessWorkingSetSize(::GetCurrentProcess(), smallest + bytes, std::max(largest, smallest + 2 * bytes));
  }
  if (::VirtualLock(address_, bytes) == 0) {
    fail("cannot pin " + quoted(file_.path()) + " (" + std::to_string(size_bytes()) + " bytes) in memory");
  }
}

void MappedFile::unpin() noexcept { ::VirtualUnlock(address_, static_cast<SIZE_T>(size_bytes())); }

void MappedFile::drop() noexcept {
  // Unlocking what is not locked takes the pages out of our working set; the file cache ages them by itself.
  ::VirtualUnlock(address_, static_cast<SIZE_T>(size_bytes()));
}

}  // namespace hostler

#endif
