// Python face of the token ring. A blocking call releases the GIL; a short one (push, drain) keeps it, because handing
// the GIL over costs more than the call.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "bindings.h"
#include "hostler/token_ring.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hostler::bindings {
namespace {

/// A bytes-like object for as long as we read it.
class Buffer {
 public:
  explicit Buffer(nb::handle source) {
    if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { PyBuffer_Release(&view_); }
  std::span<const std::byte> bytes() const noexcept {
    return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

bool push(RingWriter& writer, std::uint32_t kind, std::uint32_t generation, nb::handle payload) {
  if (PyBytes_Check(payload.ptr())) {
    char* data = nullptr;
    Py_ssize_t length = 0;
    if (PyBytes_AsStringAndSize(payload.ptr(), &data, &length) != 0) throw nb::python_error();
    return writer.push(kind, generation, {reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(length)});
  }
  const Buffer buffer(payload);
  return writer.push(kind, generation, buffer.bytes());
}

nb::list drain(RingReader& reader, std::size_t max_frames) {
  nb::list frames;
  reader.drain(max_frames, [&frames](const Frame& frame) {
    nb::object payload = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(frame.size())));
    if (!payload.is_valid()) throw nb::python_error();
    // SAFETY: the payload leaves shared memory here, before its room is given back.
    char* target = PyBytes_AsString(payload.ptr());
    if (!frame.first.empty()) std::memcpy(target, frame.first.data(), frame.first.size());
    if (!frame.second.empty()) std::memcpy(target + frame.first.size(), frame.second.data(), frame.second.size());
    frames.append(nb::make_tuple(frame.kind, payload));
  });
  return frames;
}

bool wait(const std::shared_ptr<RingSegment>& segment, std::uint32_t wake_index, const std::vector<std::uint32_t>& rings,
          double timeout_s) {
  using Clock = std::chrono::steady_clock;
  if (!(timeout_s >= 0.0)) throw nb::value_error("timeout_s must be 0 or more (inf waits until something comes)");
  constexpr double kForeverS = 3.0e8;  // ten years
  const auto deadline = Clock::now() + std::chrono::duration_cast<std::chrono::nanoseconds>(
                                           std::chrono::duration<double>(std::min(timeout_s, kForeverS)));
  for (;;) {
    // One second at a time: a signal that comes just before the system call interrupts nothing, and KeyboardInterrupt
    // must not have to wait for the next token.
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now());
    const auto slice = std::min<std::chrono::nanoseconds>(left, std::chrono::seconds(1));
    Waited waited;
    {
      const nb::gil_scoped_release released;
      waited = segment->wait(wake_index, rings, std::max(slice, std::chrono::nanoseconds::zero()));
    }
    if (waited == Waited::kReady) return true;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (Clock::now() >= deadline) return false;
  }
}

}  // namespace

