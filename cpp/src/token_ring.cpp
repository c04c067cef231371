// The token ring's algorithm. Layout, ownership, memory edges and crash story stand at the top of token_ring.h.
#include "hostler/token_ring.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

namespace hostler {
namespace {

// The negative control: a build with this macro must fail under ThreadSanitizer, or our stress test proves nothing.
#if defined(HOSTLER_RING_BREAK_RELEASE)
constexpr std::memory_order kPublish = std::memory_order_relaxed;
#else
constexpr std::memory_order kPublish = std::memory_order_release;
#endif

constexpr std::uint32_t kHostClosed = 1;
constexpr std::uint32_t kWorkerClosed = 2;

constexpr std::uint64_t kWakesOffset = sizeof(SegmentHeader);

struct FrameHeader {
  std::uint32_t length;
  std::uint32_t kind;
  std::uint32_t generation;
};
static_assert(sizeof(FrameHeader) == kFrameHeaderBytes && std::has_unique_object_representations_v<FrameHeader>);

/// Bytes that a frame takes in the ring.
constexpr std::uint64_t frame_bytes(std::uint64_t payload_bytes) {
  return (kFrameHeaderBytes + payload_bytes + kFrameAlignment - 1) & ~std::uint64_t{kFrameAlignment - 1};
}
static_assert(frame_bytes(0) == 16 && frame_bytes(4) == 16 && frame_bytes(5) == 24);

constexpr std::uint64_t rings_offset(std::uint32_t n_wakes) { return kWakesOffset + sizeof(WakeWord) * n_wakes; }

constexpr std::uint64_t ring_stride(std::uint64_t ring_bytes) {
  // The next ring's header starts on a line of its own, also where a test asks for tiny rings.
  return sizeof(RingHeader) + ((ring_bytes + kLine - 1) & ~std::uint64_t{kLine - 1});
}

constexpr std::uint64_t segment_bytes(std::uint32_t n_rings, std::uint64_t ring_bytes, std::uint32_t n_wakes) {
  return rings_offset(n_wakes) + ring_stride(ring_bytes) * n_rings;
}

void check_sizes(std::uint32_t n_rings, std::uint64_t ring_bytes, std::uint32_t n_wakes) {
  if (n_rings < 1 || n_rings > kMaxRings) {
    throw std::invalid_argument("n_rings is " + std::to_string(n_rings) + "; it must be 1 to " + std::to_string(kMaxRings));
  }
  if (n_wakes < 1 || n_wakes > kMaxRings) {
    throw std::invalid_argument("n_wakes is " + std::to_string(n_wakes) + "; it must be 1 to " + std::to_string(kMaxRings));
  }
  if (!std::has_single_bit(ring_bytes) || ring_bytes < kMinRingBytes || ring_bytes > kMaxRingBytes) {
    throw std::invalid_argument("ring_bytes is " + std::to_string(ring_bytes) + "; it must be a power of two from " +
                                std::to_string(kMinRingBytes) + " to " + std::to_string(kMaxRingBytes));
  }
}

/// Copy into the ring at `position`, going on at its beginning where its end cuts the bytes.
void copy_in(std::byte* frames, std::uint64_t capacity, std::uint64_t position, const void* source, std::size_t bytes) {
  if (bytes == 0) return;  // memcpy forbids the null pointer that an empty payload may have
  const std::uint64_t at = position & (capacity - 1);
  const std::size_t until_end = std::min<std::size_t>(bytes, capacity - at);
  std::memcpy(frames + at, source, until_end);
  if (until_end < bytes) {
    std::memcpy(frames, static_cast<const std::byte*>(source) + until_end, bytes - until_end);
  }
}

}  // namespace

// -- segment ----------------------------------------------------------------------------------------------------------

RingSegment::RingSegment(SharedMemory memory, std::uint32_t n_rings, std::uint64_t ring_bytes, std::uint32_t n_wakes,
                         bool is_host)
    : memory_(std::move(memory)),
      n_rings_(n_rings),
      n_wakes_(n_wakes),
      ring_bytes_(ring_bytes),
      is_host_(is_host),
      header_(std::launder(reinterpret_cast<SegmentHeader*>(memory_.data()))),
      sleeper_(memory_.name(), n_wakes),
      answered_(std::make_unique<std::atomic<std::uint32_t>[]>(n_wakes)) {}

std::shared_ptr<RingSegment> RingSegment::create(std::uint32_t n_rings, std::uint64_t ring_bytes, std::uint32_t n_wakes) {
  check_sizes(n_rings, ring_bytes, n_wakes);
  const std::uint64_t total = segment_bytes(n_rings, ring_bytes, n_wakes);
  SharedMemory memory = SharedMemory::create(total);
  std::byte* base = memory.data();
  // No peer exists yet: it learns the handle after this returns.
  auto* header = ::new (static_cast<void*>(base)) SegmentHeader{};
  header->version = kSegmentVersion;
  header->byte_order = kByteOrderMark;
  header->n_rings = n_rings;
  header->n_wakes = n_wakes;
  header->ring_bytes = ring_bytes;
  header->total_bytes = total;
  for (std::uint32_t i = 0; i < n_wakes; ++i) {
    ::new (static_cast<void*>(base + kWakesOffset + sizeof(WakeWord) * i)) WakeWord{};
  }
  for (std::uint32_t i = 0; i < n_rings; ++i) {
    ::new (static_cast<void*>(base + rings_offset(n_wakes) + ring_stride(ring_bytes) * i)) RingHeader{};
  }
  header->magic = kSegmentMagic;
  return std::shared_ptr<RingSegment>(new RingSegment(std::move(memory), n_rings, ring_bytes, n_wakes, true));
}

std::shared_ptr<RingSegment> RingSegment::attach(std::string_view handle) {
  SharedMemory memory = SharedMemory::attach(handle);
  if (memory.size() < sizeof(SegmentHeader)) {
    throw RingCorrupt("the shared memory behind '" + std::string(handle) + "' is too small to be a ring segment");
  }
  const auto* header = std::launder(reinterpret_cast<const SegmentHeader*>(memory.data()));
  if (header->magic != kSegmentMagic) {
    throw RingCorrupt("the shared memory behind '" + std::string(handle) + "' is no ring segment (bad magic)");
  }
  if (header->version != kSegmentVersion || header->byte_order != kByteOrderMark) {
    throw RingCorrupt("the ring segment has version " + std::to_string(header->version) + ", this process speaks " +
                      std::to_string(kSegmentVersion) + "; host and worker must run the same hostler");
  }
  const std::uint32_t n_rings = header->n_rings;
  const std::uint32_t n_wakes = header->n_wakes;
  const std::uint64_t ring_bytes = header->ring_bytes;
  const std::uint64_t total = header->total_bytes;
  try {
    check_sizes(n_rings, ring_bytes, n_wakes);
  } catch (const std::invalid_argument& error) {
    throw RingCorrupt(std::string("the ring segment's header is corrupt: ") + error.what());
  }
  if (total != segment_bytes(n_rings, ring_bytes, n_wakes) || total > memory.size()) {
    throw RingCorrupt("the ring segment's header is corrupt: its sizes do not add up to " + std::to_string(total));
  }
  return std::shared_ptr<RingSegment>(new RingSegment(std::move(memory), n_rings, ring_bytes, n_wakes, false));
}

WakeWord& RingSegment::wake_word(std::uint32_t index) const {
  if (index >= n_wakes_) {
    throw std::out_of_range("wake word " + std::to_string(index) + " does not exist; the segment has " +
                            std::to_string(n_wakes_));
  }
  return *std::launder(reinterpret_cast<WakeWord*>(memory_.data() + kWakesOffset + sizeof(WakeWord) * index));
}

RingHeader& RingSegment::ring(std::uint32_t index) const {
  if (index >= n_rings_) {
    throw std::out_of_range("ring " + std::to_string(index) + " does not exist; the segment has " + std::to_string(n_rings_));
  }
  return *std::launder(
      reinterpret_cast<RingHeader*>(memory_.data() + rings_offset(n_wakes_) + ring_stride(ring_bytes_) * index));
}

std::byte* RingSegment::frames(std::uint32_t index) const noexcept {
  return memory_.data() + rings_offset(n_wakes_) + ring_stride(ring_bytes_) * index + sizeof(RingHeader);
}

void RingSegment::wake(std::uint32_t wake_index) {
  WakeWord& word = wake_word(wake_index);
  // release: what the caller did before (a flag, a reaped worker) is seen by the thread that take_calls() this.
  word.calls.fetch_add(1, std::memory_order_release);
  word.is_waiting.exchange(0, std::memory_order_acq_rel);
  word.count.fetch_add(1, std::memory_order_release);
  // Unconditional: a killed writer may have cleared is_waiting and never made its own system call.
  sleeper_.wake(wake_index, word.count);
}

void RingSegment::wake_all() {
  for (std::uint32_t i = 0; i < n_wakes_; ++i) wake(i);
}

void RingSegment::wake_sleeper(std::uint32_t wake_index) noexcept {
  WakeWord& word = *std::launder(reinterpret_cast<WakeWord*>(memory_.data() + kWakesOffset + sizeof(WakeWord) * wake_index));
  if (word.is_waiting.exchange(0, std::memory_order_acq_rel) != 0) {
    word.count.fetch_add(1, std::memory_order_release);
    sleeper_.wake(wake_index, word.count);
  }
}

bool RingSegment::has_bytes(std::uint32_t index) const noexcept {
  const RingHeader& header = *std::launder(
      reinterpret_cast<const RingHeader*>(memory_.data() + rings_offset(n_wakes_) + ring_stride(ring_bytes_) * index));
  return header.tail.load(std::memory_order_acquire) != header.head.load(std::memory_order_relaxed);
}

bool RingSegment::take_calls(std::uint32_t wake_index, const WakeWord& word) noexcept {
  const std::uint32_t calls = word.calls.load(std::memory_order_acquire);
  return answered_[wake_index].exchange(calls, std::memory_order_relaxed) != calls;
}

Waited RingSegment::wait(std::uint32_t wake_index, std::span<const std::uint32_t> rings, std::chrono::nanoseconds timeout) {
  require_open();
  WakeWord& word = wake_word(wake_index);
  for (const std::uint32_t index : rings) static_cast<void>(ring(index));  // checked once, before the loop

  const auto is_ready = [&]() noexcept {
    // Both are looked at, so that a wake() is answered even when bytes are there, too: the caller looks at everything.
    bool ready = take_calls(wake_index, word);
    for (const std::uint32_t index : rings) ready = ready || has_bytes(index);
    return ready;
  };

  if (is_ready()) return Waited::kReady;
  // A year stands for ever: now + nanoseconds::max() would overflow.
  const auto deadline =
      std::chrono::steady_clock::now() + std::min<std::chrono::nanoseconds>(timeout, std::chrono::hours(8760));
  for (;;) {
    const std::uint32_t seen = word.count.load(std::memory_order_acquire);
    word.is_waiting.exchange(1, std::memory_order_acq_rel);
    if (is_ready()) {
      word.is_waiting.store(0, std::memory_order_relaxed);  // a stale 1 would only cost the writer one system call
      return Waited::kReady;
    }
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= std::chrono::nanoseconds::zero()) {
      word.is_waiting.store(0, std::memory_order_relaxed);
      return Waited::kTimedOut;
    }
    if (sleeper_.sleep(wake_index, word.count, seen, left) == Slept::kInterrupted) {
      word.is_waiting.store(0, std::memory_order_relaxed);
      return is_ready() ? Waited::kReady : Waited::kInterrupted;
    }
  }
}

