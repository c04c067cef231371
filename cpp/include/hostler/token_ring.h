// The token ring: how output tokens get from a worker process to the host thread that streams them.
//
// Ownership
//   One segment per worker. Each ring has ONE writer, the worker's loop thread, which owns `tail`; and ONE reader, the
//   host thread that streams the request, which owns `head`, `wake_index` and `generation`. Both sides read both
//   indices, only the owner writes one. A stale view of the peer's index is safe: indices never go backwards, so the
//   writer sees too little room and the reader too few frames, never too much. A wake word belongs to the one thread
//   that sleeps on it; anyone may ring it. `beat` belongs to the worker.
//
// Layout of the segment (native byte order, all offsets in bytes, everything on its own 128-byte line: two 64-byte
// lines, because Intel prefetches in pairs and Apple's lines are that long)
//
//     offset            size             what
//     0                 8                magic "HSTLRING"
//     8                 4                version (1)
//     12                4                byte order mark 0x01020304
//     16                4                n_rings
//     20                4                n_wakes
//     24                8                ring_bytes: bytes of frames a ring holds; a power of two
//     32                8                total_bytes of the segment
//     128               8                beat: the worker adds 1 every loop                    atomic, worker
//     256               4                closed: bit 0 host, bit 1 worker                      atomic, both
//     384               128 * n_wakes    wake words
//       +0              4                  count: goes up with every wake-up; slept on         atomic, all
//       +4              4                  is_waiting: 1 while its thread may sleep            atomic, all
//       +8              4                  calls: goes up with every wake()                    atomic, all
//     384+128*n_wakes   stride * n_rings rings; stride = 384 + ring_bytes, rounded up to whole lines
//       +0              8                  head: bytes ever read, mod 2^64                     atomic, reader
//       +128            8                  tail: bytes ever written, mod 2^64                  atomic, writer
//       +256            4                  wake_index: whom to wake                            atomic, reader
//       +260            4                  generation the reader waits for                     atomic, reader
//       +384            ring_bytes         frames
//
// A frame starts at a multiple of 8 and is padded to one:
//
//     0   4   length of the payload      4   4   kind      8   4   generation      12   length   payload
//
// A frame that meets the end of the ring goes on at its beginning (two copies instead of padding frames: the whole
// capacity is usable, and a frame may be as long as the ring).
//
// Edges
//   writer: copy frame; tail.store(release)  ->  reader: tail.load(acquire); copy frame out
//           "publishes the frames in [old tail, new tail)"
//   reader: head.store(release)              ->  writer: head.load(acquire); overwrite
//           "gives the bytes in [old head, new head) back"
//   Sleeping is an event count. The reader reads `count`, sets is_waiting, looks at everything once more, then sleeps
//   while `count` is unchanged. The writer publishes, then swaps is_waiting for 0 and, only if it was 1, raises `count`
//   and makes the system call. Both swaps are acq_rel operations on one word, so one comes first: if the reader's, the
//   writer sees the 1; if the writer's, the reader's look comes after the publication. No wake-up is lost.
//   PERF: while nobody sleeps a push costs one uncontended locked instruction for that, and no system call.
//
// Crash story
//   * A writer that dies (SIGKILL included) before its tail.store leaves bytes nobody looks at; after it, a whole frame.
//     There is nothing between, so a reader sees whole frames only. What was published stays readable.
//   * A writer that dies between clearing is_waiting and the system call leaves a sleeper: the host, told of the death
//     by the process's end, calls wake_all(), which makes its system calls unconditionally.
//   * A reader that leaves (client gone) just stops; its ring fills up and only that ring. The next reader's open()
//     takes a new generation, discards what is there, and drops whatever the writer still pushes for the old one.
//   * A peer that scribbles (or means harm) can put anything into the segment. SAFETY: each index and length is copied
//     out once, checked against this process's own copy of the sizes, and used from the copy; a bad one is a
//     RingCorrupt, never an access outside the ring. The size of the memory itself is sealed (shm.h).
//   * Nothing is cleaned up by hand: the memory goes with the last process that maps it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "hostler/shm.h"
#include "hostler/sleeper.h"

