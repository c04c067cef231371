// Entries, use counts and eviction. Locks and what the budget means: model_cache.h.
#include "hostler/model_cache.h"

#include <string>
#include <system_error>
#include <utility>

namespace hostler {
namespace {

/// Nothing when the file is gone: its entry is then found by its path.
std::optional<FileIdentity> identity_if_there(const std::filesystem::path& path) {
  try {
    return RandomAccessFile::identify(path);
  } catch (const std::system_error&) {
    return std::nullopt;
  }
}

}  // namespace

std::shared_ptr<ModelCache> ModelCache::create(std::uint64_t budget_bytes) {
  return std::shared_ptr<ModelCache>(new ModelCache(budget_bytes));
}

std::shared_ptr<CacheHandle> ModelCache::open(const std::filesystem::path& path) {
  const FileIdentity expected = RandomAccessFile::identify(path);
  std::shared_ptr<MappedFile> file;
  {
    const std::lock_guard lock(mutex_);
    require_open();
    if (const auto found = find(expected); found != entries_.end()) {
      ++n_hits_;
      ++found->shown.n_open;
      if (found->shown.path == path) found->shown.is_replaced = false;  // renamed away and back
      entries_.splice(entries_.end(), entries_, found);
      return std::make_shared<CacheHandle>(shared_from_this(), &*found, found->file, path);
    }
  }
  // Without the lock: a network file system may take its time here.
  file = MappedFile::open(path);
  Dropped dropped;
  Entry* entry = nullptr;
  {
    const std::lock_guard lock(mutex_);
    require_open();
    // INVARIANT: no two entries have one identity. Another thread may have mapped it meanwhile.
    auto found = find(file->identity());
    if (found == entries_.end()) {
      ++n_misses_;
      for (auto other = entries_.begin(); other != entries_.end();) {
        const auto next = std::next(other);
        if (other->shown.path == path) {
          other->shown.is_replaced = true;
          if (other->is_evictable()) remove(other, dropped);
        }
        other = next;
      }
      Entry fresh;
      fresh.shown.path = path;
      fresh.shown.size_bytes = file->size_bytes();
      fresh.file = file;
      found = entries_.insert(entries_.end(), std::move(fresh));
      mapped_bytes_ += file->size_bytes();
    } else {
      ++n_hits_;
      entries_.splice(entries_.end(), entries_, found);
    }
    ++found->shown.n_open;
    entry = &*found;
    file = found->file;
    shrink_to(budget_bytes_, dropped);
  }
  drop(dropped);
  return std::make_shared<CacheHandle>(shared_from_this(), entry, std::move(file), path);
}

void ModelCache::release(Entry* entry) {
  Dropped dropped;
  bool is_over = false;
  {
    const std::lock_guard lock(mutex_);
    --entry->shown.n_open;
    for (auto found = entries_.begin(); found != entries_.end(); ++found) {
      if (&*found != entry) continue;
      entries_.splice(entries_.end(), entries_, found);  // in use until now
      if (entry->shown.is_replaced && entry->is_evictable()) remove(found, dropped);
      break;
    }
    shrink_to(is_closed_ ? 0 : budget_bytes_, dropped);
    is_over = is_closed_;
  }
  if (!is_over) drop(dropped);
}

std::uint64_t ModelCache::prefetch(const std::filesystem::path& path, const MappedFile::Progress& progress) {
  const std::uint64_t budget = budget_bytes();
  const std::uint64_t size = RandomAccessFile::identify(path).size_bytes;
  if (size > budget) {
    throw CacheBudgetExceeded("cannot keep " + quoted(path) + " warm: it has " + std::to_string(size) +
                              " bytes, the model cache may hold " + std::to_string(budget));
  }
  const std::shared_ptr<CacheHandle> handle = open(path);  // open: not evicted meanwhile
  return handle->file().prefetch(progress);
}

void ModelCache::pin(const std::filesystem::path& path) {
  const std::lock_guard pinning(pin_mutex_);
  const std::shared_ptr<CacheHandle> handle = open(path);
  std::shared_ptr<MappedFile> file;
  {
    const std::lock_guard lock(mutex_);
    const auto entry = find(handle->file().identity());
    if (entry->shown.is_pinned) return;
    if (entry->shown.size_bytes > budget_bytes_ || pinned_bytes_ > budget_bytes_ - entry->shown.size_bytes) {
      throw CacheBudgetExceeded("cannot pin " + quoted(path) + ": it has " + std::to_string(entry->shown.size_bytes) +
                                " bytes, " + std::to_string(pinned_bytes_) + " are pinned, and the model cache may " +
                                "hold " + std::to_string(budget_bytes_));
    }
    file = entry->file;
  }
  file->pin();
  const std::lock_guard lock(mutex_);
  const auto entry = find(file->identity());  // still there: `handle` is open
  entry->shown.is_pinned = true;
  pinned_bytes_ += entry->shown.size_bytes;
}

bool ModelCache::unpin(const std::filesystem::path& path) {
  const std::lock_guard pinning(pin_mutex_);
  const std::optional<FileIdentity> identity = identity_if_there(path);
  std::shared_ptr<MappedFile> file;
  Dropped dropped;
  {
    const std::lock_guard lock(mutex_);
    const auto entry = find_by_path(path, identity);
    if (entry == entries_.end() || !entry->shown.is_pinned) return false;
    file = entry->file;
    file->unpin();
    entry->shown.is_pinned = false;
    pinned_bytes_ -= entry->shown.size_bytes;
    if (entry->shown.is_replaced && entry->is_evictable()) remove(entry, dropped);
    shrink_to(budget_bytes_, dropped);
  }
  drop(dropped);
  return true;
}

std::optional<double> ModelCache::residency(const std::filesystem::path& path) {
  const FileIdentity identity = RandomAccessFile::identify(path);
  std::shared_ptr<MappedFile> file;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = find(identity); found != entries_.end()) file = found->file;
  }
  if (!file) file = MappedFile::open(path);
  return file->residency();
}

