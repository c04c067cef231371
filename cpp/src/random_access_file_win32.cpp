// Files read at any offset on Windows. Compiled, never run here.
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <algorithm>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "hostler/random_access_file.h"

namespace hostler {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(static_cast<int>(::GetLastError()), std::system_category(), what);
}

std::uint64_t joined(DWORD high, DWORD low) { return (static_cast<std::uint64_t>(high) << 32U) | low; }

}  // namespace

std::string quoted(const std::filesystem::path& path) {
  const std::u8string text = path.u8string();
  return "'" + std::string(text.begin(), text.end()) + "'";
}

FileIdentity RandomAccessFile::identify(const std::filesystem::path& path) { return RandomAccessFile(path).identity(); }

RandomAccessFile::RandomAccessFile(const std::filesystem::path& path) : path_(path) {
  // FILE_SHARE_DELETE: a user may delete or replace a model that we only keep warm.
  HANDLE file = ::CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                              OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) fail("cannot open " + quoted(path));
  BY_HANDLE_FILE_INFORMATION information{};
  if (::GetFileType(file) != FILE_TYPE_DISK || ::GetFileInformationByHandle(file, &information) == 0) {
    ::CloseHandle(file);
    throw std::invalid_argument(quoted(path) + " is no regular file");
  }
  handle_ = file;
  const std::uint64_t ticks =  // of 100 ns
      joined(information.ftLastWriteTime.dwHighDateTime, information.ftLastWriteTime.dwLowDateTime);
  identity_ = {information.dwVolumeSerialNumber, joined(information.nFileIndexHigh, information.nFileIndexLow),
               joined(information.nFileSizeHigh, information.nFileSizeLow), static_cast<std::int64_t>(ticks * 100)};
}

RandomAccessFile::RandomAccessFile(RandomAccessFile&& other) noexcept
    : path_(std::move(other.path_)), identity_(other.identity_), handle_(std::exchange(other.handle_, nullptr)) {}

RandomAccessFile::~RandomAccessFile() {
  if (handle_ != nullptr) ::CloseHandle(handle_);
}

std::size_t RandomAccessFile::read_at(std::uint64_t offset, std::span<std::byte> target) const {
  constexpr std::size_t kMaxReadBytes = std::size_t{1} << 30U;
  std::size_t n_done = 0;
  while (n_done < target.size()) {
    OVERLAPPED position{};
    position.Offset = static_cast<DWORD>(offset + n_done);
    position.OffsetHigh = static_cast<DWORD>((offset + n_done) >> 32U);
    const auto wanted = static_cast<DWORD>(std::min(target.size() - n_done, kMaxReadBytes));
    DWORD n_read = 0;
    if (::ReadFile(handle_, target.data() + n_done, wanted, &n_read, &position) == 0 && ::GetLastError() != ERROR_HANDLE_EOF) {
      fail("cannot read " + quoted(path_) + " at byte " + std::to_string(offset + n_done));
    }
    if (n_read == 0) break;
    n_done += n_read;
  }
  return n_done;
}

}  // namespace hostler

#endif
