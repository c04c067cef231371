// Which weight files are kept warm: mapped, counted, evicted by least recent use under a budget of bytes.
//
// The budget counts whole files, whatever part of them is in memory: the number is then the same on every run, and the
// memory ledger can rely on it. A file that is open or pinned is never evicted, so the budget may be exceeded by what
// is in use; opening never fails for it. Filling the memory on purpose does (prefetch and pin of what cannot fit).
//
// Ownership: a shared_ptr<ModelCache> made by its owner and kept by every CacheHandle. `mutex_` guards entries_ and the
// counters; no system call that may wait for a disk is made under it. `pin_mutex_` is taken before `mutex_`, and
// serialises pin and unpin, which may take seconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "hostler/mapped_file.h"

namespace hostler {

/// What was asked for is larger than the cache may hold.
class CacheBudgetExceeded : public ModelCacheError {
 public:
  using ModelCacheError::ModelCacheError;
};

/// The file is open or pinned, so it cannot be evicted.
class CacheEntryInUse : public ModelCacheError {
 public:
  using ModelCacheError::ModelCacheError;
};

/// The cache was closed.
class CacheClosed : public ModelCacheError {
 public:
  using ModelCacheError::ModelCacheError;
};

struct CacheEntry {
  std::filesystem::path path;  // as first opened
  std::uint64_t size_bytes = 0;
  std::uint32_t n_open = 0;  // handles
  bool is_pinned = false;
  bool is_replaced = false;  // another file has taken its path since
};

struct CacheStats {
  std::uint64_t budget_bytes = 0;
  std::uint64_t mapped_bytes = 0;
  std::uint64_t pinned_bytes = 0;
  std::uint64_t n_entries = 0;
  std::uint64_t n_hits = 0;       // opens that found the file mapped
  std::uint64_t n_misses = 0;     // opens that mapped it
  std::uint64_t n_evictions = 0;  // for the budget or by request
};

class CacheHandle;

class ModelCache : public std::enable_shared_from_this<ModelCache> {
 public:
  static std::shared_ptr<ModelCache> create(std::uint64_t budget_bytes);
  ModelCache(const ModelCache&) = delete;
  ModelCache& operator=(const ModelCache&) = delete;

  /// Map the file, or find it mapped; it stays while the handle does. Throws as MappedFile::open.
  std::shared_ptr<CacheHandle> open(const std::filesystem::path& path);

  /// Bring the file into memory. Returns the bytes that had to be read. Throws CacheBudgetExceeded for a file larger
  /// than the budget, and as MappedFile::prefetch.
  std::uint64_t prefetch(const std::filesystem::path& path, const MappedFile::Progress& progress);

  /// Keep the file in memory until unpin(). Throws CacheBudgetExceeded when all pinned files together would be larger
  /// than the budget, std::system_error when the system refuses.
  void pin(const std::filesystem::path& path);
  /// False when it was not pinned.
  bool unpin(const std::filesystem::path& path);

  /// As MappedFile::residency; the file need not be in the cache.
  std::optional<double> residency(const std::filesystem::path& path);

  /// Drop the file. False when it is not in the cache. Throws CacheEntryInUse.
  bool evict(const std::filesystem::path& path);

  /// Evict the least recently used until `target_bytes` or less are mapped, or nothing evictable is left. Returns the
  /// bytes given back.
  std::uint64_t trim(std::uint64_t target_bytes);

  /// Let go of everything that is not open, and refuse what comes later. What is in memory stays there, so that the
  /// next start of the program finds it warm.
  void close();

  std::uint64_t budget_bytes() const;
  void set_budget_bytes(std::uint64_t budget_bytes);

  /// Least recently used first.
  std::vector<CacheEntry> entries() const;
  CacheStats stats() const;

 private:
  friend class CacheHandle;

  struct Entry {
    CacheEntry shown;
    std::shared_ptr<MappedFile> file;
    bool is_evictable() const noexcept { return shown.n_open == 0 && !shown.is_pinned; }
  };
  using Entries = std::list<Entry>;  // least recently used first; nodes keep their address
  using Dropped = std::vector<std::shared_ptr<MappedFile>>;

  explicit ModelCache(std::uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}

  void release(Entry* entry);
  // The following want mutex_ held; what they return is dropped by drop() after it was given back.
  Entries::iterator find(const FileIdentity& identity);
  Entries::iterator find_by_path(const std::filesystem::path& path, const std::optional<FileIdentity>& identity);
  void remove(Entries::iterator entry, Dropped& dropped);
  void shrink_to(std::uint64_t target_bytes, Dropped& dropped);
  void require_open() const;
  static void drop(const Dropped& dropped) noexcept;

  std::mutex pin_mutex_;
  mutable std::mutex mutex_;
  Entries entries_;
  bool is_closed_ = false;
  std::uint64_t budget_bytes_;
  std::uint64_t mapped_bytes_ = 0;
  std::uint64_t pinned_bytes_ = 0;
  std::uint64_t n_hits_ = 0;
  std::uint64_t n_misses_ = 0;
  std::uint64_t n_evictions_ = 0;
};

/// One open file of the cache. close() may be called by any thread, and twice.
class CacheHandle {
 public:
  CacheHandle(std::shared_ptr<ModelCache> cache, ModelCache::Entry* entry, std::shared_ptr<MappedFile> file,
              std::filesystem::path path)
      : cache_(std::move(cache)), entry_(entry), file_(std::move(file)), path_(std::move(path)) {}
  CacheHandle(const CacheHandle&) = delete;
  CacheHandle& operator=(const CacheHandle&) = delete;
  ~CacheHandle() { close(); }

  void close();
  bool is_closed() const noexcept { return is_closed_.load(std::memory_order_acquire); }
  const std::filesystem::path& path() const noexcept { return path_; }
  /// Valid also after close(): the mapping lives as long as this object.
  const MappedFile& file() const noexcept { return *file_; }

 private:
  std::shared_ptr<ModelCache> cache_;
  ModelCache::Entry* entry_;  // valid until release(): an open entry is never removed
  std::shared_ptr<MappedFile> file_;
  std::filesystem::path path_;
  std::atomic<bool> is_closed_{false};
};

}  // namespace hostler
