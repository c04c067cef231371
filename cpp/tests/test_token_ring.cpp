// One thread, every edge: order, room, generations, and what a broken or hostile peer may leave in the memory.
#include <chrono>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "hostler/token_ring.h"
#include "numbered_frames.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(address, bytes) ASAN_POISON_MEMORY_REGION(address, bytes)
#define UNPOISON(address, bytes) ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#else
#define POISON(address, bytes) static_cast<void>(address)
#define UNPOISON(address, bytes) static_cast<void>(address)
#endif

using namespace hostler;
using namespace std::chrono_literals;

namespace {

std::vector<std::byte> bytes_of(const std::string& text) {
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

std::vector<std::string> drain(RingReader& reader, std::size_t max_frames = 256) {
  std::vector<std::string> texts;
  reader.drain(max_frames, [&](const Frame& frame) {
    std::string text(frame.first.size() + frame.second.size(), '\0');
    if (!frame.first.empty()) std::memcpy(text.data(), frame.first.data(), frame.first.size());
    if (!frame.second.empty()) std::memcpy(text.data() + frame.first.size(), frame.second.data(), frame.second.size());
    texts.push_back(text);
  });
  return texts;
}

/// One segment with the two ends of its middle ring, and the raw memory for those tests that scribble.
struct Pair {
  explicit Pair(std::uint64_t ring_bytes = 1024)
      : segment(RingSegment::create(3, ring_bytes, 2)), writer(segment, 1), reader(segment, 1) {
    reader.open(7, 1);
  }
  bool push(const std::string& text, std::uint32_t generation = 7) { return writer.push(1, generation, bytes_of(text)); }
  std::byte* ring_start() const {
    const std::size_t stride = sizeof(RingHeader) + (segment->ring_bytes() + kLine - 1) / kLine * kLine;
    return segment->memory().data() + sizeof(SegmentHeader) + 2 * sizeof(WakeWord) + stride;
  }
  template <typename T>
  void scribble(std::size_t offset, T value) const {
    std::memcpy(ring_start() + offset, &value, sizeof value);
  }

  std::shared_ptr<RingSegment> segment;
  RingWriter writer;
  RingReader reader;
};

constexpr std::size_t kHead = 0;
constexpr std::size_t kTail = 128;
constexpr std::size_t kWakeIndex = 256;
constexpr std::size_t kFrames = 384;

}  // namespace

TEST("frames come out whole and in order over many wraps") {
  Pair pair(256);
  std::vector<std::byte> payload;
  std::uint64_t n_read = 0;

  for (std::uint64_t n = 0; n < 5'000; ++n) {
    numbered::write(n, payload);
    while (!pair.writer.push(n & 0xFFFFU, 7, payload)) {
      pair.reader.drain(256, [&](const Frame& frame) { CHECK(numbered::is_frame(n_read++, frame)); });
    }
  }
  pair.reader.drain(256, [&](const Frame& frame) { CHECK(numbered::is_frame(n_read++, frame)); });

  CHECK(n_read == 5'000);
}

TEST("push returns false and writes nothing when the ring is full") {
  Pair pair(64);

  CHECK(pair.push("0123456789abcdef0123"));  // 32 bytes in the ring
  CHECK(pair.push("0123456789abcdef0123"));
  CHECK(pair.writer.free_bytes() == 0);
  CHECK(!pair.push(""));
  CHECK(drain(pair.reader).size() == 2);
  CHECK(pair.writer.free_bytes() == 64);
  CHECK(pair.push("again"));
  CHECK(drain(pair.reader) == std::vector<std::string>{"again"});
}

TEST("a frame as long as the ring fits and a longer one is refused for good") {
  Pair pair(64);
  const std::string longest(64 - kFrameHeaderBytes, 'x');

  CHECK(pair.push("y"));
  CHECK(!pair.push(longest));
  CHECK(drain(pair.reader) == std::vector<std::string>{"y"});
  CHECK(pair.push(longest));  // now across the end
  CHECK(drain(pair.reader) == std::vector<std::string>{longest});
  CHECK_THROWS(std::invalid_argument, pair.push(longest + "x"));
}

TEST("an empty payload is a frame") {
  Pair pair;

  CHECK(pair.writer.push(9, 7, {}));
  CHECK(drain(pair.reader) == std::vector<std::string>{""});
}

TEST("the reader drops frames of another generation and counts them") {
  Pair pair;

  CHECK(pair.push("old", 6) && pair.push("mine") && pair.push("old", 6) && pair.push("mine too"));

  CHECK((drain(pair.reader) == std::vector<std::string>{"mine", "mine too"}));
  CHECK(pair.reader.n_dropped() == 2);
}

TEST("open discards what another sequence left") {
  Pair pair;
  CHECK(pair.push("left over"));

  pair.reader.open(8, 0);

  CHECK(!pair.reader.has_data());
  CHECK(pair.push("left over, late", 7) && pair.push("new", 8));
  CHECK(drain(pair.reader) == std::vector<std::string>{"new"});
}

TEST("drain stops at max_frames and goes on there") {
  Pair pair;
  for (const char* text : {"a", "b", "c"}) CHECK(pair.push(text));

  CHECK((drain(pair.reader, 2) == std::vector<std::string>{"a", "b"}));
  CHECK(pair.reader.has_data());
  CHECK(drain(pair.reader, 2) == std::vector<std::string>{"c"});
}

TEST("a sink that throws loses no frame") {
  Pair pair;
  CHECK(pair.push("a") && pair.push("b"));
  int n_seen = 0;

  CHECK_THROWS(std::runtime_error, pair.reader.drain(256, [&](const Frame&) {
    if (++n_seen == 2) throw std::runtime_error("no memory");
  }));

  CHECK((drain(pair.reader) == std::vector<std::string>{"a", "b"}));
}

TEST("wait tells data, a call and a timeout apart") {
  Pair pair;
  const std::uint32_t rings[] = {0, 1};

  CHECK(pair.segment->wait(1, rings, 0ms) == Waited::kTimedOut);
  CHECK(pair.segment->wait(1, rings, 5ms) == Waited::kTimedOut);
  CHECK(pair.push("x"));
  CHECK(pair.segment->wait(1, rings, 0ms) == Waited::kReady);
  CHECK(pair.segment->wait(1, {rings, 1}, 0ms) == Waited::kTimedOut);  // ring 0 alone has none
  CHECK(drain(pair.reader).size() == 1);
  pair.segment->wake(1);
  pair.segment->wake(1);
  CHECK(pair.segment->wait(1, rings, 0ms) == Waited::kReady);
  CHECK(pair.segment->wait(1, rings, 0ms) == Waited::kTimedOut);  // both calls were answered
  pair.segment->wake(0);
  CHECK(pair.segment->wait(1, rings, 0ms) == Waited::kTimedOut);  // another word
}

TEST("indices out of range are refused") {
  Pair pair;
  const std::uint32_t no_ring[] = {3};

  CHECK_THROWS(std::out_of_range, pair.segment->wake(2));
  CHECK_THROWS(std::out_of_range, pair.segment->wait(2, {}, 0ms));
  CHECK_THROWS(std::out_of_range, pair.segment->wait(1, no_ring, 0ms));
  CHECK_THROWS(std::out_of_range, pair.reader.open(1, 2));
  CHECK_THROWS(std::out_of_range, RingReader(pair.segment, 3));
  CHECK_THROWS(std::out_of_range, RingWriter(pair.segment, std::numeric_limits<std::uint32_t>::max()));
}

TEST("a segment of impossible sizes is refused") {
  CHECK_THROWS(std::invalid_argument, RingSegment::create(0, 1024, 1));
  CHECK_THROWS(std::invalid_argument, RingSegment::create(1, 1024, 0));
  CHECK_THROWS(std::invalid_argument, RingSegment::create(1, 1000, 1));
  CHECK_THROWS(std::invalid_argument, RingSegment::create(1, 32, 1));
  CHECK_THROWS(std::invalid_argument, RingSegment::create(1, std::uint64_t{1} << 40U, 1));
  CHECK_THROWS(std::invalid_argument, RingSegment::create(std::numeric_limits<std::uint32_t>::max(), 1024, 1));
}

TEST("the beat is counted across two mappings") {
  Pair pair;
  const auto worker = RingSegment::attach(pair.segment->memory().handle_for_child());

  worker->beat();
  worker->beat();

  CHECK(pair.segment->beats() == 2);
}

TEST("frames cross between two mappings of one segment") {
  Pair pair;
  const auto worker = RingSegment::attach(pair.segment->memory().handle_for_child());
  RingWriter writer(worker, 1);

  CHECK(writer.push(1, 7, bytes_of("over there")));

  CHECK(drain(pair.reader) == std::vector<std::string>{"over there"});
}

TEST("close tells the peer and wakes a waiting reader") {
  Pair pair;
  const auto worker = RingSegment::attach(pair.segment->memory().handle_for_child());
  CHECK(!pair.segment->is_peer_closed());

  worker->close();
  worker->close();

  CHECK(pair.segment->is_peer_closed() && !worker->is_peer_closed());
  CHECK(pair.segment->wait(0, {}, 0ms) == Waited::kReady);
  CHECK_THROWS(RingClosed, RingWriter(worker, 1).push(1, 7, {}));
  pair.segment->close();
  CHECK_THROWS(RingClosed, pair.reader.drain(1, [](const Frame&) {}));
  CHECK_THROWS(RingClosed, pair.segment->wait(0, {}, 0ms));
}

// -- broken and hostile peers -----------------------------------------------------------------------------------------

TEST("bytes beyond the writer's index are invisible, so half a frame of a killed writer is none") {
  Pair pair;
  CHECK(pair.push("whole"));

  pair.scribble<std::uint32_t>(kFrames + 24, 5);  // the next frame's header, its tail never stored
  pair.scribble<std::uint32_t>(kFrames + 28, 1);

  CHECK(drain(pair.reader) == std::vector<std::string>{"whole"});
  CHECK(!pair.reader.has_data());
}

TEST("a wake call reaches a sleeper whose writer died between its two steps") {
  Pair pair;
  auto* word = reinterpret_cast<WakeWord*>(pair.segment->memory().data() + sizeof(SegmentHeader) + sizeof(WakeWord));
  const std::uint32_t rings[] = {1};
  for (int round = 0; round < 10; ++round) {
    Waited waited = Waited::kTimedOut;

    std::thread sleeper([&] { waited = pair.segment->wait(1, rings, 10s); });
    while (word->is_waiting.exchange(0) == 0) std::this_thread::yield();  // as the killed writer did, and no more
    // Lets it fall asleep; if it has not, the round passes and proves less.
    std::this_thread::sleep_for(2ms);
    pair.segment->wake_all();
    sleeper.join();

    CHECK(waited == Waited::kReady);
  }
}

TEST("a writer's index out of bounds is corruption, not a read outside the ring") {
  for (const std::uint64_t tail : {std::uint64_t{1032}, std::uint64_t{1} << 63U, ~std::uint64_t{7}, std::uint64_t{4}}) {
    Pair pair;
    pair.scribble(kTail, tail);

    CHECK_THROWS(RingCorrupt, drain(pair.reader));
    CHECK_THROWS(RingCorrupt, pair.reader.open(8, 0));
  }
}

TEST("a frame longer than what was written is corruption") {
  for (const std::uint32_t length : {6U, 100U, 0x7FFFFFFFU, 0xFFFFFFFFU, 0xFFFFFFF0U}) {
    Pair pair;
    CHECK(pair.push("x"));
    pair.scribble(kFrames, length);

    CHECK_THROWS(RingCorrupt, drain(pair.reader));
  }
}

TEST("half a header before the writer's index is corruption") {
  Pair pair;
  pair.scribble<std::uint64_t>(kTail, 8);

  CHECK_THROWS(RingCorrupt, drain(pair.reader));
}

TEST("a reader's index out of bounds is corruption for the writer") {
  for (const std::uint64_t head : {std::uint64_t{8}, std::uint64_t{1} << 63U}) {
    Pair pair(64);
    pair.scribble(kHead, head);

    CHECK_THROWS(RingCorrupt, pair.writer.free_bytes());
  }
}

TEST("a wake word that does not exist is corruption for the writer") {
  Pair pair;
  pair.scribble<std::uint32_t>(kWakeIndex, 2);

  CHECK_THROWS(RingCorrupt, pair.push("x"));
}

TEST("memory that is no segment is refused") {
  const SharedMemory small = SharedMemory::create(64);
  const SharedMemory zeros = SharedMemory::create(4096);

  CHECK_THROWS(RingCorrupt, RingSegment::attach(small.handle_for_child()));
  CHECK_THROWS(RingCorrupt, RingSegment::attach(zeros.handle_for_child()));
  CHECK_THROWS(std::invalid_argument, RingSegment::attach("fd:"));
  CHECK_THROWS(std::invalid_argument, RingSegment::attach("5"));
  CHECK_THROWS(std::system_error, RingSegment::attach("fd:1000000"));
}

TEST("a segment whose header does not add up is refused") {
  for (const std::size_t offset : {0U, 8U, 12U, 16U, 20U, 24U, 32U}) {
    Pair pair;
    pair.segment->memory().data()[offset] ^= std::byte{0x40};

    CHECK_THROWS(RingCorrupt, RingSegment::attach(pair.segment->memory().handle_for_child()));
  }
}

TEST("a peer that scribbles over its ring makes no access outside it") {
  // The neighbours' memory is poisoned: AddressSanitizer ends the test at the first byte touched there.
  std::uint64_t random = 42;
  std::uint64_t n_corrupt = 0;
  for (int round = 0; round < 20'000; ++round) {
    static Pair pair(256);
    std::byte* start = pair.ring_start();
    constexpr std::size_t kStride = kFrames + 256;
    POISON(start - kStride, kStride);
    POISON(start + kStride, kStride);
    for (int i = 0; i < 4; ++i) {
      random = numbered::mix(random);
      const std::uint64_t value = (random & 1U) != 0 ? random >> 40U : random % 64 * 8;
      // Indices, the wake index, or bytes of frames; sometimes a sound push in between.
      switch (random >> 61U) {
        case 0: pair.scribble(kHead, value); break;
        case 1: pair.scribble(kTail, value); break;
        case 2: pair.scribble(kWakeIndex, static_cast<std::uint32_t>(value % 3)); break;
        case 3:
        case 4: pair.scribble(kFrames + random % 63 * 4, static_cast<std::uint32_t>(value)); break;
        default: {
          try {
            pair.push(std::string(random % 100, 'x'));
          } catch (const RingCorrupt&) {
            ++n_corrupt;
          }
        }
      }
    }
    try {
      drain(pair.reader);
    } catch (const RingCorrupt&) {
      ++n_corrupt;
      // Mend it, as a new worker's segment would be sound.
      pair.scribble<std::uint64_t>(kHead, 0);
      pair.scribble<std::uint64_t>(kTail, 0);
      pair.scribble<std::uint32_t>(kWakeIndex, 0);
    }
    UNPOISON(start - kStride, kStride);
    UNPOISON(start + kStride, kStride);
  }

  CHECK(n_corrupt > 100);
}

CHECK_MAIN()