void register_ring(nb::module_& module) {
  nb::exception<RingCorrupt>(module, "RingCorrupt", PyExc_RuntimeError).doc() =
      "The shared memory holds what no sound peer writes: end the worker, its segment goes with it.";
  nb::exception<RingClosed>(module, "RingClosed", PyExc_RuntimeError).doc() = "This side has closed the segment.";

  nb::class_<RingWriter>(module, "RingWriter", "The worker's end of one ring; one thread only.")
      .def("push", &push, "kind"_a, "generation"_a, "payload"_a,
           nb::sig("def push(self, kind: int, generation: int, payload: bytes | bytearray | memoryview) -> bool"),
           "Publish one frame and wake the reader if it sleeps.\n\n"
           "Args:\n"
           "    kind: What the payload is; 32 bits, the ring does not look at it.\n"
           "    generation: Low 32 bits of the sequence's id; the reader drops frames of any but the opened one.\n"
           "    payload: Copied before this returns.\n\n"
           "Returns:\n"
           "    False when there is no room; then nothing was written.\n\n"
           "Raises:\n"
           "    ValueError: The frame is longer than the ring and can never fit.\n"
           "    RingCorrupt: The reader's index cannot be.\n"
           "    RingClosed: This side has closed the segment.")
      .def_prop_ro("free_bytes", &RingWriter::free_bytes,
                   "Bytes of frames that fit now; a frame takes 12 + its payload, rounded up to 8.");

  nb::class_<RingReader>(module, "RingReader", "The host's end of one ring; one thread at a time.")
      .def("open", &RingReader::open, "generation"_a, "wake_index"_a,
           "Take the ring for a new sequence, before the sequence is submitted.\n\n"
           "Leftovers are discarded and frames of other generations dropped from now on.\n\n"
           "Args:\n"
           "    generation: Low 32 bits of the sequence's id.\n"
           "    wake_index: The wake word of the thread that will wait.\n\n"
           "Raises:\n"
           "    IndexError: There is no such wake word.\n"
           "    RingCorrupt: The writer's index cannot be.")
      .def("drain", &drain, "max_frames"_a = 256, nb::sig("def drain(self, max_frames: int = 256) -> list[tuple[int, bytes]]"),
           "Take up to `max_frames` frames of the opened generation, oldest first, without waiting.\n\n"
           "Returns:\n"
           "    (kind, payload) of each; empty when there is none.\n\n"
           "Raises:\n"
           "    RingCorrupt: A frame or an index cannot be what a sound worker wrote.\n"
           "    RingClosed: This side has closed the segment.")
      .def_prop_ro("has_data", &RingReader::has_data, "Whether any bytes wait, of whichever generation.")
      .def_prop_ro("n_dropped", &RingReader::n_dropped, "Frames of other generations met by this reader so far.");

  nb::class_<RingSegment>(module, "RingSegment", "One worker's shared memory: its rings, its wake words, its heartbeat.")
      .def_static("create", &RingSegment::create, "n_rings"_a, "ring_bytes"_a, "n_wakes"_a,
                  "Make a segment (host).\n\n"
                  "Args:\n"
                  "    n_rings: One per sequence that may run or wait in the worker.\n"
                  "    ring_bytes: Bytes of frames each ring holds; a power of two from 64 to 2**30.\n"
                  "    n_wakes: One per host thread that may wait on this worker.\n\n"
                  "Raises:\n"
                  "    ValueError: A size is out of range.\n"
                  "    OSError: The system gives no such memory.")
      .def_static(
          "attach", [](const std::string& handle) { return RingSegment::attach(handle); }, "handle"_a,
          "Map the segment that `handle_for_child()` named in the host (worker).\n\n"
          "Raises:\n"
          "    ValueError: The text is no handle.\n"
          "    OSError: The descriptor was not passed to this process, or the name is gone.\n"
          "    RingCorrupt: The memory holds no segment of this version.")
      .def(
          "handle_for_child", [](const RingSegment& segment) { return segment.memory().handle_for_child(); },
          "What the worker gives to `attach`: \"fd:N\" on Linux (pass on `pass_fds`, too), \"name:...\" elsewhere.")
      .def_prop_ro(
          "pass_fds",
          [](const RingSegment& segment) {
            const int fd = segment.memory().fd();
            return fd >= 0 ? nb::object(nb::make_tuple(fd)) : nb::object(nb::make_tuple());
          },
          nb::sig("def pass_fds(self) -> tuple[int, ...]"),
          "Descriptors for `subprocess.Popen(pass_fds=...)`; empty where memory goes by name.")
      .def_prop_ro("n_rings", &RingSegment::n_rings)
      .def_prop_ro("n_wakes", &RingSegment::n_wakes)
      .def_prop_ro("ring_bytes", &RingSegment::ring_bytes)
      .def("beat", &RingSegment::beat, "Count one round of the worker's loop (worker).")
      .def_prop_ro("beats", &RingSegment::beats,
                   "Rounds of the worker's loop so far (host); unchanged for long means that the worker hangs.")
      .def("wake", &RingSegment::wake, "wake_index"_a,
           "Make the wait on that word return True: the one going on, else the next one (anyone).")
      .def("wake_all", &RingSegment::wake_all, "`wake` every word, for instance when the worker has died.")
      .def("wait", &wait, "wake_index"_a, "rings"_a, "timeout_s"_a,
           nb::sig("def wait(self, wake_index: int, rings: collections.abc.Sequence[int], timeout_s: float) -> bool"),
           "Sleep, the GIL released, until there is something to look at. One thread a wake word at a time.\n\n"
           "Args:\n"
           "    wake_index: This thread's wake word, as the rings' `open` was told.\n"
           "    rings: The rings whose data counts.\n"
           "    timeout_s: Seconds; 0 only looks, inf waits until something comes.\n\n"
           "Returns:\n"
           "    True when one of `rings` has data or `wake` was called on this word since the last wait on it\n"
           "    returned; False after `timeout_s`. True promises no frame: what came may be of another generation.\n\n"
           "Raises:\n"
           "    IndexError: There is no such wake word or ring.\n"
           "    ValueError: `timeout_s` is negative or no number.\n"
           "    RingClosed: This side has closed the segment.\n"
           "    KeyboardInterrupt: Ctrl-C, in the main thread.")
      .def(
          "writer",
          [](std::shared_ptr<RingSegment> segment, std::uint32_t ring) { return RingWriter(std::move(segment), ring); },
          "ring"_a, "The writing end of a ring (worker).")
      .def(
          "reader",
          [](std::shared_ptr<RingSegment> segment, std::uint32_t ring) { return RingReader(std::move(segment), ring); },
          "ring"_a, "The reading end of a ring (host).")
      .def("close", &RingSegment::close,
           "Tell the peer that this side is done; waits return and later calls raise RingClosed. Twice is fine.")
      .def_prop_ro("is_closed", &RingSegment::is_closed)
      .def_prop_ro("is_peer_closed", &RingSegment::is_peer_closed,
                   "Whether the other side has called `close`; a killed peer has not.");
}

}  // namespace hostler::bindings
