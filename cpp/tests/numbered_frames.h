// Frames that prove themselves: payload n has a length, a number and a checksum that all follow from n.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "hostler/token_ring.h"

namespace numbered {

inline std::uint64_t mix(std::uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

inline std::uint64_t checksum(std::span<const std::byte> bytes) {  // FNV-1a
  std::uint64_t hash = 0xCBF29CE484222325U;
  for (const std::byte byte : bytes) hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001B3U;
  return hash;
}

/// u64 n, 0 to 46 bytes that follow from n, u64 checksum of both.
inline void write(std::uint64_t n, std::vector<std::byte>& payload) {
  const std::size_t n_filler = mix(n) % 47;
  payload.resize(16 + n_filler);
  std::memcpy(payload.data(), &n, 8);
  for (std::size_t i = 0; i < n_filler; ++i) payload[8 + i] = static_cast<std::byte>(mix(n + i) & 0xFFU);
  const std::uint64_t sum = checksum({payload.data(), payload.size() - 8});
  std::memcpy(payload.data() + payload.size() - 8, &sum, 8);
}

inline std::vector<std::byte> copy(const hostler::Frame& frame) {
  std::vector<std::byte> bytes(frame.first.begin(), frame.first.end());
  bytes.insert(bytes.end(), frame.second.begin(), frame.second.end());
  return bytes;
}

/// Whether the frame is exactly what write(n) made.
inline bool is_frame(std::uint64_t n, const hostler::Frame& frame) {
  std::vector<std::byte> expected;
  write(n, expected);
  return frame.kind == (n & 0xFFFFU) && copy(frame) == expected;
}

}  // namespace numbered