namespace hostler {

inline constexpr std::size_t kLine = 128;
inline constexpr std::uint64_t kSegmentMagic = 0x474E49524C545348;  // "HSTLRING" as little-endian bytes
inline constexpr std::uint32_t kSegmentVersion = 1;
inline constexpr std::uint32_t kByteOrderMark = 0x01020304;
inline constexpr std::uint32_t kFrameHeaderBytes = 12;
inline constexpr std::uint32_t kFrameAlignment = 8;
inline constexpr std::uint64_t kMinRingBytes = 64;
inline constexpr std::uint64_t kMaxRingBytes = std::uint64_t{1} << 30U;
inline constexpr std::uint32_t kMaxRings = 65'536;  // far over any slot count; keeps total_bytes below 2^47

struct SegmentHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t byte_order;
  std::uint32_t n_rings;
  std::uint32_t n_wakes;
  std::uint64_t ring_bytes;
  std::uint64_t total_bytes;
  alignas(kLine) std::atomic<std::uint64_t> beat;
  alignas(kLine) std::atomic<std::uint32_t> closed;
};

struct WakeWord {
  alignas(kLine) std::atomic<std::uint32_t> count;
  std::atomic<std::uint32_t> is_waiting;
  std::atomic<std::uint32_t> calls;
};

struct RingHeader {
  alignas(kLine) std::atomic<std::uint64_t> head;
  alignas(kLine) std::atomic<std::uint64_t> tail;
  alignas(kLine) std::atomic<std::uint32_t> wake_index;
  std::atomic<std::uint32_t> generation;
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "a lock would live in one process only");
static_assert(std::atomic<std::uint32_t>::is_always_lock_free, "a lock would live in one process only");
static_assert(std::atomic<bool>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint64_t>) == 8 && sizeof(std::atomic<std::uint32_t>) == 4);
static_assert(sizeof(SegmentHeader) == 384 && offsetof(SegmentHeader, n_rings) == 16 &&
              offsetof(SegmentHeader, ring_bytes) == 24 && offsetof(SegmentHeader, total_bytes) == 32 &&
              offsetof(SegmentHeader, beat) == 128 && offsetof(SegmentHeader, closed) == 256);
static_assert(sizeof(WakeWord) == 128 && offsetof(WakeWord, is_waiting) == 4 && offsetof(WakeWord, calls) == 8);
static_assert(sizeof(RingHeader) == 384 && offsetof(RingHeader, tail) == 128 && offsetof(RingHeader, wake_index) == 256 &&
              offsetof(RingHeader, generation) == 260);

/// Something in the segment cannot be what a sound peer wrote. The worker is broken: end it, its segment goes with it.
class RingCorrupt : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// This side has called close() on the segment.
class RingClosed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Waited { kReady, kTimedOut, kInterrupted };

/// One worker's segment. Any thread may call any method; the rings in it have one reader and one writer each.
class RingSegment {
 public:
  /// Host: a new segment. `ring_bytes` is a power of two in [64, 2^30]. Throws std::invalid_argument, std::system_error.
  static std::shared_ptr<RingSegment> create(std::uint32_t n_rings, std::uint64_t ring_bytes, std::uint32_t n_wakes);

  /// Worker: the segment that `handle_for_child()` of the host named. Throws as SharedMemory::attach does, and
  /// RingCorrupt when the memory holds no segment of this version.
  static std::shared_ptr<RingSegment> attach(std::string_view handle);

  RingSegment(const RingSegment&) = delete;
  RingSegment& operator=(const RingSegment&) = delete;

  std::uint32_t n_rings() const noexcept { return n_rings_; }
  std::uint32_t n_wakes() const noexcept { return n_wakes_; }
  std::uint64_t ring_bytes() const noexcept { return ring_bytes_; }
  const SharedMemory& memory() const noexcept { return memory_; }

  /// Worker, once a loop: I am alive.
  void beat() noexcept { header_->beat.fetch_add(1, std::memory_order_relaxed); }
  /// Host: how often the worker's loop has come round.
  std::uint64_t beats() const noexcept { return header_->beat.load(std::memory_order_relaxed); }

  /// Anyone: make the next wait() on that word (or the one going on) return kReady.
  void wake(std::uint32_t wake_index);
  void wake_all();

  /// Reader: sleep until one of `rings` has bytes or somebody called wake(), for `timeout` at most. A wake() that came
  /// since the last wait() on this word returned counts, too. One thread a word at a time.
  Waited wait(std::uint32_t wake_index, std::span<const std::uint32_t> rings, std::chrono::nanoseconds timeout);

  /// Tell the peer that this side is done and wake its readers. The memory goes with the last owner of this object.
  void close();
  bool is_closed() const noexcept { return is_closed_.load(std::memory_order_acquire); }
  /// The other side has called close(). A killed peer has not.
  bool is_peer_closed() const noexcept;

