// Mapped files on Linux and macOS. Why nothing here loads from the mapping: mapped_file.h.
#if !defined(_WIN32)

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#include "hostler/mapped_file.h"

namespace hostler {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

std::uint64_t page_bytes() {
  static const auto bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  std::shared_ptr<MappedFile> mapped(new MappedFile(RandomAccessFile(path)));
  if (mapped->size_bytes() == 0) throw std::invalid_argument(quoted(path) + " is empty");
  const int fd = mapped->file_.fd();
  void* address = ::mmap(nullptr, static_cast<std::size_t>(mapped->size_bytes()), PROT_READ, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) fail("cannot map " + quoted(path));
  mapped->address_ = address;
#if defined(__linux__)
  // The kernel's own rule (can_do_mincore); for any other file mincore says "resident" of every page.
  struct stat status{};
  mapped->is_residency_known_ = ::geteuid() == 0 || (::fstat(fd, &status) == 0 && status.st_uid == ::geteuid()) ||
                                ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0;
#else
  mapped->is_residency_known_ = true;
#endif
  return mapped;
}

MappedFile::~MappedFile() {
  if (address_ != nullptr) ::munmap(address_, static_cast<std::size_t>(size_bytes()));
}

std::uint64_t MappedFile::resident_bytes(std::uint64_t offset, std::uint64_t length) const {
  // One byte a page; 64 KiB of answers cover 256 MiB.
  constexpr std::uint64_t kMaxPages = 65'536;
#if defined(__linux__)
  using PageFlag = unsigned char;
#else
  using PageFlag = char;
#endif
  std::vector<PageFlag> flags(static_cast<std::size_t>(std::min(kMaxPages, length / page_bytes() + 1)));
  std::uint64_t n_bytes = 0;
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const std::uint64_t span = std::min(end - offset, flags.size() * page_bytes());
    if (::mincore(static_cast<std::byte*>(address_) + offset, static_cast<std::size_t>(span), flags.data()) != 0) {
      fail("cannot ask which pages of " + quoted(file_.path()) + " are in memory");
    }
    for (std::uint64_t at = 0; at < span; at += page_bytes()) {
      if ((flags[static_cast<std::size_t>(at / page_bytes())] & 1) != 0) n_bytes += std::min(page_bytes(), span - at);
    }
    offset += span;
  }
  return n_bytes;
}

std::optional<double> MappedFile::residency() const {
  if (!is_residency_known_) return std::nullopt;
  return static_cast<double>(resident_bytes(0, size_bytes())) / static_cast<double>(size_bytes());
}

void MappedFile::start_reading(std::uint64_t offset, std::uint64_t length) const noexcept {
#if defined(__linux__)
  ::posix_fadvise(file_.fd(), static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_WILLNEED);
#else
  static_cast<void>(offset + length);
#endif
}

void MappedFile::pin() {
  if (::mlock(address_, static_cast<std::size_t>(size_bytes())) == 0) return;
  const int error = errno;
  ::munlock(address_, static_cast<std::size_t>(size_bytes()));  // it may have locked a part
  std::string reason = "cannot pin " + quoted(file_.path()) + " (" + std::to_string(size_bytes()) + " bytes) in memory";
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    reason += "; this process may lock " + std::to_string(limit.rlim_cur) + " bytes (raise it with `ulimit -l`)";
  }
  throw std::system_error(error, std::generic_category(), reason);
}

void MappedFile::unpin() noexcept { ::munlock(address_, static_cast<std::size_t>(size_bytes())); }

void MappedFile::drop() noexcept {
  ::madvise(address_, static_cast<std::size_t>(size_bytes()), MADV_DONTNEED);
#if defined(__linux__)
  ::posix_fadvise(file_.fd(), 0, 0, POSIX_FADV_DONTNEED);
#endif
}

}  // namespace hostler

#endif
