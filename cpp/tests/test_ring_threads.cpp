// The ring's memory order, two threads on one mapping, under ThreadSanitizer (which is blind across mappings).
//
// The same file is built a second time with HOSTLER_RING_BREAK_RELEASE, which makes the publishing store relaxed. That
// build must fail: the negative control that shows the sanitizer really looks at the edge.
#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "hostler/token_ring.h"
#include "numbered_frames.h"

using namespace hostler;
using namespace std::chrono_literals;

namespace {

constexpr auto kDeadline = 120s;  // never reached; a lost wake-up must end the test, not hang it

/// Push frame `n` as soon as there is room; false when the reader has given up, so that a failed test ends.
bool push(RingWriter& writer, std::uint64_t n, const std::vector<std::byte>& payload, const std::atomic<bool>& is_over) {
  while (!writer.push(n & 0xFFFFU, 7, payload)) {
    if (is_over.load(std::memory_order_relaxed)) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace

TEST("a busy reader gets every frame whole and in order") {
  const auto segment = RingSegment::create(1, 1024, 1);
  RingReader reader(segment, 0);
  reader.open(7, 0);
  constexpr std::uint64_t kFrames = 60'000;
  std::uint64_t n_read = 0;
  std::atomic<bool> is_over{false};

  std::thread writing([&] {
    RingWriter writer(segment, 0);
    std::vector<std::byte> payload;
    bool goes_on = true;
    for (std::uint64_t n = 0; n < kFrames && goes_on; ++n) {
      numbered::write(n, payload);
      goes_on = push(writer, n, payload, is_over);
    }
  });
  bool is_right = true;
  while (n_read < kFrames && is_right) {
    const std::size_t n_frames =
        reader.drain(16, [&](const Frame& frame) { is_right = is_right && numbered::is_frame(n_read++, frame); });
    if (n_frames == 0) std::this_thread::yield();
  }
  is_over = true;
  writing.join();

  CHECK(is_right);
}

TEST("a sleeping reader of three rings loses no wake-up") {
  const auto segment = RingSegment::create(3, 256, 2);
  constexpr std::uint64_t kFrames = 20'000;
  const std::array<std::uint32_t, 3> rings{0, 1, 2};
  std::vector<RingReader> readers;
  for (const std::uint32_t ring : rings) readers.emplace_back(segment, ring).open(7, 1);
  std::atomic<bool> is_over{false};

  std::thread writing([&] {  // one worker loop, three sequences
    std::array<RingWriter, 3> writers{RingWriter(segment, 0), RingWriter(segment, 1), RingWriter(segment, 2)};
    std::vector<std::byte> payload;
    bool goes_on = true;
    for (std::uint64_t n = 0; n < kFrames && goes_on; ++n) {
      numbered::write(n, payload);
      for (RingWriter& writer : writers) goes_on = goes_on && push(writer, n, payload, is_over);
      if (numbered::mix(n) % 8 == 0) std::this_thread::yield();  // lets the reader fall asleep now and then
    }
  });
  std::array<std::uint64_t, 3> n_read{};
  bool is_right = true;
  Waited waited = Waited::kReady;
  while (is_right && waited == Waited::kReady && n_read[0] + n_read[1] + n_read[2] < 3 * kFrames) {
    waited = segment->wait(1, rings, kDeadline);
    for (const std::uint32_t ring : rings) {
      readers[ring].drain(256, [&](const Frame& frame) { is_right = is_right && numbered::is_frame(n_read[ring]++, frame); });
    }
  }
  is_over = true;
  writing.join();

  CHECK(is_right);
  CHECK(waited == Waited::kReady);
}

TEST("each frame wakes a reader that answers before the next one is sent") {
  // Ping-pong over two rings: both sides sleep almost every time, so that each hand-over is a wake-up.
  const auto segment = RingSegment::create(2, 256, 2);
  constexpr std::uint64_t kRounds = 5'000;
  RingReader ping(segment, 0);
  RingReader pong(segment, 1);
  ping.open(7, 0);
  pong.open(7, 1);

  const auto play = [&](RingReader& reader, std::uint32_t wake_index, std::uint32_t write_ring, bool is_first) {
    RingWriter writer(segment, write_ring);
    const std::array<std::uint32_t, 1> rings{wake_index};
    std::vector<std::byte> payload;
    for (std::uint64_t n = 0; n < kRounds; ++n) {
      numbered::write(n, payload);
      if (is_first && !writer.push(n & 0xFFFFU, 7, payload)) return false;
      std::size_t n_frames = 0;
      while (n_frames == 0) {
        if (segment->wait(wake_index, rings, kDeadline) != Waited::kReady) return false;
        bool is_right = true;
        n_frames = reader.drain(1, [&](const Frame& frame) { is_right = numbered::is_frame(n, frame); });
        if (!is_right) return false;
      }
      if (!is_first && !writer.push(n & 0xFFFFU, 7, payload)) return false;
    }
    return true;
  };
  bool other_is_right = false;
  std::thread other([&] { other_is_right = play(ping, 0, 1, false); });
  const bool is_right = play(pong, 1, 0, true);
  other.join();

  CHECK(is_right && other_is_right);
}

TEST("what a thread did before wake is seen by the thread that wait lets go") {
  const auto segment = RingSegment::create(1, 256, 1);
  constexpr int kRounds = 3'000;
  int plain = 0;  // no atomic on purpose: the edge of wake -> wait must order it
  std::atomic<int> answered{0};
  Waited waited = Waited::kReady;

  std::thread waiting([&] {
    for (int n = 1; n <= kRounds && waited == Waited::kReady; ++n) {
      waited = segment->wait(0, {}, kDeadline);
      if (plain != n) waited = Waited::kTimedOut;
      answered.store(n, std::memory_order_release);
    }
  });
  for (int n = 1; n <= kRounds; ++n) {
    plain = n;
    segment->wake(0);
    while (answered.load(std::memory_order_acquire) < n) std::this_thread::yield();
  }
  waiting.join();

  CHECK(waited == Waited::kReady);
}

TEST("a ring passes from reader to reader while a deserter's frames arrive") {
  const auto segment = RingSegment::create(1, 512, 1);
  constexpr std::uint32_t kGenerations = 200;
  std::atomic<std::uint32_t> submitted{0};
  std::atomic<bool> is_over{false};

  std::thread writing([&] {  // pushes for the latest generation it knows, so late frames of the one before are common
    RingWriter writer(segment, 0);
    std::vector<std::byte> payload;
    while (!is_over.load(std::memory_order_acquire)) {
      const std::uint32_t generation = submitted.load(std::memory_order_acquire);
      numbered::write(generation, payload);
      if (!writer.push(generation & 0xFFFFU, generation, payload)) std::this_thread::yield();
    }
  });
  bool is_right = true;
  const std::array<std::uint32_t, 1> rings{0};
  for (std::uint32_t generation = 1; generation <= kGenerations && is_right; ++generation) {
    RingReader reader(segment, 0);
    reader.open(generation, 0);
    submitted.store(generation, std::memory_order_release);
    std::size_t n_frames = 0;
    while (n_frames < 20 && is_right) {
      is_right = segment->wait(0, rings, kDeadline) == Waited::kReady;
      n_frames += reader.drain(256, [&](const Frame& frame) { is_right = is_right && numbered::is_frame(generation, frame); });
    }
  }
  is_over.store(true, std::memory_order_release);
  writing.join();

  CHECK(is_right);
}

CHECK_MAIN()
