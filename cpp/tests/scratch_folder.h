// A folder for one test's files, gone with the object.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#if defined(_WIN32)
#include <process.h>
#define HOSTLER_TEST_PID _getpid()
#else
#include <unistd.h>
#define HOSTLER_TEST_PID getpid()
#endif

class ScratchFolder {
 public:
  ScratchFolder() {
    static std::atomic<int> counter{0};
    path_ = std::filesystem::temp_directory_path() /
            ("hostler-test-" + std::to_string(HOSTLER_TEST_PID) + "-" + std::to_string(counter++));
    std::filesystem::create_directories(path_);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::filesystem::path file(const std::string& name) const { return path_ / name; }
  std::filesystem::path write(const std::string& name, std::string_view bytes) const {
    std::ofstream(file(name), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file(name);
  }
  std::filesystem::path write(const std::string& name, std::size_t n_bytes, char byte = 'w') const {
    return write(name, std::string(n_bytes, byte));
  }

 private:
  std::filesystem::path path_;
};
