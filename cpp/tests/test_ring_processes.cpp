// The ring between processes, each with a mapping of its own, and what is left when one of them is killed.
#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "hostler/token_ring.h"
#include "numbered_frames.h"

using namespace hostler;
using namespace std::chrono_literals;

namespace {

constexpr auto kDeadline = 60s;

/// A child process that runs `work` and exits 0 if it returned true; killed at the latest with this object.
class Child {
 public:
  template <typename Work>
  explicit Child(Work&& work) : pid_(::fork()) {
    if (pid_ < 0) throw std::runtime_error("fork failed");
    if (pid_ == 0) {
      bool is_right = false;
      try {
        is_right = work();
      } catch (const std::exception& error) {
        std::fprintf(stderr, "child: %s\n", error.what());
      }
      ::_exit(is_right ? 0 : 1);
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  void kill() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  bool ended_well() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  pid_t pid_;
};

bool push_numbered(RingWriter& writer, std::uint32_t generation, std::uint64_t n, std::vector<std::byte>& payload) {
  numbered::write(n, payload);
  return writer.push(n & 0xFFFFU, generation, payload);
}

}  // namespace

TEST("a worker process's frames arrive whole and in order") {
  const auto segment = RingSegment::create(1, 4096, 1);
  const std::string handle = segment->memory().handle_for_child();
  RingReader reader(segment, 0);
  reader.open(7, 0);
  constexpr std::uint64_t kFrames = 100'000;
  const std::array<std::uint32_t, 1> rings{0};

  Child child([&] {
    RingWriter writer(RingSegment::attach(handle), 0);
    std::vector<std::byte> payload;
    for (std::uint64_t n = 0; n < kFrames; ++n) {
      while (!push_numbered(writer, 7, n, payload)) ::usleep(10);
    }
    return true;
  });
  std::uint64_t n_read = 0;
  bool is_right = true;
  while (n_read < kFrames && is_right) {
    CHECK(segment->wait(0, rings, kDeadline) == Waited::kReady);
    reader.drain(256, [&](const Frame& frame) { is_right = is_right && numbered::is_frame(n_read++, frame); });
  }

  CHECK(is_right);
  CHECK(child.ended_well());
}

TEST("a wake-up crosses processes both ways") {
  const auto segment = RingSegment::create(2, 4096, 2);
  const std::string handle = segment->memory().handle_for_child();
  RingReader reader(segment, 0);
  reader.open(7, 0);
  RingReader(segment, 1).open(7, 1);  // the child's ring
  constexpr std::uint64_t kRounds = 5'000;

  Child child([&] {
    const auto mine = RingSegment::attach(handle);
    RingWriter writer(mine, 0);
    RingReader answers(mine, 1);
    const std::array<std::uint32_t, 1> rings{1};
    std::vector<std::byte> payload;
    for (std::uint64_t n = 0; n < kRounds; ++n) {
      if (!push_numbered(writer, 7, n, payload)) return false;
      bool is_right = false;
      if (mine->wait(1, rings, kDeadline) != Waited::kReady) return false;
      answers.drain(1, [&](const Frame& frame) { is_right = numbered::is_frame(n, frame); });
      if (!is_right) return false;
    }
    return true;
  });
  RingWriter writer(segment, 1);
  const std::array<std::uint32_t, 1> rings{0};
  std::vector<std::byte> payload;
  for (std::uint64_t n = 0; n < kRounds; ++n) {
    CHECK(segment->wait(0, rings, kDeadline) == Waited::kReady);
    bool is_right = false;
    reader.drain(1, [&](const Frame& frame) { is_right = numbered::is_frame(n, frame); });
    CHECK(is_right);
    CHECK(push_numbered(writer, 7, n, payload));
  }

  CHECK(child.ended_well());
}

TEST("a worker killed in mid-stream leaves whole frames only, without a gap") {
  for (std::uint64_t round = 0; round < 60; ++round) {
    const auto segment = RingSegment::create(1, 4096, 1);
    const std::string handle = segment->memory().handle_for_child();
    RingReader reader(segment, 0);
    reader.open(7, 0);
    const std::array<std::uint32_t, 1> rings{0};
    std::uint64_t n_read = 0;
    bool is_right = true;
    const auto drain = [&] {
      reader.drain(256, [&](const Frame& frame) { is_right = is_right && numbered::is_frame(n_read++, frame); });
    };

    Child child([&] {
      const auto mine = RingSegment::attach(handle);
      RingWriter writer(mine, 0);
      std::vector<std::byte> payload;
      for (std::uint64_t n = 0;; mine->beat()) n += push_numbered(writer, 7, n, payload) ? 1 : 0;
      return true;
    });
    const std::uint64_t enough = numbered::mix(round) % 2'000;
    while (n_read <= enough && is_right) {
      CHECK(segment->wait(0, rings, kDeadline) == Waited::kReady);
      drain();
    }
    child.kill();
    segment->wake_all();
    CHECK(segment->wait(0, rings, kDeadline) == Waited::kReady);
    drain();
    drain();

    CHECK(is_right);
    CHECK(n_read > enough);
    CHECK(!reader.has_data());
  }
}

TEST("the ring of a reader that was killed takes no more and can be taken over") {
  const auto segment = RingSegment::create(1, 4096, 1);
  const std::string handle = segment->memory().handle_for_child();
  RingReader(segment, 0).open(7, 0);
  RingWriter writer(segment, 0);
  std::vector<std::byte> payload;
  std::uint64_t n = 0;

  Child child([&] {
    const auto mine = RingSegment::attach(handle);
    RingReader reader(mine, 0);
    for (;;) {
      reader.drain(3, [](const Frame&) {});
      mine->beat();
    }
    return true;
  });
  while (segment->beats() == 0 || n < 5'000) n += push_numbered(writer, 7, n, payload) ? 1 : 0;
  child.kill();
  while (push_numbered(writer, 7, n, payload)) ++n;
  const bool is_still_full = !push_numbered(writer, 7, n, payload);
  RingReader next(segment, 0);
  next.open(8, 0);
  CHECK(push_numbered(writer, 7, n, payload));  // the deserter's sequence, not cancelled yet
  CHECK(push_numbered(writer, 8, 0, payload));
  bool is_right = false;

  CHECK(next.drain(256, [&](const Frame& frame) { is_right = numbered::is_frame(0, frame); }) == 1);
  CHECK(is_still_full && is_right);
}

TEST("a worker cannot shrink the memory under the host") {
  const auto segment = RingSegment::create(1, 4096, 1);
  const int fd = segment->memory().fd();
  if (fd < 0) return;  // memory by name: not this system's danger

  Child child([&] { return ::ftruncate(fd, 0) != 0 && ::ftruncate(fd, 1 << 20) != 0; });

  CHECK(child.ended_well());
  CHECK(segment->beats() == 0);
}

CHECK_MAIN()
