// Mutates sound GGUF headers and reads them, under AddressSanitizer and UBSan: each must be taken, with everything in
// it inside the file, or be refused with a GgufError. The same numbers every run; seed and rounds may be given:
//
//     ./fuzz_gguf [seed] [rounds]
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "gguf_writer.h"
#include "hostler/gguf_header.h"
#include "numbered_frames.h"

using namespace hostler;

namespace {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() { return state_ = numbered::mix(state_); }
  std::uint64_t below(std::uint64_t bound) { return bound == 0 ? 0 : next() % bound; }

 private:
  std::uint64_t state_;
};

std::vector<std::vector<std::byte>> seeds() {
  GgufWriter scalars(0, 6);
  scalars.text("general.architecture", "llama").u32("llama.block_count", 2);
  scalars.key("b", GgufType::kBool).number(std::uint8_t{1}).key("f", GgufType::kF32).number(1.5F);
  scalars.key("u", GgufType::kU64).number(std::uint64_t{9}).key("i", GgufType::kI8).number(std::int8_t{-9});

  GgufWriter arrays(0, 4);
  arrays.array("numbers", GgufType::kI32, 3).raw("abcdefghijkl");
  arrays.array("strings", GgufType::kString, 3).string("a").string("").string("ccc");
  arrays.array("nested", GgufType::kArray, 2).type(GgufType::kU8).number(std::uint64_t{2}).raw("xy");
  arrays.type(GgufType::kString).number(std::uint64_t{1}).string("z").u32("after", 1);

  GgufWriter tensors(4, 2);
  tensors.u32("general.alignment", 64).text("general.name", "x");
  tensors.tensor("a", {32, 2}, 3, 0).tensor("b", {256}, 12, 64).tensor("c", {2, 2, 2, 2}, 0, 256);
  tensors.tensor("d", {}, 28, 320).data(328, 64);

  GgufWriter vocabulary(1, 2);
  vocabulary.array("tokenizer.ggml.tokens", GgufType::kString, 1200);
  for (int i = 0; i < 1200; ++i) vocabulary.string(std::to_string(i));
  vocabulary.text("tokenizer.chat_template", "{{ messages }}").tensor("t", {8}, 0, 0).data(32);

  return {scalars.bytes(), arrays.bytes(), tensors.bytes(), vocabulary.bytes()};
}

void mutate(std::vector<std::byte>& bytes, Random& random) {
  static constexpr std::uint64_t kEdges[] = {0,
                                             1,
                                             2,
                                             3,
                                             7,
                                             8,
                                             9,
                                             12,
                                             13,
                                             31,
                                             32,
                                             33,
                                             64,
                                             127,
                                             128,
                                             255,
                                             256,
                                             65'535,
                                             1U << 20U,
                                             0x7FFFFFFF,
                                             0x80000000,
                                             0xFFFFFFFF,
                                             std::uint64_t{1} << 32U,
                                             std::uint64_t{1} << 62U,
                                             (std::uint64_t{1} << 63U) - 1,
                                             std::uint64_t{1} << 63U,
                                             ~std::uint64_t{0} - 7,
                                             ~std::uint64_t{0}};
  if (bytes.empty()) return;
  const std::uint64_t at = random.below(bytes.size());
  switch (random.below(8)) {
    case 0: bytes[at] ^= static_cast<std::byte>(1U << random.below(8)); break;
    case 1: bytes[at] = static_cast<std::byte>(random.next()); break;
    case 2: bytes.resize(at); break;
    case 3: bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), random.below(64), std::byte{0}); break;
    case 4: {  // a piece of it once more somewhere else: repeats keys, names, whole pairs
      const std::uint64_t length = random.below(std::min<std::uint64_t>(bytes.size() - at, 80));
      const std::vector<std::byte> piece(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                         bytes.begin() + static_cast<std::ptrdiff_t>(at + length));
      bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(random.below(bytes.size())), piece.begin(), piece.end());
      break;
    }
    default: {  // a number on the edge, where numbers are
      const std::uint64_t value = kEdges[random.below(std::size(kEdges))];
      const std::size_t width = std::size_t{1} << random.below(4);
      if (at + width <= bytes.size()) std::memcpy(bytes.data() + at, &value, width);
    }
  }
}

const char* complaint(const GgufHeader& header, std::size_t n_bytes) {
  if (header.file_bytes != n_bytes || header.header_bytes > n_bytes) return "header outside the file";
  std::set<std::string> keys;
  for (const auto& [key, value] : header.metadata) {
    if (!keys.insert(key).second) return "a key twice";
    if (const auto* array = std::get_if<GgufArray>(&value.value)) {
      if (array->is_listed && array->items.size() != array->length) return "an array shorter than it says";
    }
  }
  std::uint64_t tensor_bytes = 0;
  for (const GgufTensor& tensor : header.tensors) {
    if (tensor.offset < header.data_offset || tensor.offset > n_bytes || tensor.n_bytes > n_bytes - tensor.offset) {
      return "a tensor outside the file";
    }
    tensor_bytes += tensor.n_bytes;
  }
  if (tensor_bytes != header.tensor_bytes || tensor_bytes > n_bytes) return "tensors do not add up";
  if (header.tensors.size() != header.n_tensors) return "tensors are missing";
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const std::uint64_t n_rounds = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 60'000;
  const std::vector<std::vector<std::byte>> sound = seeds();
  Random random(seed);
  std::uint64_t n_taken = 0;
  for (std::uint64_t round = 0; round < n_rounds; ++round) {
    // The vocabulary takes longest to read and has least in it: one round in sixteen.
    std::vector<std::byte> bytes = sound[random.below(16) == 0 ? 3 : random.below(3)];
    for (std::uint64_t n = 1 + random.below(4); n > 0; --n) mutate(bytes, random);
    // In memory of exactly this length, so that one byte too far is found.
    const std::vector<std::byte> exact(bytes.begin(), bytes.end());
    GgufRequest request;
    request.with_tensors = true;
    if (random.below(2) == 0) request.list_keys = {"tokenizer.ggml.tokens", "nested"};
    try {
      const GgufHeader header = parse_gguf_header(exact, request);
      ++n_taken;
      if (const char* what = complaint(header, exact.size())) {
        std::printf("seed %llu, round %llu: %s\n", static_cast<unsigned long long>(seed),
                    static_cast<unsigned long long>(round), what);
        return 1;
      }
    } catch (const GgufError& error) {
      if (error.offset() > exact.size()) return 1;
    }
  }
  std::printf("%llu rounds, %llu taken\n", static_cast<unsigned long long>(n_rounds),
              static_cast<unsigned long long>(n_taken));
  // Mutations that all fail at the magic would test nothing.
  return n_taken > n_rounds / 20 && n_taken < n_rounds ? 0 : 1;
}
