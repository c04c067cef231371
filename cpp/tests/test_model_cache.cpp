// Mapped files and the cache over them: use counts, eviction order, and files that change under the mapping.
// NOTE: the sanitizers turn mlock into nothing; that it really locks, or fails, is tested in tests/test_modelcache.py.
#if defined(__linux__)
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>
#endif

#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "check.h"
#include "hostler/model_cache.h"
#include "scratch_folder.h"

using namespace hostler;

namespace {

constexpr std::size_t kFileBytes = 100'000;

std::vector<std::string> names(const ModelCache& cache) {
  std::vector<std::string> all;
  for (const CacheEntry& entry : cache.entries()) all.push_back(entry.path.filename().string());
  return all;
}

}  // namespace

TEST("a file that is open twice is mapped once and evictable after the second close") {
  const ScratchFolder folder;
  const auto path = folder.write("a", kFileBytes);
  const auto cache = ModelCache::create(1 << 20);

  const auto first = cache->open(path);
  const auto second = cache->open(path);

  CHECK(cache->stats().n_misses == 1 && cache->stats().n_hits == 1 && cache->stats().mapped_bytes == kFileBytes);
  first->close();
  first->close();
  CHECK_THROWS(CacheEntryInUse, cache->evict(path));
  second->close();
  CHECK(cache->evict(path));
  CHECK(!cache->evict(path));
  CHECK(cache->stats().mapped_bytes == 0);
}

TEST("the least recently used file goes first") {
  const ScratchFolder folder;
  const auto cache = ModelCache::create(3 * kFileBytes);
  for (const char* name : {"a", "b", "c"}) cache->open(folder.write(name, kFileBytes))->close();
  cache->open(folder.file("a"))->close();

  cache->open(folder.write("d", kFileBytes))->close();

  CHECK((names(*cache) == std::vector<std::string>{"c", "a", "d"}));
  CHECK(cache->stats().n_evictions == 1);
}

TEST("files in use may exceed the budget and are evicted when they are closed") {
  const ScratchFolder folder;
  const auto cache = ModelCache::create(kFileBytes);
  const auto first = cache->open(folder.write("a", kFileBytes));
  const auto second = cache->open(folder.write("b", kFileBytes));

  CHECK(cache->stats().mapped_bytes == 2 * kFileBytes);
  first->close();
  CHECK((names(*cache) == std::vector<std::string>{"b"}));
  second->close();
  CHECK((names(*cache) == std::vector<std::string>{"b"}));
}

TEST("trim and a smaller budget evict until they are met") {
  const ScratchFolder folder;
  const auto cache = ModelCache::create(10 * kFileBytes);
  for (const char* name : {"a", "b", "c"}) cache->open(folder.write(name, kFileBytes))->close();

  CHECK(cache->trim(2 * kFileBytes) == kFileBytes);
  CHECK((names(*cache) == std::vector<std::string>{"b", "c"}));
  cache->set_budget_bytes(kFileBytes);
  CHECK((names(*cache) == std::vector<std::string>{"c"}));
  CHECK(cache->trim(0) == kFileBytes);
}

TEST("prefetch makes the file resident, tells its progress and reads nothing twice") {
  const ScratchFolder folder;
  const auto path = folder.write("a", 20 << 20);
  const auto cache = ModelCache::create(1 << 30);
  std::vector<std::uint64_t> done;

  cache->prefetch(path, [&](std::uint64_t n_done, std::uint64_t n_total) {
    CHECK(n_total == 20 << 20);
    done.push_back(n_done);
  });

  CHECK((done == std::vector<std::uint64_t>{8 << 20, 16 << 20, 20 << 20}));
  CHECK(cache->residency(path).value_or(1.0) == 1.0);
  if (cache->residency(path)) CHECK(cache->prefetch(path, nullptr) == 0);
}

#if defined(__linux__)
TEST("evicting a file takes it out of memory") {
  const ScratchFolder folder;
  const auto path = folder.write("a", 4 << 20);
  struct statfs file_system{};
  CHECK(::statfs(path.c_str(), &file_system) == 0);
  constexpr long kTmpfs = 0x01021994;
  if (file_system.f_type == kTmpfs) return;  // memory is where its files are
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0 && ::fsync(fd) == 0);  // what is not on the disk yet cannot be dropped
  ::close(fd);
  const auto cache = ModelCache::create(1 << 30);
  cache->prefetch(path, nullptr);

  CHECK(cache->evict(path));

  CHECK(cache->residency(path).value_or(0.0) < 0.5);
}
#endif

