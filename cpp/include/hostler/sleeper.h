// Sleeping on a word of shared memory until another process says that it changed: one small face over three systems.
//
// Linux:   futex without FUTEX_PRIVATE_FLAG, because the sleeper and the waker are different processes.
// macOS:   __ulock_wait in its shared form.
// Windows: WaitOnAddress does not cross processes, so each word has a named auto-reset event. An event set before
//          anybody sleeps stays set, so the answer to "did it change between my look and my sleep" is right there, too.
//
// Ownership: one Sleeper per process and segment; any thread may call any method.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace hostler {

enum class Slept {
  kChanged,  // the word differs, somebody woke us, or for no reason: look again
  kTimedOut,
  kInterrupted,  // a signal: let the caller's runtime handle it
};

class Sleeper {
 public:
  /// `name` is the segment's name where it has one (Windows derives its events' names from it).
  Sleeper(std::string name, std::uint32_t n_words);
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  ~Sleeper();

  /// Sleep while `word` (number `index`) is `seen`, for `timeout` at most.
  Slept sleep(std::uint32_t index, std::atomic<std::uint32_t>& word, std::uint32_t seen, std::chrono::nanoseconds timeout);

  /// Wake every thread that sleeps on `word`. The caller has changed the word first.
  void wake(std::uint32_t index, std::atomic<std::uint32_t>& word) noexcept;

 private:
  struct Events;
  std::unique_ptr<Events> events_;  // Windows only
};

}  // namespace hostler
