// Shared memory on Linux (memfd) and macOS (shm_open). See shm.h for who owns what.
#if !defined(_WIN32)

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <limits>
#include <random>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "hostler/shm.h"

namespace hostler {
namespace {

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

class Descriptor {
 public:
  explicit Descriptor(int fd) noexcept : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const noexcept { return fd_; }
  int take() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

std::byte* map_shared(int fd, std::size_t bytes) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) fail("cannot map the token ring's shared memory");
  return static_cast<std::byte*>(address);
}

std::size_t size_of(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) fail("cannot read the size of the token ring's shared memory");
  if (status.st_size <= 0) throw std::invalid_argument("the descriptor is no shared memory: it is empty");
  return static_cast<std::size_t>(status.st_size);
}

std::invalid_argument bad_handle(std::string_view handle) {
  return std::invalid_argument("'" + std::string(handle) +
                               "' is no shared-memory handle; pass on what handle_for_child() returned in the host");
}

#if !defined(__linux__)
std::string random_name() {
  // macOS allows 31 characters. 64 random bits: two names meet once in 2^32 workers alive at the same time.
  std::random_device device;
  constexpr char kHex[] = "0123456789abcdef";
  std::string name = "/hostler-";
  for (int i = 0; i < 16; ++i) name += kHex[device() & 15U];
  return name;
}
#endif

}  // namespace

SharedMemory SharedMemory::create(std::size_t bytes) {
  if (bytes > static_cast<std::size_t>(std::numeric_limits<off_t>::max())) {
    throw std::invalid_argument("shared memory of that size cannot be had");
  }
  SharedMemory memory;
#if defined(__linux__)
  Descriptor file(::memfd_create("hostler-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file.get() < 0) fail("cannot create the token ring's shared memory (memfd_create)");
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) fail("cannot size the token ring's shared memory");
  // SAFETY: without the seal a worker that truncates the file would make every access of the host a SIGBUS.
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    fail("cannot seal the token ring's shared memory");
  }
  memory.data_ = map_shared(file.get(), bytes);
  memory.fd_ = file.take();
#else
  memory.name_ = random_name();
  Descriptor file(::shm_open(memory.name_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600));
  if (file.get() < 0) fail("cannot create the token ring's shared memory (shm_open)");
  memory.owns_name_ = true;
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) fail("cannot size the token ring's shared memory");
  memory.data_ = map_shared(file.get(), bytes);
#endif
  memory.size_ = bytes;
  return memory;
}

SharedMemory SharedMemory::attach(std::string_view handle) {
  SharedMemory memory;
#if defined(__linux__)
  constexpr std::string_view kPrefix = "fd:";
  if (handle.substr(0, kPrefix.size()) != kPrefix) throw bad_handle(handle);
  int number = -1;
  const char* end = handle.data() + handle.size();
  const auto [stop, error] = std::from_chars(handle.data() + kPrefix.size(), end, number);
  if (error != std::errc{} || stop != end || number < 0) throw bad_handle(handle);
  Descriptor file(::fcntl(number, F_DUPFD_CLOEXEC, 0));
  if (file.get() < 0) fail("cannot attach the token ring: its descriptor was not passed to this process");
  ::fcntl(number, F_SETFD, FD_CLOEXEC);
  const std::size_t bytes = size_of(file.get());
  memory.data_ = map_shared(file.get(), bytes);
  memory.fd_ = file.take();
#else
  constexpr std::string_view kPrefix = "name:";
  if (handle.substr(0, kPrefix.size()) != kPrefix) throw bad_handle(handle);
  memory.name_ = std::string(handle.substr(kPrefix.size()));
  Descriptor file(::shm_open(memory.name_.c_str(), O_RDWR, 0));
  if (file.get() < 0) fail("cannot attach the token ring's shared memory (shm_open)");
  const std::size_t bytes = size_of(file.get());
  memory.data_ = map_shared(file.get(), bytes);
  // Both sides have it now: without its name it cannot outlive them.
  ::shm_unlink(memory.name_.c_str());
#endif
  memory.size_ = bytes;
  return memory;
}

std::string SharedMemory::handle_for_child() const { return fd_ >= 0 ? "fd:" + std::to_string(fd_) : "name:" + name_; }

void SharedMemory::release() noexcept {
  if (data_ != nullptr) ::munmap(data_, size_);
  if (fd_ >= 0) ::close(fd_);
#if !defined(__linux__)
  if (owns_name_) ::shm_unlink(name_.c_str());  // fails harmlessly when the worker has done it
#endif
  data_ = nullptr;
  fd_ = -1;
  owns_name_ = false;
}

}  // namespace hostler

#endif
