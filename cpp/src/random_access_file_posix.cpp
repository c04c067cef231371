// Files read at any offset on Linux and macOS.
#if !defined(_WIN32)

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "hostler/random_access_file.h"

namespace hostler {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

FileIdentity identity_of(const struct stat& status) {
#if defined(__APPLE__)
  const auto& modified = status.st_mtimespec;
#else
  const auto& modified = status.st_mtim;
#endif
  return {static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino),
          static_cast<std::uint64_t>(status.st_size),
          static_cast<std::int64_t>(modified.tv_sec) * 1'000'000'000 + modified.tv_nsec};
}

}  // namespace

std::string quoted(const std::filesystem::path& path) {
  std::string text = "'";
  text += path.string();
  return text += '\'';
}

FileIdentity RandomAccessFile::identify(const std::filesystem::path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) fail("cannot look at " + quoted(path));
  return identity_of(status);
}

RandomAccessFile::RandomAccessFile(const std::filesystem::path& path) : path_(path) {
  // O_NONBLOCK: a named pipe in a model folder must not hang whoever lists it.
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) fail("cannot open " + quoted(path));
  struct stat status{};
  if (::fstat(fd_, &status) != 0) {
    const int error = errno;
    ::close(fd_);
    throw std::system_error(error, std::generic_category(), "cannot look at " + quoted(path));
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(fd_);
    throw std::invalid_argument(quoted(path) + " is no regular file");
  }
  identity_ = identity_of(status);
}

RandomAccessFile::RandomAccessFile(RandomAccessFile&& other) noexcept
    : path_(std::move(other.path_)), identity_(other.identity_), fd_(std::exchange(other.fd_, -1)) {}

RandomAccessFile::~RandomAccessFile() {
  if (fd_ >= 0) ::close(fd_);
}

std::size_t RandomAccessFile::read_at(std::uint64_t offset, std::span<std::byte> target) const {
  std::size_t n_done = 0;
  while (n_done < target.size()) {
    const ssize_t n_read = ::pread(fd_, target.data() + n_done, target.size() - n_done, static_cast<off_t>(offset + n_done));
    if (n_read == 0) break;
    if (n_read < 0) {
      if (errno == EINTR) continue;
      fail("cannot read " + quoted(path_) + " at byte " + std::to_string(offset + n_done));
    }
    n_done += static_cast<std::size_t>(n_read);
  }
  return n_done;
}

}  // namespace hostler

#endif
