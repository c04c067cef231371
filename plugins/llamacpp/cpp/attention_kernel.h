// The attention itself, for registers of any width: for attention_avx512.cpp and attention_avx2.cpp alone, since everything
// here is compiled with the instructions that its includer allows, and has internal linkage. The includer says before:
//
//   Floats, kLanes                    a register of float32, and how many it holds: 8 or 16
//   kKeyRows, kValueParts             rows that go over two registers of keys at once; registers of values for kValueRows rows
//   zero, all, load, store, halves    registers of zeros, of one number, from and to float32, from float16
//   add, subtract, multiply, multiply_add (a * b + c), larger; largest_of, sum_of and first_of one register
//   nearest_whole, times_power        rounded; x * 2^n for a whole n of -126 to 0
//   where_at_least(least, x, value)   value; 0 where x is less, or no number
//   add_where_seen(score, mask)       score + mask; minus infinity where the mask is
//   all_half, small                   registers of one float16, and from signed bytes
//   transpose                         kLanes registers, rows for columns
#pragma once

#include <immintrin.h>

#include "attention.h"

namespace hostler::attention {
namespace {

constexpr std::int64_t kStep = 16;  // positions and columns are counted in
const float kNothing = -__builtin_inff();

/// e^x to about 1e-7 for x <= 0; 0 where x is less than -87, minus infinity included.
inline Floats exponential(Floats x) {
  constexpr float kLeast = -87.0f;
  const Floats bounded = larger(x, all(kLeast));
  const Floats n = nearest_whole(multiply(bounded, all(1.44269504f)));
  // ln 2 in two parts, so that the rest is exact.
  Floats rest = multiply_add(n, all(-0.693359375f), bounded);
  rest = multiply_add(n, all(2.12194440e-4f), rest);
  constexpr float kTerms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Floats sum = all(1.0f / 720);
  for (const float term : kTerms) sum = multiply_add(sum, rest, all(term));
  return where_at_least(kLeast, x, times_power(sum, n));
}

inline float exponential(float x) { return first_of(exponential(all(x))); }

/// What keys and values are stored as. `load` takes a register of a row from column `i` on, a multiple of kLanes; a row's
/// first `n` take `bytes(n)`.
struct Float16 {
  static constexpr std::int64_t bytes(std::int64_t n) { return 2 * n; }
  static Floats load(const char* row, std::int64_t i) { return halves(row + 2 * i); }
};

/// ggml's Q8_0: by thirty-two a float16 factor and as many bytes.
struct Q8_0 {
  static constexpr std::int64_t kBlock = 32;
  static constexpr std::int64_t bytes(std::int64_t n) { return n / kBlock * (kBlock + 2); }
  static Floats load(const char* row, std::int64_t i) {
    const char* block = row + bytes(i);
    return multiply(all_half(block), small(block + 2 + i % kBlock));
  }
};

/// What one thread computes in. Rows of a tile: by head that has keys, then token, then the heads that share these keys.
struct Scratch {
  float* keys;      // (width, kChunk) of one head
  float* values;    // (kChunk, width) of one head
  float* q;         // (rows, width), scaled
  float* scores;    // (rows, kChunk)
  float* out;       // (rows, width): of a chunk
  float* all_out;   // (rows, width): of all chunks so far
  float* most;      // (rows): largest score of a chunk
  float* total;     // (rows): sum of its exponentials
  float* all_most;  // (rows)
  float* all_total; // (rows)
};

struct Tile {
  std::int64_t stream;
  std::int64_t first_kv_head;
  std::int64_t n_kv_heads;
  std::int64_t first_token;
  std::int64_t n_tokens;
  std::int64_t n_shared;     // heads that share keys and values
  std::int64_t n_head_rows;  // of one of these
  std::int64_t n_rows;
};

Scratch scratch_at(char* memory, const Problem& problem, std::int64_t n_rows) {
  auto* next = reinterpret_cast<float*>(memory);
  const auto take = [&](std::int64_t n) {
    float* taken = next;
    next += n;
    return taken;
  };
  Scratch scratch;
  scratch.keys = take(kChunk * problem.width);
  scratch.values = take(kChunk * problem.width);
  scratch.q = take(n_rows * problem.width);
  scratch.scores = take(n_rows * kChunk);
  scratch.out = take(n_rows * problem.width);
  scratch.all_out = take(n_rows * problem.width);
  scratch.most = take(n_rows);
  scratch.total = take(n_rows);
  scratch.all_most = take(n_rows);
  scratch.all_total = take(n_rows);
  return scratch;
}

Tile tile_of(const Problem& problem, const Plan& plan, std::int64_t number) {
  const std::int64_t n_head_groups = problem.n_kv_heads / plan.unit_kv_heads;
  Tile tile;
  tile.n_kv_heads = plan.unit_kv_heads;
  tile.n_shared = problem.n_heads / problem.n_kv_heads;
  tile.first_token = number % plan.n_tiles * plan.tile_tokens;
  tile.first_kv_head = number / plan.n_tiles % n_head_groups * plan.unit_kv_heads;
  tile.stream = number / plan.n_tiles / n_head_groups;
  const std::int64_t n_left = problem.n_tokens - tile.first_token;
  tile.n_tokens = n_left < plan.tile_tokens ? n_left : plan.tile_tokens;
  tile.n_head_rows = tile.n_tokens * tile.n_shared;
  tile.n_rows = tile.n_head_rows * tile.n_kv_heads;
  return tile;
}

struct Row {
  std::int64_t token;
  std::int64_t head;
};

Row row_of(const Tile& tile, std::int64_t number) {
  const std::int64_t in_head = number % tile.n_head_rows;
  const std::int64_t kv_head = tile.first_kv_head + number / tile.n_head_rows;
  return {tile.first_token + in_head / tile.n_shared, kv_head * tile.n_shared + in_head % tile.n_shared};
}

void load_queries(const Problem& problem, const Tile& tile, float* q) {
  const Floats scale = all(problem.scale);
  for (std::int64_t r = 0; r < tile.n_rows; ++r, q += problem.width) {
    const Row row = row_of(tile, r);
    const char* from = problem.q.data + static_cast<std::size_t>(row.token) * problem.q.row +
                       static_cast<std::size_t>(row.head) * problem.q.head +
                       static_cast<std::size_t>(tile.stream) * problem.q.stream;
    for (std::int64_t i = 0; i < problem.width; i += kLanes) {
      store(q + i, multiply(scale, load(reinterpret_cast<const float*>(from) + i)));
    }
  }
}

const char* mask_row(const Problem& problem, const Tile& tile, std::int64_t token, std::int64_t position) {
  return problem.mask.data + static_cast<std::size_t>(token) * problem.mask.row +
         static_cast<std::size_t>(tile.stream) * problem.mask.stream + static_cast<std::size_t>(position) * 2;
}

/// Where a head's keys or values at a position lie.
const char* place_of(const View& view, const Tile& tile, std::int64_t kv_head, std::int64_t position) {
  return view.data + static_cast<std::size_t>(position) * view.row + static_cast<std::size_t>(kv_head) * view.head +
         static_cast<std::size_t>(tile.stream) * view.stream;
}

/// Positions of a chunk, in sixteens, that at least one token of the tile sees; an empty range where none does.
struct Range {
  std::int64_t first;
  std::int64_t last;  // behind it
};

Range visible(const Problem& problem, const Tile& tile, std::int64_t chunk) {
  const std::int64_t behind = (chunk + 1) * kChunk;
  Range range{chunk * kChunk, behind < problem.n_positions ? behind : problem.n_positions};
  if (problem.mask.data == nullptr) return range;
  const __m256i hidden = _mm256_set1_epi16(static_cast<short>(0xfc00));  // minus infinity
  const auto is_seen = [&](std::int64_t position) {
    for (std::int64_t token = tile.first_token; token < tile.first_token + tile.n_tokens; ++token) {
      const auto* at = reinterpret_cast<const __m256i*>(mask_row(problem, tile, token, position));
      if (_mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_loadu_si256(at), hidden)) != -1) return true;
    }
    return false;
  };
  while (range.first < range.last && !is_seen(range.first)) range.first += kStep;
  while (range.first < range.last && !is_seen(range.last - kStep)) range.last -= kStep;
  return range;
}

