// Reading and checking a GGUF header. The format, and why each check is there: gguf_header.h.
#include "hostler/gguf_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <unordered_set>

#include "hostler/random_access_file.h"

namespace hostler {
namespace {

constexpr std::uint64_t kMaxI64 = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
constexpr std::uint32_t kMaxDims = 4;  // GGML_MAX_DIMS
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 24U;

/// A piece of an error message. A list of them compiles to a tenth of what a chain of string sums does.
struct Part {
  Part(std::string_view piece) : text(piece) {}                  // NOLINT(google-explicit-constructor): meant
  Part(const char* piece) : text(piece) {}                       // NOLINT(google-explicit-constructor)
  Part(const std::string& piece) : text(piece) {}                // NOLINT(google-explicit-constructor)
  Part(std::uint64_t value) : number(value), is_number(true) {}  // NOLINT(google-explicit-constructor)
  std::string_view text;
  std::uint64_t number = 0;
  bool is_number = false;
};

std::string sentence(std::initializer_list<Part> parts) {
  std::string text;
  for (const Part& part : parts) text += part.is_number ? std::to_string(part.number) : std::string(part.text);
  return text;
}

/// Where the bytes come from: a file, or memory.
class Source {
 public:
  Source() = default;
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  virtual ~Source() = default;
  virtual std::uint64_t size() const = 0;
  /// Fill `target` from `offset`; fewer bytes only where the source has become shorter than size().
  virtual std::size_t read(std::uint64_t offset, std::span<std::byte> target) const = 0;
};

class FileSource final : public Source {
 public:
  explicit FileSource(const std::filesystem::path& path) : file_(path) {}
  std::uint64_t size() const override { return file_.size_bytes(); }
  std::size_t read(std::uint64_t offset, std::span<std::byte> target) const override { return file_.read_at(offset, target); }

 private:
  RandomAccessFile file_;
};

class MemorySource final : public Source {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::uint64_t size() const override { return bytes_.size(); }
  std::size_t read(std::uint64_t offset, std::span<std::byte> target) const override {
    const std::size_t n = std::min(target.size(), bytes_.size() - static_cast<std::size_t>(offset));
    if (n > 0) std::memcpy(target.data(), bytes_.data() + offset, n);
    return n;
  }

 private:
  std::span<const std::byte> bytes_;
};

/// A position in the source, and a window of it in memory. Every access is checked against the end first.
class Cursor {
 public:
  Cursor(const Source& source, const GgufLimits& limits)
      : source_(source), file_bytes_(source.size()), end_(std::min(file_bytes_, limits.max_header_bytes)) {}

  std::uint64_t position() const noexcept { return position_; }

  /// Throws unless `n_bytes` more are there.
  void need(std::uint64_t n_bytes) const {
    // INVARIANT: position_ <= end_
    if (n_bytes <= end_ - position_) return;
    if (end_ < file_bytes_) {
      throw GgufError(sentence({"its header takes more than ", end_, " bytes, which no model needs"}), position_);
    }
    throw GgufError(sentence({"the file ends in its header: it has ", file_bytes_, " bytes and needs ", n_bytes,
                              " more here; download it again"}),
                    position_);
  }

  void skip(std::uint64_t n_bytes) {
    need(n_bytes);
    position_ += n_bytes;
  }

  template <typename T>
  T number() {
    static_assert(std::endian::native == std::endian::little, "GGUF is little-endian; swap bytes here");
    need(sizeof(T));
    if (position_ < window_start_ || position_ + sizeof(T) > window_start_ + window_bytes_) load();
    T value;
    std::memcpy(&value, window_.data() + (position_ - window_start_), sizeof value);
    position_ += sizeof value;
    return value;
  }

  void copy(std::span<std::byte> target) {
    need(target.size());
    if (position_ >= window_start_ && position_ + target.size() <= window_start_ + window_bytes_) {
      if (!target.empty()) std::memcpy(target.data(), window_.data() + (position_ - window_start_), target.size());
    } else if (source_.read(position_, target) < target.size()) {
      throw GgufError("the file became shorter while it was read", position_);
    }
    position_ += target.size();
  }

