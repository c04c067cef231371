// Several threads on one cache, under ThreadSanitizer.
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "hostler/model_cache.h"
#include "scratch_folder.h"

using namespace hostler;

TEST("threads that open, prefetch, pin and evict the same files leave the counts right") {
  const ScratchFolder folder;
  constexpr std::size_t kFileBytes = 10'000;
  for (int i = 0; i < 4; ++i) folder.write(std::to_string(i), kFileBytes);
  const auto cache = ModelCache::create(2 * kFileBytes);
  std::atomic<int> n_unexpected{0};

  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::uint32_t random = seed + 1;
      for (int round = 0; round < 400; ++round) {
        random = random * 1'664'525U + 1'013'904'223U;
        const auto path = folder.file(std::to_string((random >> 16U) % 4));
        try {
          switch ((random >> 24U) % 6) {
            case 0: cache->prefetch(path, nullptr); break;
            case 1: cache->evict(path); break;
            case 2: cache->pin(path); break;
            case 3: cache->unpin(path); break;
            case 4: cache->residency(path); break;
            default: {
              const auto handle = cache->open(path);
              if (handle->file().size_bytes() != kFileBytes) ++n_unexpected;
            }
          }
        } catch (const CacheEntryInUse&) {
        } catch (const CacheBudgetExceeded&) {
        } catch (const std::system_error&) {  // RLIMIT_MEMLOCK
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 4; ++i) cache->unpin(folder.file(std::to_string(i)));

  CHECK(n_unexpected == 0);
  CHECK(cache->stats().pinned_bytes == 0);
  CHECK(cache->stats().mapped_bytes <= 2 * kFileBytes);
  for (const CacheEntry& entry : cache->entries()) CHECK(entry.n_open == 0);
  cache->trim(0);
  CHECK(cache->entries().empty() && cache->stats().mapped_bytes == 0);
}

CHECK_MAIN()