/// Have what is needed next come from memory while something else is computed: a head's keys are a part of a row only, which
/// the processor does not foresee; and all at once would have to queue.
inline void prefetch(const char* at, std::int64_t n_bytes) {
  for (std::int64_t i = 0; i < n_bytes; i += 64) _mm_prefetch(at + i, _MM_HINT_T0);
}

/// How far behind keys and values those lie that will be needed next, in bytes; 0: unknown.
struct Ahead {
  std::ptrdiff_t keys = 0;
  std::ptrdiff_t values = 0;
};

/// As many positions' keys as a register holds, from column `i` on: one column a register.
template <class Format>
inline void load_keys(const View& k, const char* at, std::int64_t i, Floats (&block)[kLanes]) {
  for (int p = 0; p < kLanes; ++p) block[p] = Format::load(at + static_cast<std::size_t>(p) * k.row, i);
  transpose(block);
}

template <class Format>
void convert_keys(const Problem& problem, const char* at, std::int64_t n, float* keys) {
  for (std::int64_t place = 0; place < n; place += kLanes, at += kLanes * problem.k.row) {
    for (std::int64_t i = 0; i < problem.width; i += kLanes) {
      Floats block[kLanes];
      load_keys<Format>(problem.k, at, i, block);
      for (int j = 0; j < kLanes; ++j) store(keys + (i + j) * kChunk + place, block[j]);
    }
  }
}