 private:
  void load() {
    const auto wanted = static_cast<std::size_t>(std::min<std::uint64_t>(end_ - position_, kWindowBytes));
    window_.resize(wanted);
    window_start_ = position_;
    window_bytes_ = source_.read(position_, window_);
    if (window_bytes_ < wanted) throw GgufError("the file became shorter while it was read", position_ + window_bytes_);
  }

  // One system call brings many strings; larger windows only spend cache.
  static constexpr std::uint64_t kWindowBytes = 256U << 10U;

  const Source& source_;
  const std::uint64_t file_bytes_;
  const std::uint64_t end_;
  std::uint64_t position_ = 0;
  std::vector<std::byte> window_;
  std::uint64_t window_start_ = 0;
  std::uint64_t window_bytes_ = 0;
};

/// Bytes of one value; 0 for strings and arrays, whose size is in the file.
std::uint64_t scalar_bytes(GgufType type) noexcept {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    case GgufType::kString:
    case GgufType::kArray: break;
  }
  return 0;
}

/// Whether a name can be shown and compared: valid UTF-8 without control characters.
bool is_clean_utf8(std::string_view text) noexcept {
  std::size_t i = 0;
  while (i < text.size()) {
    const auto first = static_cast<unsigned char>(text[i]);
    if (first < 0x20 || first == 0x7F) return false;
    std::size_t n_more = 0;
    std::uint32_t code = first;
    if (first >= 0xF0 && first <= 0xF4) {
      n_more = 3;
      code = first & 0x07U;
    } else if (first >= 0xE0 && first <= 0xEF) {
      n_more = 2;
      code = first & 0x0FU;
    } else if (first >= 0xC2 && first <= 0xDF) {
      n_more = 1;
      code = first & 0x1FU;
    } else if (first >= 0x80) {
      return false;
    }
    if (n_more > text.size() - i - 1) return false;
    for (std::size_t k = 1; k <= n_more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xC0U) != 0x80) return false;
      code = code << 6U | (next & 0x3FU);
    }
    const bool is_too_long = (n_more == 2 && code < 0x800) || (n_more == 3 && code < 0x10000);
    const bool is_surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (is_too_long || is_surrogate || code > 0x10FFFF) return false;
    i += n_more + 1;
  }
  return true;
}

class Parser {
 public:
  Parser(const Source& source, const GgufRequest& request)
      : limits_(request.limits), request_(request), cursor_(source, request.limits) {
    header_.file_bytes = source.size();
  }

