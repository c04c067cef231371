// The tests' whole framework: TEST("sentence that can be false") { CHECK(...); } and a main that runs them all.
//
//     ./test_token_ring              run every test
//     ./test_token_ring wrap full    run those whose name contains one of the words
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

inline int run_all(int argc, char** argv) {
  int n_run = 0;
  int n_failed = 0;
  for (const Test& test : tests()) {
    bool is_wanted = argc < 2;
    for (int i = 1; i < argc; ++i) is_wanted = is_wanted || std::strstr(test.name, argv[i]) != nullptr;
    if (!is_wanted) continue;
    ++n_run;
    try {
      test.run();
      std::printf("ok    %s\n", test.name);
    } catch (const std::exception& error) {
      ++n_failed;
      std::printf("FAIL  %s\n      %s\n", test.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed\n", n_run, n_failed);
  return n_failed == 0 && n_run > 0 ? 0 : 1;
}

}  // namespace check

#define CHECK_JOIN2(a, b) a##b
#define CHECK_JOIN(a, b) CHECK_JOIN2(a, b)
#define TEST(name)                                                                                          \
  static void CHECK_JOIN(test_, __LINE__)();                                                                \
  static const check::Registration CHECK_JOIN(registration_, __LINE__)(name, &CHECK_JOIN(test_, __LINE__)); \
  static void CHECK_JOIN(test_, __LINE__)()

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) check::fail(__FILE__, __LINE__, "not so: " #condition); \
  } while (false)

#define CHECK_THROWS(exception, ...)                                                            \
  do {                                                                                          \
    bool threw = false;                                                                         \
    try {                                                                                       \
      static_cast<void>(__VA_ARGS__);                                                           \
    } catch (const exception&) {                                                                \
      threw = true;                                                                             \
    }                                                                                           \
    if (!threw) check::fail(__FILE__, __LINE__, "did not throw " #exception ": " #__VA_ARGS__); \
  } while (false)

#define CHECK_MAIN() \
  int main(int argc, char** argv) { return check::run_all(argc, argv); }