template <class Format>
void convert_values(const Problem& problem, const char* at, std::int64_t n, float* values) {
  for (std::int64_t p = 0; p < n; ++p, at += problem.v.row, values += problem.width) {
    for (std::int64_t i = 0; i < problem.width; i += kLanes) store(values + i, Format::load(at, i));
  }
}

/// As multiply_keys, from where the keys lie: for so few rows that converting them first would take longer.
template <class Format, int kRows>
void multiply_keys_there(const float* q, const Problem& problem, const char* at, std::int64_t n, std::ptrdiff_t ahead,
                         float* scores) {
  for (std::int64_t place = 0; place < n; place += kLanes, at += kLanes * problem.k.row) {
    for (std::size_t p = 0; p < kLanes; ++p) prefetch(at + ahead + p * problem.k.row, Format::bytes(problem.width));
    Floats sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = zero();
    for (std::int64_t i = 0; i < problem.width; i += kLanes) {
      Floats block[kLanes];
      load_keys<Format>(problem.k, at, i, block);
      for (int j = 0; j < kLanes; ++j) {
        for (int r = 0; r < kRows; ++r) {
          sums[r] = multiply_add(all(q[r * problem.width + i + j]), block[j], sums[r]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) store(scores + r * kChunk + place, sums[r]);
  }
}

/// Scores of some rows at `n` positions, by two registers of them and at the end one.
template <int kRows>
void multiply_keys(const float* q, std::int64_t width, const float* keys, std::int64_t n, float* scores) {
  std::int64_t place = 0;
  for (; place + 2 * kLanes <= n; place += 2 * kLanes) {
    Floats sums[kRows][2];
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = zero();
    for (std::int64_t i = 0; i < width; ++i) {
      const Floats one = load(keys + i * kChunk + place);
      const Floats other = load(keys + i * kChunk + place + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Floats value = all(q[r * width + i]);
        sums[r][0] = multiply_add(value, one, sums[r][0]);
        sums[r][1] = multiply_add(value, other, sums[r][1]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      store(scores + r * kChunk + place, sums[r][0]);
      store(scores + r * kChunk + place + kLanes, sums[r][1]);
    }
  }
  if (place < n) {
    Floats sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = zero();
    for (std::int64_t i = 0; i < width; ++i) {
      const Floats one = load(keys + i * kChunk + place);
      for (int r = 0; r < kRows; ++r) sums[r] = multiply_add(all(q[r * width + i]), one, sums[r]);
    }
    for (int r = 0; r < kRows; ++r) store(scores + r * kChunk + place, sums[r]);
  }
}

/// From scores to exponentials of what they are less than the largest; notes that and their sum.
void weigh(const Problem& problem, const Tile& tile, Range range, const Scratch& scratch) {
  const std::int64_t n = range.last - range.first;
  for (std::int64_t r = 0; r < tile.n_rows; ++r) {
    float* scores = scratch.scores + r * kChunk;
    if (problem.mask.data != nullptr) {
      const char* mask = mask_row(problem, tile, row_of(tile, r).token, range.first);
      for (std::int64_t i = 0; i < n; i += kLanes) {
        // What is not seen is nothing, even where its score is no number.
        store(scores + i, add_where_seen(load(scores + i), halves(mask + 2 * i)));
      }
    }
    Floats most = all(kNothing);
    for (std::int64_t i = 0; i < n; i += kLanes) most = larger(most, load(scores + i));
    const float largest = largest_of(most);
    scratch.most[r] = largest;
    Floats total = zero();
    // A row that sees nothing: its exponentials are 0, not those of infinity less infinity.
    const Floats base = all(largest == kNothing ? 0.0f : largest);
    for (std::int64_t i = 0; i < n; i += kLanes) {
      const Floats weight = exponential(subtract(load(scores + i), base));
      store(scores + i, weight);
      total = add(total, weight);
    }
    scratch.total[r] = sum_of(total);
  }
}

/// Sums of `n` positions' values by weight: kRows rows, kParts registers of columns. `Load` takes one from a place.
template <int kRows, int kParts, class Load>
inline void sum_values(const float* weights, std::int64_t n, std::int64_t width, float* out, Load load) {
  Floats sums[kRows][kParts];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kParts; ++i) sums[r][i] = zero();
  }
  for (std::int64_t p = 0; p < n; ++p) {
    Floats columns[kParts];
    for (int i = 0; i < kParts; ++i) columns[i] = load(p, i * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Floats weight = all(weights[r * kChunk + p]);
      for (int i = 0; i < kParts; ++i) sums[r][i] = multiply_add(weight, columns[i], sums[r][i]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kParts; ++i) store(out + r * width + i * kLanes, sums[r][i]);
  }
}

template <int kRows, int kParts>
void multiply_values(const float* weights, std::int64_t n, const float* values, std::int64_t width, float* out) {
  sum_values<kRows, kParts>(weights, n, width, out,
                            [=](std::int64_t p, int i) { return load(values + p * width + i); });
}

/// The same from where the values lie, from column `first` on.
template <class Format, int kRows, int kParts>
void multiply_values_there(const float* weights, std::int64_t n, const char* at, std::size_t row_bytes, std::ptrdiff_t ahead,
                           std::int64_t first, std::int64_t width, float* out) {
  sum_values<kRows, kParts>(weights, n, width, out, [=](std::int64_t p, int i) {
    const char* row = at + static_cast<std::size_t>(p) * row_bytes;
    if ((first + i) % 32 == 0) prefetch(row + Format::bytes(first + i) + ahead, 1);
    return Format::load(row, first + i);
  });
}

constexpr int kValueRows = 6;
constexpr int kRowsThere = 6;  // of a head, up to which keys and values are not converted first

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

/// Calls `use` with the Constant `n`, which is 1 to kMost.
template <int kMost, class Use>
inline void with_constant(std::int64_t n, Use use) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, use);
  }
  use(Constant<kMost>{});
}

std::int64_t at_most(std::int64_t n, std::int64_t most) { return n < most ? n : most; }

/// Calls `put(first column, registers)` for all columns, some at a time.
template <class Put>
void for_parts(std::int64_t width, Put put) {
  for (std::int64_t i = 0; i < width; i += kValueParts * kLanes) {
    with_constant<kValueParts>(at_most((width - i) / kLanes, kValueParts), [&](auto parts) { put(i, parts); });
  }
}

/// One chunk of a tile into scratch.out, most and total.
template <class Format>
void attend_chunk(const Problem& problem, const Tile& tile, Range range, Ahead ahead, const Scratch& scratch) {
  const std::int64_t n = range.last - range.first;
  const bool is_there = tile.n_head_rows <= kRowsThere;
  for (std::int64_t head = 0; head < tile.n_kv_heads; ++head) {
    const char* at = place_of(problem.k, tile, tile.first_kv_head + head, range.first);
    const float* q = scratch.q + head * tile.n_head_rows * problem.width;
    float* scores = scratch.scores + head * tile.n_head_rows * kChunk;
    if (is_there) {
      with_constant<kRowsThere>(tile.n_head_rows, [&](auto rows) {
        multiply_keys_there<Format, rows.value>(q, problem, at, n, ahead.keys, scores);
      });
      continue;
    }
    convert_keys<Format>(problem, at, n, scratch.keys);
    for (std::int64_t r = 0; r < tile.n_head_rows; r += kKeyRows) {
      with_constant<kKeyRows>(at_most(tile.n_head_rows - r, kKeyRows), [&](auto rows) {
        multiply_keys<rows.value>(q + r * problem.width, problem.width, scratch.keys, n, scores + r * kChunk);
      });
    }
  }
  weigh(problem, tile, range, scratch);
  for (std::int64_t head = 0; head < tile.n_kv_heads; ++head) {
    const char* at = place_of(problem.v, tile, tile.first_kv_head + head, range.first);
    const float* weights = scratch.scores + head * tile.n_head_rows * kChunk;
    float* out = scratch.out + head * tile.n_head_rows * problem.width;
    if (is_there) {
      for_parts(problem.width, [&](std::int64_t i, auto parts) {
        with_constant<kRowsThere>(tile.n_head_rows, [&](auto rows) {
          multiply_values_there<Format, rows.value, parts.value>(weights, n, at, problem.v.row, ahead.values, i, problem.width,
                                                                 out + i);
        });
      });
      continue;
    }
    convert_values<Format>(problem, at, n, scratch.values);
    for (std::int64_t r = 0; r < tile.n_head_rows; r += kValueRows) {
      for_parts(problem.width, [&](std::int64_t i, auto parts) {
        with_constant<kValueRows>(at_most(tile.n_head_rows - r, kValueRows), [&](auto rows) {
          multiply_values<rows.value, parts.value>(weights + r * kChunk, n, scratch.values + i, problem.width,
                                                   out + r * problem.width + i);
        });
      });
    }
  }
}

Ahead ahead_of(const Problem& problem, const Tile& tile, std::int64_t chunk, const Tile& next, std::int64_t next_chunk) {
  const auto distance = [&](const View& view) {
    return place_of(view, next, next.first_kv_head, next_chunk * kChunk) -
           place_of(view, tile, tile.first_kv_head, chunk * kChunk);
  };
  return {distance(problem.k), distance(problem.v)};
}

/// Add a chunk's result of one row to that of those before it.
inline void add_chunk(float most, float total, const float* out, std::int64_t width, float& all_most, float& all_total,
                      float* all_out) {
  if (most == kNothing) return;
  const float now = most > all_most ? most : all_most;
  const float old_share = exponential(all_most - now);
  const float new_share = exponential(most - now);
  all_most = now;
  all_total = all_total * old_share + total * new_share;
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const Floats old = multiply(load(all_out + i), all(old_share));
    store(all_out + i, multiply_add(load(out + i), all(new_share), old));
  }
}