void RingSegment::close() {
  if (is_closed_.exchange(true, std::memory_order_acq_rel)) return;
  header_->closed.fetch_or(is_host_ ? kHostClosed : kWorkerClosed, std::memory_order_release);
  wake_all();
}

bool RingSegment::is_peer_closed() const noexcept {
  return (header_->closed.load(std::memory_order_acquire) & (is_host_ ? kWorkerClosed : kHostClosed)) != 0;
}

void RingSegment::require_open() const {
  if (is_closed()) throw RingClosed("this ring segment was closed");
}

// -- writer -----------------------------------------------------------------------------------------------------------

RingWriter::RingWriter(std::shared_ptr<RingSegment> segment, std::uint32_t index)
    : segment_(std::move(segment)),
      ring_(&segment_->ring(index)),
      frames_(segment_->frames(index)),
      capacity_(segment_->ring_bytes()),
      cached_head_(ring_->head.load(std::memory_order_acquire)) {}

std::uint64_t RingWriter::room(std::uint64_t tail) {
  const std::uint64_t used = tail - cached_head_;
  // SAFETY: the reader's index comes from another process. More than the capacity in use cannot be.
  if (used > capacity_) {
    throw RingCorrupt("the token ring is corrupt: its reader's index " + std::to_string(cached_head_) +
                      " does not go with the writer's " + std::to_string(tail));
  }
  return capacity_ - used;
}