TEST("a progress callback that throws stops the prefetch and leaves the cache sound") {
  const ScratchFolder folder;
  const auto path = folder.write("a", 20 << 20);
  const auto cache = ModelCache::create(1 << 30);

  CHECK_THROWS(std::runtime_error,
               cache->prefetch(path, [](std::uint64_t, std::uint64_t) { throw std::runtime_error("stop"); }));

  CHECK(cache->entries().size() == 1 && cache->entries()[0].n_open == 0);
  CHECK(cache->evict(path));
}

TEST("what is larger than the budget is refused where it would fill the memory") {
  const ScratchFolder folder;
  const auto path = folder.write("a", kFileBytes);
  const auto cache = ModelCache::create(kFileBytes - 1);

  CHECK_THROWS(CacheBudgetExceeded, cache->prefetch(path, nullptr));
  CHECK_THROWS(CacheBudgetExceeded, cache->pin(path));
  cache->open(path)->close();
  CHECK(cache->entries().empty());
}

TEST("a pinned file stays until it is unpinned") {
  const ScratchFolder folder;
  const auto path = folder.write("a", kFileBytes);
  const auto cache = ModelCache::create(kFileBytes + 10);
  try {
    cache->pin(path);
  } catch (const std::system_error& error) {
    std::printf("      not pinned here: %s\n", error.what());  // RLIMIT_MEMLOCK may be tiny
    return;
  }

  cache->pin(path);
  CHECK(cache->stats().pinned_bytes == kFileBytes);
  CHECK_THROWS(CacheEntryInUse, cache->evict(path));
  CHECK_THROWS(CacheBudgetExceeded, cache->pin(folder.write("b", kFileBytes)));
  CHECK(cache->residency(path).value_or(1.0) == 1.0);
  CHECK(cache->trim(0) == 0);
  CHECK(cache->unpin(path));
  CHECK(!cache->unpin(path));
  CHECK(cache->stats().pinned_bytes == 0);
  CHECK(cache->trim(0) == kFileBytes);
}

TEST("a file that was replaced on disk is another file and the old one goes with its last use") {
  const ScratchFolder folder;
  const auto path = folder.write("a", kFileBytes);
  const auto cache = ModelCache::create(1 << 30);
  const auto old = cache->open(path);

  std::filesystem::rename(folder.write("fresh", kFileBytes / 2), path);
  const auto fresh = cache->open(path);

  CHECK(fresh->file().size_bytes() == kFileBytes / 2);
  CHECK(cache->entries().size() == 2 && cache->entries()[0].is_replaced && !cache->entries()[1].is_replaced);
  old->close();
  CHECK(cache->entries().size() == 1);
}

TEST("a file that was deleted can still be evicted by its path") {
  const ScratchFolder folder;
  const auto path = folder.write("a", kFileBytes);
  const auto cache = ModelCache::create(1 << 30);
  cache->open(path)->close();
  std::filesystem::remove(path);

  CHECK(cache->evict(path));
  CHECK_THROWS(std::system_error, cache->open(path));
  CHECK_THROWS(std::system_error, cache->residency(path));
}

TEST("a file truncated under its mapping is an error and no SIGBUS") {
  const ScratchFolder folder;
  const auto path = folder.write("a", 20 << 20);
  const auto cache = ModelCache::create(1 << 30);
  const auto handle = cache->open(path);

  std::filesystem::resize_file(path, 5'000);

  CHECK(handle->file().residency().value_or(0.0) < 0.5);  // not 0: the new end may lie in a folio of megabytes
  CHECK_THROWS(FileChanged, handle->file().prefetch(nullptr));
  const auto mapped = MappedFile::open(path);
  std::filesystem::resize_file(path, 1);
  try {
    mapped->pin();  // the page that is left
  } catch (const std::system_error&) {
  }
  mapped->drop();
  handle->close();
  CHECK(cache->evict(path));
}

TEST("a closed cache refuses new files and lets go of the open ones when they close") {
  const ScratchFolder folder;
  const auto path = folder.write("a", kFileBytes);
  const auto cache = ModelCache::create(1 << 30);
  const auto handle = cache->open(path);
  cache->open(folder.write("b", kFileBytes))->close();

  cache->close();
  cache->close();

  CHECK((names(*cache) == std::vector<std::string>{"a"}));
  CHECK_THROWS(CacheClosed, cache->open(path));
  CHECK_THROWS(CacheClosed, cache->prefetch(path, nullptr));
  handle->close();
  CHECK(cache->entries().empty());
}

TEST("what cannot be mapped is refused") {
  const ScratchFolder folder;

  CHECK_THROWS(std::system_error, MappedFile::open(folder.file("missing")));
  CHECK_THROWS(std::invalid_argument, MappedFile::open(folder.write("empty", 0)));
#if !defined(_WIN32)
  CHECK_THROWS(std::invalid_argument, MappedFile::open("/dev/null"));
  CHECK_THROWS(std::invalid_argument, MappedFile::open(folder.file(".")));
#endif
}

CHECK_MAIN()