void put_row(const Problem& problem, const Tile& tile, std::int64_t number, float total, const float* out) {
  const Row row = row_of(tile, number);
  float* to = problem.out + ((tile.stream * problem.n_tokens + row.token) * problem.n_heads + row.head) * problem.width;
  const Floats share = all(total > 0.0f ? 1.0f / total : 0.0f);
  for (std::int64_t i = 0; i < problem.width; i += kLanes) {
    store(to + i, multiply(share, load(out + i)));
  }
}

void clear(float* at, std::int64_t n, float value) {
  for (std::int64_t i = 0; i < n; ++i) at[i] = value;
}

template <class Format>
void attend_unit(const Problem& problem, const Plan& plan, std::int64_t unit, std::int64_t next_unit, char* scratch_memory,
                 float* partials) {
  const Tile tile = tile_of(problem, plan, plan.is_split ? unit / plan.n_chunks : unit);
  const std::int64_t n_most_rows = plan.tile_tokens * tile.n_shared * tile.n_kv_heads;
  const Scratch scratch = scratch_at(scratch_memory, problem, n_most_rows);
  load_queries(problem, tile, scratch.q);
  if (plan.is_split) {
    float* partial = partials + unit * n_most_rows * (problem.width + 2);
    const Range range = visible(problem, tile, unit % plan.n_chunks);
    const bool is_seen = range.first < range.last;
    if (is_seen) {
      Ahead ahead;
      if (next_unit < plan.n_units) {
        const Tile next = tile_of(problem, plan, next_unit / plan.n_chunks);
        ahead = ahead_of(problem, tile, unit % plan.n_chunks, next, next_unit % plan.n_chunks);
      }
      attend_chunk<Format>(problem, tile, range, ahead, scratch);
    }
    for (std::int64_t r = 0; r < tile.n_rows; ++r, partial += problem.width + 2) {
      partial[0] = is_seen ? scratch.most[r] : kNothing;
      if (!is_seen) continue;
      partial[1] = scratch.total[r];
      for (std::int64_t i = 0; i < problem.width; i += kLanes) {
        store(partial + 2 + i, load(scratch.out + r * problem.width + i));
      }
    }
    return;
  }
  clear(scratch.all_most, tile.n_rows, kNothing);
  clear(scratch.all_total, tile.n_rows, 0.0f);
  clear(scratch.all_out, tile.n_rows * problem.width, 0.0f);
  for (std::int64_t chunk = 0; chunk < plan.n_chunks; ++chunk) {
    const Range range = visible(problem, tile, chunk);
    if (range.first == range.last) continue;
    attend_chunk<Format>(problem, tile, range, ahead_of(problem, tile, chunk, tile, chunk + 1), scratch);
    for (std::int64_t r = 0; r < tile.n_rows; ++r) {
      add_chunk(scratch.most[r], scratch.total[r], scratch.out + r * problem.width, problem.width, scratch.all_most[r],
                scratch.all_total[r], scratch.all_out + r * problem.width);
    }
  }
  for (std::int64_t r = 0; r < tile.n_rows; ++r) {
    put_row(problem, tile, r, scratch.all_total[r], scratch.all_out + r * problem.width);
  }
}