std::uint64_t RingWriter::free_bytes() {
  segment_->require_open();
  cached_head_ = ring_->head.load(std::memory_order_acquire);
  return room(ring_->tail.load(std::memory_order_relaxed));
}

bool RingWriter::push(std::uint32_t kind, std::uint32_t generation, std::span<const std::byte> payload) {
  segment_->require_open();
  if (payload.size() > capacity_ - kFrameHeaderBytes) {
    throw std::invalid_argument("a frame of " + std::to_string(payload.size()) + " bytes never fits into a token ring of " +
                                std::to_string(capacity_) + " bytes; split it, or make the rings larger");
  }
  const std::uint64_t bytes = frame_bytes(payload.size());
  const std::uint64_t tail = ring_->tail.load(std::memory_order_relaxed);  // our own
  if (tail - cached_head_ > capacity_ || capacity_ - (tail - cached_head_) < bytes) {
    // acquire: the reader has copied out everything before this head, so its bytes are ours again.
    cached_head_ = ring_->head.load(std::memory_order_acquire);
    if (room(tail) < bytes) return false;
  }
  const FrameHeader header{static_cast<std::uint32_t>(payload.size()), kind, generation};
  copy_in(frames_, capacity_, tail, &header, sizeof header);
  copy_in(frames_, capacity_, tail + sizeof header, payload.data(), payload.size());
  // release: publishes the frame [tail, tail + bytes). Before it a killed writer leaves nothing, after it a whole frame.
  ring_->tail.store(tail + bytes, kPublish);
  const std::uint32_t wake_index = ring_->wake_index.load(std::memory_order_acquire);
  if (wake_index >= segment_->n_wakes_) {
    throw RingCorrupt("the token ring is corrupt: it names wake word " + std::to_string(wake_index) + " of " +
                      std::to_string(segment_->n_wakes_));
  }
  segment_->wake_sleeper(wake_index);
  return true;
}

