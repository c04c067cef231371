// Prefetching a mapped file: the part of mapped_file.h that is the same on every system.
#include "hostler/mapped_file.h"

#include <algorithm>
#include <string>
#include <vector>

namespace hostler {
namespace {

// One progress call each: often enough for a progress bar, rare enough that the calls cost nothing.
constexpr std::uint64_t kSliceBytes = std::uint64_t{8} << 20U;
// What one read asks for. The bytes are thrown away; they must fit the processor's cache, or the copy costs memory time.
constexpr std::size_t kReadBytes = std::size_t{256} << 10U;

}  // namespace

std::uint64_t MappedFile::prefetch(const Progress& progress) const {
  std::vector<std::byte> buffer(kReadBytes);
  std::uint64_t n_read = 0;
  for (std::uint64_t offset = 0; offset < size_bytes(); offset += kSliceBytes) {
    const std::uint64_t length = std::min(kSliceBytes, size_bytes() - offset);
    if (!is_residency_known_ || resident_bytes(offset, length) < length) {
      // The next slice's reads start while this one is awaited, so that the disk never idles.
      start_reading(offset + length, kSliceBytes);
      for (std::uint64_t at = offset; at < offset + length; at += kReadBytes) {
        const auto wanted = static_cast<std::size_t>(std::min<std::uint64_t>(offset + length - at, kReadBytes));
        const std::size_t n_got = file_.read_at(at, {buffer.data(), wanted});
        n_read += n_got;
        if (n_got < wanted) {
          throw FileChanged(quoted(file_.path()) + " ends at byte " + std::to_string(at + n_got) + ", it had " +
                            std::to_string(size_bytes()) + " when it was opened: somebody truncated it");
        }
      }
    }
    if (progress) progress(offset + length, size_bytes());
  }
  return n_read;
}

}  // namespace hostler