  GgufHeader parse() {
    read_preamble();
    read_metadata();
    read_tensors();
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(std::initializer_list<Part> reason) const { throw GgufError(sentence(reason), cursor_.position()); }

  void read_preamble() {
    if (header_.file_bytes < 4) fail({"the file has ", header_.file_bytes, " bytes, it is no GGUF"});
    std::array<std::byte, 4> magic;
    cursor_.copy(magic);
    if (std::memcmp(magic.data(), "GGUF", 4) != 0) throw GgufError("it does not begin with \"GGUF\": it is no GGUF", 0);
    header_.version = cursor_.number<std::uint32_t>();
    if (header_.version != 0 && (header_.version & 0xFFFFU) == 0) {
      fail({"it is a big-endian GGUF; hostler reads little-endian ones"});
    }
    if (header_.version < 2 || header_.version > 3) {
      fail({"it has GGUF version ", header_.version, "; hostler reads 2 and 3"});
    }
    header_.n_tensors = cursor_.number<std::uint64_t>();
    if (header_.n_tensors > limits_.max_tensors) {
      fail({"it claims ", header_.n_tensors, " tensors; ", limits_.max_tensors, " are allowed"});
    }
    n_metadata_ = cursor_.number<std::uint64_t>();
    if (n_metadata_ > limits_.max_metadata) {
      fail({"it claims ", n_metadata_, " metadata pairs; ", limits_.max_metadata, " are allowed"});
    }
  }

  void read_metadata() {
    std::unordered_set<std::string> keys;
    for (std::uint64_t i = 0; i < n_metadata_; ++i) {
      const std::uint64_t at = cursor_.position();
      std::string key = read_string(limits_.max_key_bytes, "a metadata key");
      if (key.empty() || !is_clean_utf8(key)) throw GgufError(sentence({"metadata key ", i, " is no name"}), at);
      if (!keys.insert(key).second) throw GgufError(sentence({"metadata key '", key, "' comes twice"}), at);
      const GgufType type = read_type();
      GgufValue value = read_value(type, key);
      if (key == "general.alignment") set_alignment(type, value);
      header_.metadata.emplace_back(std::move(key), std::move(value));
    }
  }

  void set_alignment(GgufType type, const GgufValue& value) {
    const auto* number = std::get_if<std::uint64_t>(&value.value);
    if (type != GgufType::kU32 || number == nullptr) fail({"general.alignment is no uint32"});
    if (!std::has_single_bit(*number) || *number > kMaxAlignment) {
      fail({"general.alignment is ", *number, "; it must be a power of two"});
    }
    header_.alignment = *number;
  }

  GgufType read_type() {
    const auto type = static_cast<GgufType>(cursor_.number<std::uint32_t>());
    if (gguf_type_name(type).empty()) {
      fail({"value type ", static_cast<std::uint32_t>(type), " does not exist"});
    }
    return type;
  }

  std::string read_string(std::uint64_t max_bytes, const char* what) {
    const std::uint64_t length = string_length(max_bytes, what);
    std::string text(static_cast<std::size_t>(length), '\0');
    cursor_.copy(std::as_writable_bytes(std::span(text)));
    return text;
  }

  std::uint64_t string_length(std::uint64_t max_bytes, const char* what) {
    const auto length = cursor_.number<std::uint64_t>();
    if (length > max_bytes) {
      fail({what, " claims ", length, " bytes; ", max_bytes, " are allowed"});
    }
    cursor_.need(length);  // before anything of that length is allocated
    return length;
  }

  GgufValue read_value(GgufType type, const std::string& key) {
    if (type == GgufType::kArray) return GgufValue{read_array(key)};
    return read_scalar(type);
  }

  GgufValue read_scalar(GgufType type) {
    switch (type) {
      case GgufType::kU8: return GgufValue{std::uint64_t{cursor_.number<std::uint8_t>()}};
      case GgufType::kU16: return GgufValue{std::uint64_t{cursor_.number<std::uint16_t>()}};
      case GgufType::kU32: return GgufValue{std::uint64_t{cursor_.number<std::uint32_t>()}};
      case GgufType::kU64: return GgufValue{cursor_.number<std::uint64_t>()};
      case GgufType::kI8: return GgufValue{std::int64_t{cursor_.number<std::int8_t>()}};
      case GgufType::kI16: return GgufValue{std::int64_t{cursor_.number<std::int16_t>()}};
      case GgufType::kI32: return GgufValue{std::int64_t{cursor_.number<std::int32_t>()}};
      case GgufType::kI64: return GgufValue{cursor_.number<std::int64_t>()};
      case GgufType::kF32: return GgufValue{double{cursor_.number<float>()}};
      case GgufType::kF64: return GgufValue{cursor_.number<double>()};
      case GgufType::kBool: return GgufValue{cursor_.number<std::uint8_t>() != 0};
      case GgufType::kString: return GgufValue{read_string(limits_.max_string_bytes, "a metadata value")};
      case GgufType::kArray: break;
    }
    fail({"an array where none can be"});
  }

  GgufArray read_array(const std::string& key) {
    GgufArray array;
    array.item_type = read_type();
    array.length = array_length(array.item_type);
    const bool is_wanted = std::find(request_.list_keys.begin(), request_.list_keys.end(), key) != request_.list_keys.end();
    if (is_wanted && array.length > limits_.max_asked_array_length) {
      fail({"'", key, "' has ", array.length, " items; ", limits_.max_asked_array_length, " can be listed"});
    }
    array.is_listed = array.item_type != GgufType::kArray && (is_wanted || array.length <= limits_.max_listed_array_length);
    if (!array.is_listed) {
      skip_items(array.item_type, array.length, 1);
      return array;
    }
    array.items.reserve(static_cast<std::size_t>(array.length));  // bounded: each item's least size was seen to be there
    for (std::uint64_t i = 0; i < array.length; ++i) array.items.push_back(read_scalar(array.item_type));
    return array;
  }

  std::uint64_t array_length(GgufType item_type) {
    const auto length = cursor_.number<std::uint64_t>();
    if (length > limits_.max_array_length) {
      fail({"an array claims ", length, " items; ", limits_.max_array_length, " are allowed"});
    }
    const std::uint64_t scalar = scalar_bytes(item_type);
    const std::uint64_t least = scalar > 0 ? scalar : item_type == GgufType::kString ? 8 : 12;
    cursor_.need(length * least);  // no overflow: length is far below 2^60
    return length;
  }

  void skip_items(GgufType item_type, std::uint64_t length, std::uint32_t depth) {
    if (const std::uint64_t scalar = scalar_bytes(item_type); scalar > 0) {
      cursor_.skip(length * scalar);
      return;
    }
    if (item_type == GgufType::kArray && depth >= limits_.max_array_depth) {
      fail({"arrays lie ", depth + 1, " deep in each other; ", limits_.max_array_depth, " are allowed"});
    }
    for (std::uint64_t i = 0; i < length; ++i) {
      if (item_type == GgufType::kString) {
        cursor_.skip(string_length(limits_.max_string_bytes, "a string in an array"));
      } else {
        const GgufType inner = read_type();
        skip_items(inner, array_length(inner), depth + 1);
      }
    }
  }

  void read_tensors() {
    std::unordered_set<std::string> names;
    std::vector<GgufTensor> tensors;
    for (std::uint64_t i = 0; i < header_.n_tensors; ++i) {
      const std::uint64_t at = cursor_.position();
      GgufTensor tensor = read_tensor();
      if (tensor.name.empty() || !is_clean_utf8(tensor.name)) {
        throw GgufError(sentence({"tensor ", i, " has no name that could be shown"}), at);
      }
      if (!names.insert(tensor.name).second) throw GgufError(sentence({"tensor '", tensor.name, "' comes twice"}), at);
      if (tensor.n_elements > kMaxI64 - header_.n_elements || tensor.n_bytes > kMaxI64 - header_.tensor_bytes) {
        throw GgufError("its tensors together are larger than any file", at);
      }
      header_.n_elements += tensor.n_elements;
      header_.tensor_bytes += tensor.n_bytes;
      tensors.push_back(std::move(tensor));
    }
    header_.header_bytes = cursor_.position();
    header_.data_offset = (header_.header_bytes + header_.alignment - 1) & ~(header_.alignment - 1);
    place(tensors);
    count_types(tensors);
    if (request_.with_tensors) header_.tensors = std::move(tensors);
  }

  GgufTensor read_tensor() {
    GgufTensor tensor;
    tensor.name = read_string(limits_.max_tensor_name_bytes, "a tensor's name");
    const auto n_dims = cursor_.number<std::uint32_t>();
    if (n_dims > kMaxDims) {
      fail({"tensor '", shown(tensor.name), "' claims ", n_dims, " dimensions; 4 are allowed"});
    }
    tensor.n_elements = 1;
    for (std::uint32_t i = 0; i < n_dims; ++i) {
      const auto dim = cursor_.number<std::uint64_t>();
      if (dim > kMaxI64 || (dim != 0 && tensor.n_elements > kMaxI64 / dim)) {
        fail({"the dimensions of tensor '", shown(tensor.name), "' multiply to more than 2^63"});
      }
      tensor.n_elements *= dim;
      tensor.dims.push_back(dim);
    }
    tensor.type = cursor_.number<std::uint32_t>();
    tensor.offset = cursor_.number<std::uint64_t>();
    if (const TensorType* type = find_tensor_type(tensor.type)) {
      const std::uint64_t row = tensor.dims.empty() ? 1 : tensor.dims[0];
      if (row % type->block_elements != 0) {
        fail({"tensor '", shown(tensor.name), "' has rows of ", row, " values, which is no multiple of ", type->block_elements,
              ", the block of ", type->name});
      }
      const std::uint64_t n_blocks = tensor.n_elements / type->block_elements;
      if (n_blocks > kMaxI64 / type->block_bytes) {
        fail({"tensor '", shown(tensor.name), "' is larger than any file"});
      }
      tensor.n_bytes = n_blocks * type->block_bytes;
    }
    return tensor;
  }

  /// Turn offsets into places in the file, and check that each tensor lies in the file, aligned, and alone.
  void place(std::vector<GgufTensor>& tensors) {
    for (GgufTensor& tensor : tensors) {
      if (tensor.offset % header_.alignment != 0) {
        fail({"tensor '", tensor.name, "' begins at offset ", tensor.offset, ", which is no multiple of the alignment ",
              header_.alignment});
      }
      if (header_.data_offset > header_.file_bytes || tensor.offset > header_.file_bytes - header_.data_offset ||
          tensor.n_bytes > header_.file_bytes - header_.data_offset - tensor.offset) {
        fail({"tensor '", tensor.name, "' (", tensor.n_bytes, " bytes from data offset ", tensor.offset,
              ") ends after the file, which has ", header_.file_bytes, " bytes: it is truncated, download it again"});
      }
      tensor.offset += header_.data_offset;
    }
    std::vector<const GgufTensor*> by_offset;
    by_offset.reserve(tensors.size());
    for (const GgufTensor& tensor : tensors) {
      if (tensor.n_bytes > 0) by_offset.push_back(&tensor);
    }
    std::sort(by_offset.begin(), by_offset.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < by_offset.size(); ++i) {
      if (by_offset[i - 1]->offset + by_offset[i - 1]->n_bytes > by_offset[i]->offset) {
        fail({"tensors '", by_offset[i - 1]->name, "' and '", by_offset[i]->name, "' share bytes of the file"});
      }
    }
  }

  void count_types(const std::vector<GgufTensor>& tensors) {
    for (const GgufTensor& tensor : tensors) {
      const TensorType* type = find_tensor_type(tensor.type);
      const std::string name = type != nullptr ? std::string(type->name) : "type " + std::to_string(tensor.type);
      auto use = std::find_if(header_.tensor_types.begin(), header_.tensor_types.end(),
                              [&](const TensorTypeUse& candidate) { return candidate.type == name; });
      if (use == header_.tensor_types.end()) {
        if (header_.tensor_types.size() >= kMaxTypes) fail({"its tensors claim too many different types"});
        use = header_.tensor_types.insert(use, TensorTypeUse{name, 0, 0, 0});
      }
      ++use->n_tensors;
      use->n_elements += tensor.n_elements;
      use->n_bytes += tensor.n_bytes;
    }
    std::stable_sort(header_.tensor_types.begin(), header_.tensor_types.end(),
                     [](const TensorTypeUse& a, const TensorTypeUse& b) { return a.n_bytes > b.n_bytes; });
  }

  /// A name for an error message that comes before the name was found clean.
  static std::string shown(const std::string& name) { return is_clean_utf8(name) ? name : "?"; }

  // Known types and a few of a future release; bounds the search in count_types.
  static constexpr std::size_t kMaxTypes = 128;

  const GgufLimits& limits_;
  const GgufRequest& request_;
  Cursor cursor_;
  GgufHeader header_;
  std::uint64_t n_metadata_ = 0;
};

}  // namespace

GgufHeader read_gguf_header(const std::filesystem::path& path, const GgufRequest& request) {
  const FileSource source(path);
  return Parser(source, request).parse();
}

GgufHeader parse_gguf_header(std::span<const std::byte> bytes, const GgufRequest& request) {
  const MemorySource source(bytes);
  return Parser(source, request).parse();
}

}  // namespace hostler
