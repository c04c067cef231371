// One weight file, mapped read-only, and what the system can tell and do about its pages.
//
// SAFETY: no code of ours ever loads from the mapping. A file that somebody truncates turns a load behind its new end
// into SIGBUS, which would take the host and every stream with it. The mapping serves mincore, mlock and madvise, which
// answer with an error instead; contents are read with pread, which returns fewer bytes. Workers map the file on their
// own; they share the page cache with us, and if they die of SIGBUS, they die alone.
//
// Ownership: shared_ptr; the mapping and the descriptor go with the last one. All methods may be called by any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "hostler/random_access_file.h"

namespace hostler {

/// What keeping files warm may fail with, apart from the system's own errors.
class ModelCacheError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The file got shorter after it was opened.
class FileChanged : public ModelCacheError {
 public:
  using ModelCacheError::ModelCacheError;
};

class MappedFile {
 public:
  /// Called after each slice with (bytes done, bytes in all); may throw to stop.
  using Progress = std::function<void(std::uint64_t, std::uint64_t)>;

  /// Throws std::system_error when the file cannot be opened or mapped, std::invalid_argument when it is no regular
  /// file or empty.
  static std::shared_ptr<MappedFile> open(const std::filesystem::path& path);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const FileIdentity& identity() const noexcept { return file_.identity(); }
  std::uint64_t size_bytes() const noexcept { return file_.size_bytes(); }

  /// Fraction of the file's pages in memory, 0 to 1; nothing where the system does not say (Windows; on Linux for a
  /// file that we could neither write nor own, where mincore would claim that all are).
  std::optional<double> residency() const;

  /// Bring the file into the page cache, slice by slice; slices that are there already cost no read. Returns the bytes
  /// that were read. Throws FileChanged, std::system_error, and what `progress` throws.
  std::uint64_t prefetch(const Progress& progress) const;

  /// Keep all pages in memory until unpin(). Throws std::system_error, with the limit in its text where there is one.
  void pin();
  void unpin() noexcept;

  /// Let the system take the pages back now. Those that a worker has mapped stay.
  void drop() noexcept;

 private:
  explicit MappedFile(RandomAccessFile file) : file_(std::move(file)) {}
  std::uint64_t resident_bytes(std::uint64_t offset, std::uint64_t length) const;
  void start_reading(std::uint64_t offset, std::uint64_t length) const noexcept;

  RandomAccessFile file_;
  void* address_ = nullptr;
  void* mapping_handle_ = nullptr;  // Windows
  bool is_residency_known_ = false;
};

}  // namespace hostler