// -- reader -----------------------------------------------------------------------------------------------------------

RingReader::RingReader(std::shared_ptr<RingSegment> segment, std::uint32_t index)
    : segment_(std::move(segment)),
      ring_(&segment_->ring(index)),
      frames_(segment_->frames(index)),
      index_(index),
      capacity_(segment_->ring_bytes()),
      generation_(ring_->generation.load(std::memory_order_relaxed)) {}

void RingReader::corrupt(const char* what, std::uint64_t value) const {
  throw RingCorrupt("token ring " + std::to_string(index_) + " is corrupt: " + what + " (" + std::to_string(value) +
                    "); its worker must be ended");
}

void RingReader::open(std::uint32_t generation, std::uint32_t wake_index) {
  segment_->require_open();
  if (wake_index >= segment_->n_wakes()) {
    throw std::out_of_range("wake word " + std::to_string(wake_index) + " does not exist; the segment has " +
                            std::to_string(segment_->n_wakes()));
  }
  begin();  // checks the indices
  generation_ = generation;
  ring_->generation.store(generation, std::memory_order_relaxed);
  // release: a writer that goes by the new index finds everything this thread did before.
  ring_->wake_index.store(wake_index, std::memory_order_release);
  cursor_ = limit_;
  commit();
}

bool RingReader::has_data() const {
  segment_->require_open();
  return segment_->has_bytes(index_);
}

void RingReader::begin() {
  segment_->require_open();
  cursor_ = ring_->head.load(std::memory_order_relaxed);  // our own
  // acquire: the frames before this tail are whole.
  limit_ = ring_->tail.load(std::memory_order_acquire);
  if (limit_ - cursor_ > capacity_) corrupt("the writer's index is out of bounds", limit_);
  if ((limit_ | cursor_) % kFrameAlignment != 0) corrupt("an index is not a multiple of 8", limit_);
}

std::optional<Frame> RingReader::next(bool& is_ours) {
  const std::uint64_t available = limit_ - cursor_;
  if (available == 0) return std::nullopt;
  if (available < kFrameHeaderBytes) corrupt("half a frame header lies before the writer's index", limit_);

  // SAFETY: the header is copied out once and checked in the copy; a peer that goes on writing changes nothing here.
  FrameHeader header;
  const std::uint64_t at = cursor_ & (capacity_ - 1);
  const std::size_t until_end = std::min<std::size_t>(sizeof header, capacity_ - at);
  std::memcpy(&header, frames_ + at, until_end);
  std::memcpy(reinterpret_cast<std::byte*>(&header) + until_end, frames_, sizeof header - until_end);
  if (frame_bytes(header.length) > available) corrupt("a frame is longer than what was written", header.length);

  const std::uint64_t start = (cursor_ + kFrameHeaderBytes) & (capacity_ - 1);
  const std::size_t first = std::min<std::size_t>(header.length, capacity_ - start);
  cursor_ += frame_bytes(header.length);
  is_ours = header.generation == generation_;
  return Frame{header.kind, {frames_ + start, first}, {frames_, header.length - first}};
}

void RingReader::commit() noexcept {
  // release: everything before `cursor_` has been copied out; the writer may overwrite it.
  ring_->head.store(cursor_, std::memory_order_release);
}

}  // namespace hostler
