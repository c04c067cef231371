// Sleeping on shared memory on Linux (futex) and macOS (__ulock).
#if !defined(_WIN32)

#include <algorithm>
#include <cerrno>
#include <climits>
#include <ctime>
#include <system_error>

#include "hostler/sleeper.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
// Exported by libSystem since 10.12, and what libc++'s std::atomic::wait is made of; declared in no public header. The
// public os_sync_wait_on_address came with 14.4 only.
extern "C" int __ulock_wait(std::uint32_t operation, void* address, std::uint64_t value, std::uint32_t timeout_us);
extern "C" int __ulock_wake(std::uint32_t operation, void* address, std::uint64_t value);
#else
#error "hostler knows no way to sleep on shared memory here: add a branch to sleeper_posix.cpp"
#endif

namespace hostler {

struct Sleeper::Events {};

Sleeper::Sleeper(std::string /*name*/, std::uint32_t /*n_words*/) {}
Sleeper::~Sleeper() = default;

static_assert(sizeof(std::atomic<std::uint32_t>) == 4, "the kernel looks at exactly these four bytes");

#if defined(__linux__)

Slept Sleeper::sleep(std::uint32_t /*index*/, std::atomic<std::uint32_t>& word, std::uint32_t seen,
                     std::chrono::nanoseconds timeout) {
  timespec relative{};
  relative.tv_sec = static_cast<std::time_t>(timeout.count() / 1'000'000'000);
  relative.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
  const long result = ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, seen, &relative, nullptr, 0);
  if (result == 0 || errno == EAGAIN) return Slept::kChanged;
  if (errno == ETIMEDOUT) return Slept::kTimedOut;
  if (errno == EINTR) return Slept::kInterrupted;
  throw std::system_error(errno, std::generic_category(), "cannot wait on the token ring (futex)");
}

void Sleeper::wake(std::uint32_t /*index*/, std::atomic<std::uint32_t>& word) noexcept {
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

#else  // macOS: compiled, never run here; see docs/ring-format.md

namespace {
constexpr std::uint32_t kCompareAndWaitShared = 3;  // UL_COMPARE_AND_WAIT_SHARED
constexpr std::uint32_t kWakeAll = 0x100;           // ULF_WAKE_ALL
constexpr std::uint32_t kNoErrno = 0x1000000;       // ULF_NO_ERRNO: the error comes back negated

Slept outcome(int error) {
  if (error == ETIMEDOUT) return Slept::kTimedOut;
  if (error == EINTR) return Slept::kInterrupted;
  if (error == EFAULT || error == 0) return Slept::kChanged;  // EFAULT: paged out just now, look again
  throw std::system_error(error, std::generic_category(), "cannot wait on the token ring");
}
}  // namespace

Slept Sleeper::sleep(std::uint32_t /*index*/, std::atomic<std::uint32_t>& word, std::uint32_t seen,
                     std::chrono::nanoseconds timeout) {
  // 0 would mean "for ever".
  const auto microseconds = static_cast<std::uint32_t>(std::clamp<std::int64_t>(timeout.count() / 1000, 1, UINT32_MAX));
  const int result = __ulock_wait(kCompareAndWaitShared | kNoErrno, &word, seen, microseconds);
  return result >= 0 ? Slept::kChanged : outcome(-result);
}

void Sleeper::wake(std::uint32_t /*index*/, std::atomic<std::uint32_t>& word) noexcept {
  __ulock_wake(kCompareAndWaitShared | kWakeAll | kNoErrno, &word, 0);
}

#endif

}  // namespace hostler

#endif
