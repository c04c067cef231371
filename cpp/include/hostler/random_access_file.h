// A regular file opened for reading at any offset: what mapped files and header readers share.
//
// Ownership: move-only; the descriptor goes with the object. All methods may be called by any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace hostler {

/// Which file this is and as of when: another file under the same name, or the same one written to, compares unequal.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size_bytes = 0;
  std::int64_t modified_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};

/// The path as error messages show it: quoted, UTF-8.
std::string quoted(const std::filesystem::path& path);

class RandomAccessFile {
 public:
  /// Throws std::system_error when it cannot be opened, std::invalid_argument when it is no regular file.
  explicit RandomAccessFile(const std::filesystem::path& path);
  RandomAccessFile(RandomAccessFile&& other) noexcept;
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;
  ~RandomAccessFile();

  /// What the constructor would open now. Throws std::system_error.
  static FileIdentity identify(const std::filesystem::path& path);

  const std::filesystem::path& path() const noexcept { return path_; }
  /// As of the moment it was opened.
  const FileIdentity& identity() const noexcept { return identity_; }
  std::uint64_t size_bytes() const noexcept { return identity_.size_bytes; }

  /// Read until `target` is full or the file ends; returns the bytes read. Throws std::system_error.
  std::size_t read_at(std::uint64_t offset, std::span<std::byte> target) const;

#if defined(_WIN32)
  void* os_handle() const noexcept { return handle_; }
#else
  int fd() const noexcept { return fd_; }
#endif

 private:
  std::filesystem::path path_;
  FileIdentity identity_;
#if defined(_WIN32)
  void* handle_ = nullptr;
#else
  int fd_ = -1;
#endif
};

}  // namespace hostler
