// The header of a GGUF file: its metadata and where its tensors lie. Reads nothing of the tensors' data.
//
// A file comes from a stranger and is looked at before any engine sees it, so every number in it is checked before it
// is used: counts and lengths against the Limits and against what is left of the file, sums against overflow, tensors
// against the file's end and against each other. What does not hold is a GgufError that names the byte.
//
// SAFETY: the file is read with pread into a buffer of ours, not through a mapping, so that a file truncated meanwhile
// is a short read and no SIGBUS. Nothing is allocated from a number in the file before that many bytes were seen to be
// there. PERF: strings and arrays that nobody asked for are stepped over in the buffer, not copied; a tokenizer of
// 49,152 tokens and its merges (1.7 MB of header) takes about a millisecond.
//
// Ownership: plain values. read_gguf_header may run in any thread; nothing is shared.
//
//     offset  size  what                          all numbers little-endian
//     0       4     magic "GGUF"
//     4       4     version: 2 or 3
//     8       8     number of tensors
//     16      8     number of metadata pairs
//     24            pairs: string key, u32 type, value
//     ...           tensors: string name, u32 n_dims, n_dims u64 dims, u32 type, u64 offset from the data's start
//     ...           padding to general.alignment (default 32), then the tensors' data, each tensor aligned so
//   string: u64 length, bytes. array: u32 type of items, u64 length, items.
//
// Source: the GGUF specification, ggml/docs/gguf.md; block sizes from ggml.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace hostler {

class GgufError : public std::runtime_error {
 public:
  GgufError(const std::string& reason, std::uint64_t offset)
      : std::runtime_error(reason + " (at byte " + std::to_string(offset) + ")"), offset_(offset) {}
  std::uint64_t offset() const noexcept { return offset_; }

 private:
  std::uint64_t offset_;
};

/// What no honest model exceeds. A file that does is refused.
struct GgufLimits {
  std::uint64_t max_header_bytes = 128U << 20U;      // 256k-token vocabularies with merges take 12 MB
  std::uint64_t max_metadata = 16'384;               // pairs; models have 20 to 60
  std::uint64_t max_tensors = 65'536;                // the largest mixtures of experts have a few thousand
  std::uint64_t max_key_bytes = 65'535;              // the specification's limit
  std::uint64_t max_tensor_name_bytes = 255;         // the specification says 64
  std::uint64_t max_string_bytes = 4U << 20U;        // chat templates are the longest values: tens of kB
  std::uint64_t max_array_length = 16U << 20U;       // items; tokenizers have up to 262,144
  std::uint64_t max_listed_array_length = 1024;      // a longer array is summarised unless it is asked for by its key
  std::uint64_t max_asked_array_length = 1U << 20U;  // asked for or not: each listed item takes about 60 bytes here
  std::uint32_t max_array_depth = 4;                 // arrays in arrays; models have none
};

// clang-format off
enum class GgufType : std::uint32_t {
  kU8 = 0, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64,
};
// clang-format on

/// "uint8", "string", ...; empty for a number that is no type.
std::string_view gguf_type_name(GgufType type) noexcept;

struct GgufValue;

struct GgufArray {
  GgufType item_type = GgufType::kU8;
  std::uint64_t length = 0;
  bool is_listed = false;        // false: only type and length were kept
  std::vector<GgufValue> items;  // `length` values if listed
};

struct GgufValue {
  // Strings are the file's bytes; they should be UTF-8 and may not be.
  std::variant<std::uint64_t, std::int64_t, double, bool, std::string, GgufArray> value;
};

/// How ggml stores values of one tensor type: `block_elements` values in `block_bytes` bytes.
struct TensorType {
  std::uint32_t number;
  std::string_view name;
  std::uint32_t block_elements;
  std::uint32_t block_bytes;
};

/// nullptr for a type that this table does not know (a newer file).
const TensorType* find_tensor_type(std::uint32_t number) noexcept;

struct GgufTensor {
  std::string name;
  std::uint32_t type = 0;
  std::vector<std::uint64_t> dims;  // innermost first, as in the file
  std::uint64_t offset = 0;         // from the beginning of the file
  std::uint64_t n_elements = 0;
  std::uint64_t n_bytes = 0;  // 0 where the type is unknown
};

/// All tensors of one type together.
struct TensorTypeUse {
  std::string type;  // "Q4_1"; "type 99" where unknown
  std::uint64_t n_tensors = 0;
  std::uint64_t n_elements = 0;
  std::uint64_t n_bytes = 0;
};

struct GgufHeader {
  std::uint32_t version = 0;
  std::uint64_t file_bytes = 0;
  std::uint64_t header_bytes = 0;  // metadata and tensor list, before the padding
  std::uint64_t data_offset = 0;
  std::uint64_t alignment = 32;
  std::vector<std::pair<std::string, GgufValue>> metadata;  // in the file's order; keys are unique
  std::uint64_t n_tensors = 0;
  std::uint64_t n_elements = 0;
  std::uint64_t tensor_bytes = 0;
  std::vector<TensorTypeUse> tensor_types;  // most bytes first
  std::vector<GgufTensor> tensors;          // only if asked for
};

struct GgufRequest {
  GgufLimits limits;
  std::vector<std::string> list_keys;  // arrays wanted whole, however long
  bool with_tensors = false;
};

/// Throws GgufError for a file that is malformed, truncated or over a limit; std::system_error when it cannot be read;
/// std::invalid_argument when it is no regular file.
GgufHeader read_gguf_header(const std::filesystem::path& path, const GgufRequest& request);

/// The same on bytes in memory; for tests and fuzzing.
GgufHeader parse_gguf_header(std::span<const std::byte> bytes, const GgufRequest& request);

}  // namespace hostler