bool ModelCache::evict(const std::filesystem::path& path) {
  const std::optional<FileIdentity> identity = identity_if_there(path);
  Dropped dropped;
  {
    const std::lock_guard lock(mutex_);
    const auto entry = find_by_path(path, identity);
    if (entry == entries_.end()) return false;
    if (!entry->is_evictable()) {
      throw CacheEntryInUse("cannot evict " + quoted(path) + ": it is " +
                            (entry->shown.is_pinned ? std::string("pinned; unpin it first")
                                                    : "open " + std::to_string(entry->shown.n_open) + " times"));
    }
    remove(entry, dropped);
  }
  drop(dropped);
  return true;
}

std::uint64_t ModelCache::trim(std::uint64_t target_bytes) {
  Dropped dropped;
  std::uint64_t before = 0;
  std::uint64_t after = 0;
  {
    const std::lock_guard lock(mutex_);
    before = mapped_bytes_;
    shrink_to(target_bytes, dropped);
    after = mapped_bytes_;
  }
  drop(dropped);
  return before - after;
}

void ModelCache::close() {
  const std::lock_guard pinning(pin_mutex_);
  Dropped unmapped;  // not drop()ped: the pages stay
  const std::lock_guard lock(mutex_);
  is_closed_ = true;
  for (Entry& entry : entries_) {
    if (!entry.shown.is_pinned) continue;
    entry.file->unpin();
    entry.shown.is_pinned = false;
    pinned_bytes_ -= entry.shown.size_bytes;
  }
  shrink_to(0, unmapped);
}

void ModelCache::require_open() const {
  if (is_closed_) throw CacheClosed("the model cache was closed");
}

std::uint64_t ModelCache::budget_bytes() const {
  const std::lock_guard lock(mutex_);
  return budget_bytes_;
}

void ModelCache::set_budget_bytes(std::uint64_t budget_bytes) {
  {
    const std::lock_guard lock(mutex_);
    budget_bytes_ = budget_bytes;
  }
  trim(budget_bytes);
}

std::vector<CacheEntry> ModelCache::entries() const {
  const std::lock_guard lock(mutex_);
  std::vector<CacheEntry> shown;
  shown.reserve(entries_.size());
  for (const Entry& entry : entries_) shown.push_back(entry.shown);
  return shown;
}

CacheStats ModelCache::stats() const {
  const std::lock_guard lock(mutex_);
  return {budget_bytes_, mapped_bytes_, pinned_bytes_, entries_.size(), n_hits_, n_misses_, n_evictions_};
}

ModelCache::Entries::iterator ModelCache::find(const FileIdentity& identity) {
  auto entry = entries_.begin();
  while (entry != entries_.end() && entry->file->identity() != identity) ++entry;
  return entry;
}

ModelCache::Entries::iterator ModelCache::find_by_path(const std::filesystem::path& path,
                                                       const std::optional<FileIdentity>& identity) {
  if (identity) {
    if (const auto found = find(*identity); found != entries_.end()) return found;
  }
  // The file was replaced or deleted: the latest one known under that path.
  auto entry = entries_.end();
  while (entry != entries_.begin()) {
    --entry;
    if (entry->shown.path == path) return entry;
  }
  return entries_.end();
}

void ModelCache::remove(Entries::iterator entry, Dropped& dropped) {
  mapped_bytes_ -= entry->shown.size_bytes;
  ++n_evictions_;
  dropped.push_back(std::move(entry->file));
  entries_.erase(entry);
}

void ModelCache::shrink_to(std::uint64_t target_bytes, Dropped& dropped) {
  for (auto entry = entries_.begin(); entry != entries_.end() && mapped_bytes_ > target_bytes;) {
    const auto next = std::next(entry);
    if (entry->is_evictable()) remove(entry, dropped);
    entry = next;
  }
}

void ModelCache::drop(const Dropped& dropped) noexcept {
  for (const std::shared_ptr<MappedFile>& file : dropped) file->drop();
}

void CacheHandle::close() {
  if (!is_closed_.exchange(true, std::memory_order_acq_rel)) cache_->release(entry_);
}

}  // namespace hostler