void attend_as_stored(const Problem& problem, const Plan& plan, std::int64_t unit, std::int64_t next_unit, char* scratch,
                      float* partials) {
  const auto attend_as = problem.is_q8_0 ? attend_unit<Q8_0> : attend_unit<Float16>;
  attend_as(problem, plan, unit, next_unit, scratch, partials);
}

void merge_units(const Problem& problem, const Plan& plan, std::int64_t part, std::int64_t n_parts, const float* partials) {
  const std::int64_t row_floats = problem.width + 2;
  const std::int64_t unit_floats = plan.tile_tokens * (problem.n_heads / problem.n_kv_heads) * plan.unit_kv_heads * row_floats;
  float out[kMaxWidth];
  std::int64_t n_before = 0;  // rows; threads take them in turns
  for (std::int64_t number = 0; number < plan.n_units / plan.n_chunks; ++number) {
    const Tile tile = tile_of(problem, plan, number);
    for (std::int64_t r = 0; r < tile.n_rows; ++r) {
      if (n_before++ % n_parts != part) continue;
      float most = kNothing;
      float total = 0.0f;
      clear(out, problem.width, 0.0f);
      for (std::int64_t chunk = 0; chunk < plan.n_chunks; ++chunk) {
        const float* partial = partials + (number * plan.n_chunks + chunk) * unit_floats + r * row_floats;
        if (partial[0] != kNothing) add_chunk(partial[0], partial[1], partial + 2, problem.width, most, total, out);
      }
      put_row(problem, tile, r, total, out);
    }
  }
}

}  // namespace
}  // namespace hostler::attention
