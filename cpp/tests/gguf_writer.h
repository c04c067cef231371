// Writes GGUF headers, sound ones and, by appending what does not belong, others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hostler/gguf_header.h"

class GgufWriter {
 public:
  GgufWriter(std::uint64_t n_tensors, std::uint64_t n_metadata, std::uint32_t version = 3) {
    raw("GGUF").number(version).number(n_tensors).number(n_metadata);
  }

  GgufWriter& raw(std::string_view bytes) {
    const auto* start = reinterpret_cast<const std::byte*>(bytes.data());
    bytes_.insert(bytes_.end(), start, start + bytes.size());
    return *this;
  }
  template <typename T>
  GgufWriter& number(T value) {
    const auto* start = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), start, start + sizeof value);
    return *this;
  }
  GgufWriter& string(std::string_view text) { return number<std::uint64_t>(text.size()).raw(text); }
  GgufWriter& type(hostler::GgufType type) { return number(static_cast<std::uint32_t>(type)); }
  GgufWriter& key(std::string_view name, hostler::GgufType value_type) { return string(name).type(value_type); }
  GgufWriter& text(std::string_view name, std::string_view value) {
    return key(name, hostler::GgufType::kString).string(value);
  }
  GgufWriter& u32(std::string_view name, std::uint32_t value) { return key(name, hostler::GgufType::kU32).number(value); }
  GgufWriter& array(std::string_view name, hostler::GgufType item_type, std::uint64_t length) {
    return key(name, hostler::GgufType::kArray).type(item_type).number(length);
  }
  GgufWriter& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t tensor_type,
                     std::uint64_t offset) {
    string(name).number(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t dim : dims) number(dim);
    return number(tensor_type).number(offset);
  }
  /// Padding to the alignment, then that many bytes of data.
  GgufWriter& data(std::size_t n_bytes, std::size_t alignment = 32) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment + n_bytes);
    return *this;
  }

  std::vector<std::byte>& bytes() { return bytes_; }
  hostler::GgufHeader parse(const hostler::GgufRequest& request = {}) const {
    return hostler::parse_gguf_header(bytes_, request);
  }

 private:
  std::vector<std::byte> bytes_;
};
