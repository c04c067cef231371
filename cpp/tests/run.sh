#!/bin/sh
# Configure, build and run C++ tests under AddressSanitizer + UBSan and under ThreadSanitizer.
#
#     cpp/tests/run.sh BUILD_DIR SOURCE_DIR      exit code 0 when every test of both builds passed
#
# SOURCE_DIR is the folder of a CMakeLists.txt that knows HOSTLER_TESTS and HOSTLER_SANITIZE: this one's or a plugin's.
#
# CXX chooses the compiler, HOSTLER_JOBS the number of parallel compilers and tests (default 2).
set -eu
if [ $# -ne 2 ]; then
  echo "usage: $0 BUILD_DIR SOURCE_DIR" >&2
  exit 2
fi
source_dir=$(cd "$2" && pwd)
mkdir -p "$1"
build_dir=$(cd "$1" && pwd)
jobs=${HOSTLER_JOBS:-2}
generator=
command -v ninja >/dev/null 2>&1 && generator="-GNinja"

# New kernels place memory where the ThreadSanitizer of older compilers cannot; without randomisation it can.
no_aslr=
command -v setarch >/dev/null 2>&1 && setarch -R true 2>/dev/null && no_aslr="setarch -R"

status=0
for sanitizer in address thread; do
  # GCC takes three times as long over UBSan's checks at -O1 as at -Og, and the tests run as fast.
  optimise=-O1
  [ $sanitizer = address ] && optimise=-Og
  dir=$build_dir/$sanitizer
  cmake -S "$source_dir" -B "$dir" $generator -DHOSTLER_TESTS=ON -DHOSTLER_SANITIZE=$sanitizer \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="$optimise -g1" >"$build_dir/$sanitizer.log" 2>&1 || {
    cat "$build_dir/$sanitizer.log"
    exit 1
  }
  cmake --build "$dir" -j "$jobs"
  echo "== C++ tests, $sanitizer sanitizer"
  (cd "$dir" && $no_aslr ctest --output-on-failure --no-tests=error -j "$jobs") || status=1
done
exit $status