  /// Throws RingClosed after close().
  void require_open() const;

 private:
  friend class RingWriter;
  friend class RingReader;

  RingSegment(SharedMemory memory, std::uint32_t n_rings, std::uint64_t ring_bytes, std::uint32_t n_wakes, bool is_host);

  WakeWord& wake_word(std::uint32_t index) const;  // checked
  RingHeader& ring(std::uint32_t index) const;     // checked
  std::byte* frames(std::uint32_t index) const noexcept;
  void wake_sleeper(std::uint32_t wake_index) noexcept;  // the writer's half of the event count
  bool has_bytes(std::uint32_t ring) const noexcept;
  bool take_calls(std::uint32_t wake_index, const WakeWord& word) noexcept;

  SharedMemory memory_;
  // SAFETY: this process's own copies; the ones in shared memory are never read again after attach().
  const std::uint32_t n_rings_;
  const std::uint32_t n_wakes_;
  const std::uint64_t ring_bytes_;
  const bool is_host_;
  SegmentHeader* header_;
  Sleeper sleeper_;
  // Per wake word, the `calls` that its thread has answered. Owned by that thread; atomic because the word may pass
  // from one thread to the next.
  std::unique_ptr<std::atomic<std::uint32_t>[]> answered_;
  std::atomic<bool> is_closed_{false};
};

/// The worker's end of one ring; its loop thread only.
class RingWriter {
 public:
  RingWriter(std::shared_ptr<RingSegment> segment, std::uint32_t index);

  /// Publish one frame and wake the reader if it sleeps. False: no room, nothing written. Throws std::invalid_argument
  /// when the frame is longer than the ring, RingCorrupt when the reader's index cannot be.
  bool push(std::uint32_t kind, std::uint32_t generation, std::span<const std::byte> payload);

  /// Bytes of frames that fit now (a frame takes 12 + its payload, rounded up to 8).
  std::uint64_t free_bytes();

 private:
  std::uint64_t room(std::uint64_t tail);

  std::shared_ptr<RingSegment> segment_;
  RingHeader* ring_;
  std::byte* frames_;
  std::uint64_t capacity_;
  std::uint64_t cached_head_;  // the peer's index as last seen: another look only when it leaves too little room
};

/// One frame as it lies in the ring: the payload in one piece or, where the ring's end cuts it, in two.
struct Frame {
  std::uint32_t kind;
  std::span<const std::byte> first;
  std::span<const std::byte> second;
  std::size_t size() const noexcept { return first.size() + second.size(); }
};

/// The host's end of one ring; the one thread that streams the request.
class RingReader {
 public:
  RingReader(std::shared_ptr<RingSegment> segment, std::uint32_t index);

  /// Take the ring for a new sequence, before it is submitted: frames of other generations are dropped from now on,
  /// leftovers are discarded, the writer wakes `wake_index`. Throws std::invalid_argument for an index out of range.
  void open(std::uint32_t generation, std::uint32_t wake_index);

  bool has_data() const;

  /// Frames of other generations met so far.
  std::uint64_t n_dropped() const noexcept { return n_dropped_; }

  /// Hand up to `max_frames` frames of the opened generation to `sink(const Frame&)`, then give their room back.
  /// If `sink` throws, nothing was taken: the next drain starts with the same frame. Throws RingCorrupt.
  template <typename Sink>
  std::size_t drain(std::size_t max_frames, Sink&& sink) {
    begin();
    std::size_t n_frames = 0;
    std::uint64_t n_dropped = 0;
    while (n_frames < max_frames) {
      bool is_ours = false;
      const std::optional<Frame> frame = next(is_ours);
      if (!frame) break;
      if (is_ours) {
        sink(*frame);
        ++n_frames;
      } else {
        ++n_dropped;
      }
    }
    n_dropped_ += n_dropped;
    commit();
    return n_frames;
  }

 private:
  void begin();
  std::optional<Frame> next(bool& is_ours);
  void commit() noexcept;
  [[noreturn]] void corrupt(const char* what, std::uint64_t value) const;

  std::shared_ptr<RingSegment> segment_;
  RingHeader* ring_;
  const std::byte* frames_;
  std::uint32_t index_;
  std::uint64_t capacity_;
  std::uint32_t generation_;
  std::uint64_t n_dropped_ = 0;
  std::uint64_t cursor_ = 0;  // during a drain: the next frame
  std::uint64_t limit_ = 0;   // during a drain: tail as loaded once at its beginning; one load serves all its frames
};

}  // namespace hostler
