// Sleeping on shared memory on Windows: one named auto-reset event per word. Compiled, never run here.
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <algorithm>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "hostler/sleeper.h"

namespace hostler {

struct Sleeper::Events {
  std::string name;
  std::mutex mutex;             // guards `handles`
  std::vector<HANDLE> handles;  // made at first use by either side; nullptr until then

  HANDLE get(std::uint32_t index) {
    const std::lock_guard lock(mutex);
    HANDLE& handle = handles.at(index);
    // Create-or-open: whichever process comes first makes the event, the other gets the same one.
    if (handle == nullptr) {
      handle = ::CreateEventA(nullptr, FALSE, FALSE, (name + "-wake-" + std::to_string(index)).c_str());
    }
    return handle;
  }
};

Sleeper::Sleeper(std::string name, std::uint32_t n_words) : events_(std::make_unique<Events>()) {
  events_->name = std::move(name);
  events_->handles.resize(n_words, nullptr);
}

Sleeper::~Sleeper() {
  for (HANDLE handle : events_->handles) {
    if (handle != nullptr) ::CloseHandle(handle);
  }
}

Slept Sleeper::sleep(std::uint32_t index, std::atomic<std::uint32_t>& word, std::uint32_t seen,
                     std::chrono::nanoseconds timeout) {
  HANDLE event = events_->get(index);
  if (event == nullptr) {
    throw std::system_error(static_cast<int>(::GetLastError()), std::system_category(),
                            "cannot make the event that wakes a token ring's reader");
  }
  if (word.load(std::memory_order_acquire) != seen) return Slept::kChanged;
  // Ctrl-C interrupts no wait on Windows, so the caller gets to look for it ten times a second.
  constexpr std::int64_t kSliceMs = 100;
  const std::int64_t wanted_ms = std::max<std::int64_t>((timeout.count() + 999'999) / 1'000'000, 1);
  const bool is_sliced = wanted_ms > kSliceMs;
  switch (::WaitForSingleObject(event, static_cast<DWORD>(is_sliced ? kSliceMs : wanted_ms))) {
    case WAIT_OBJECT_0: return Slept::kChanged;
    case WAIT_TIMEOUT: return is_sliced ? Slept::kInterrupted : Slept::kTimedOut;
    default:
      throw std::system_error(static_cast<int>(::GetLastError()), std::system_category(), "cannot wait on the token ring");
  }
}

void Sleeper::wake(std::uint32_t index, std::atomic<std::uint32_t>& /*word*/) noexcept {
  HANDLE event = events_->get(index);
  if (event != nullptr) ::SetEvent(event);
}

}  // namespace hostler

#endif
