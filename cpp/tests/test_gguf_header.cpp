// The GGUF header reader on sound files, and on one example of each thing that can be wrong.
#include <functional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "check.h"
#include "gguf_writer.h"
#include "hostler/gguf_header.h"
#include "scratch_folder.h"

using namespace hostler;

namespace {

constexpr std::uint32_t kF32 = 0;
constexpr std::uint32_t kQ41 = 3;

const GgufValue* find(const GgufHeader& header, std::string_view key) {
  for (const auto& [name, value] : header.metadata) {
    if (name == key) return &value;
  }
  return nullptr;
}

template <typename T>
T get(const GgufHeader& header, std::string_view key) {
  const GgufValue* value = find(header, key);
  CHECK(value != nullptr && std::holds_alternative<T>(value->value));
  return std::get<T>(value->value);
}

/// The reason for which a file is refused, or "" when it is taken.
std::string refusal(const GgufWriter& writer, const GgufRequest& request = {}) {
  try {
    writer.parse(request);
    return "";
  } catch (const GgufError& error) {
    return error.what();
  }
}

void check_refused(const GgufWriter& writer, std::string_view reason, const GgufRequest& request = {}) {
  const std::string text = refusal(writer, request);
  if (text.find(reason) == std::string::npos) {
    check::fail(__FILE__, __LINE__, "expected a refusal with '" + std::string(reason) + "', got '" + text + "'");
  }
}

GgufWriter small_model() {
  GgufWriter writer(2, 3);
  writer.text("general.architecture", "llama").u32("llama.block_count", 1).u32("llama.embedding_length", 32);
  writer.tensor("a", {32, 2}, kQ41, 0).tensor("b", {3}, kF32, 64).data(64 + 12);
  return writer;
}

}  // namespace

TEST("metadata of every scalar type comes out as it went in") {
  GgufWriter writer(0, 12);
  writer.key("u8", GgufType::kU8).number(std::uint8_t{200});
  writer.key("i8", GgufType::kI8).number(std::int8_t{-100});
  writer.key("u16", GgufType::kU16).number(std::uint16_t{60'000});
  writer.key("i16", GgufType::kI16).number(std::int16_t{-30'000});
  writer.key("u32", GgufType::kU32).number(std::uint32_t{4'000'000'000});
  writer.key("i32", GgufType::kI32).number(std::int32_t{-2'000'000'000});
  writer.key("u64", GgufType::kU64).number(~std::uint64_t{0});
  writer.key("i64", GgufType::kI64).number(std::int64_t{-1});
  writer.key("f32", GgufType::kF32).number(0.5F);
  writer.key("f64", GgufType::kF64).number(0.1);
  writer.key("bool", GgufType::kBool).number(std::uint8_t{1});
  writer.text("string",
              "Gr\xC3\xBC\xC3\x9F"
              "e");

  const GgufHeader header = writer.parse();

  CHECK(get<std::uint64_t>(header, "u8") == 200 && get<std::int64_t>(header, "i8") == -100);
  CHECK(get<std::uint64_t>(header, "u16") == 60'000 && get<std::int64_t>(header, "i16") == -30'000);
  CHECK(get<std::uint64_t>(header, "u32") == 4'000'000'000 && get<std::int64_t>(header, "i32") == -2'000'000'000);
  CHECK(get<std::uint64_t>(header, "u64") == ~std::uint64_t{0} && get<std::int64_t>(header, "i64") == -1);
  CHECK(get<double>(header, "f32") == 0.5 && get<double>(header, "f64") == 0.1);
  CHECK(get<bool>(header, "bool"));
  CHECK(get<std::string>(header, "string") ==
        "Gr\xC3\xBC\xC3\x9F"
        "e");
  CHECK(header.n_tensors == 0 && header.file_bytes == header.header_bytes);
}

TEST("small arrays are listed and long ones summarised unless they are asked for") {
  GgufWriter writer(0, 3);
  writer.array("small", GgufType::kI32, 2).number(std::int32_t{-1}).number(std::int32_t{7});
  writer.array("long", GgufType::kString, 2000);
  for (int i = 0; i < 2000; ++i) writer.string("token " + std::to_string(i));
  writer.u32("after", 5);

  const GgufHeader plain = writer.parse();
  GgufRequest request;
  request.list_keys = {"long"};
  const GgufHeader asked = writer.parse(request);

  const auto small = get<GgufArray>(plain, "small");
  CHECK(small.is_listed && small.items.size() == 2 && std::get<std::int64_t>(small.items[1].value) == 7);
  const auto summary = get<GgufArray>(plain, "long");
  CHECK(!summary.is_listed && summary.items.empty() && summary.length == 2000);
  CHECK(summary.item_type == GgufType::kString);
  CHECK(get<std::uint64_t>(plain, "after") == 5);
  CHECK(std::get<std::string>(get<GgufArray>(asked, "long").items[1999].value) == "token 1999");
}

TEST("arrays in arrays are stepped over") {
  GgufWriter writer(0, 2);
  writer.array("nested", GgufType::kArray, 2);
  writer.type(GgufType::kString).number<std::uint64_t>(1).string("x");
  writer.type(GgufType::kU16).number<std::uint64_t>(3).raw("abcdef");
  writer.u32("after", 5);

  const GgufHeader header = writer.parse();

  CHECK(!get<GgufArray>(header, "nested").is_listed);
  CHECK(get<std::uint64_t>(header, "after") == 5);
}

TEST("tensors are placed, added up and grouped by type") {
  GgufRequest request;
  request.with_tensors = true;

  const GgufHeader header = small_model().parse(request);

  CHECK(header.n_tensors == 2 && header.n_elements == 67 && header.tensor_bytes == 40 + 12);
  CHECK(header.tensor_types.size() == 2 && header.tensor_types[0].type == "Q4_1");
  CHECK(header.tensor_types[0].n_bytes == 40 && header.tensor_types[1].n_tensors == 1);
  CHECK(header.tensors[1].offset == header.data_offset + 64 && header.data_offset % 32 == 0);
  CHECK(header.data_offset + 76 == header.file_bytes);
  CHECK(small_model().parse().tensors.empty());
}

TEST("the alignment in the metadata is the one that counts") {
  GgufWriter writer(2, 1);
  writer.u32("general.alignment", 128);
  writer.tensor("a", {4}, kF32, 0).tensor("b", {4}, kF32, 128).data(128 + 16, 128);
  GgufWriter crooked(2, 1);
  crooked.u32("general.alignment", 128);
  crooked.tensor("a", {4}, kF32, 0).tensor("b", {4}, kF32, 32).data(128 + 16, 128);

  CHECK(writer.parse().data_offset % 128 == 0);
  check_refused(crooked, "no multiple of the alignment 128");
}

TEST("a tensor of a type from the future is counted and not measured") {
  GgufWriter writer(1, 0);
  writer.tensor("a", {7}, 99, 0).data(0);

  const GgufHeader header = writer.parse();

  CHECK(header.tensor_bytes == 0 && header.tensor_types[0].type == "type 99" && header.n_elements == 7);
}

TEST("every prefix of a sound file is refused as cut off") {
  const std::vector<std::byte> whole = small_model().bytes();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    CHECK_THROWS(GgufError, parse_gguf_header({whole.data(), length}, {}));
  }
}

TEST("a file that is no GGUF or of another version is refused with that reason") {
  GgufWriter none(0, 0);
  none.bytes()[3] = std::byte{'L'};

  check_refused(none, "it is no GGUF");
  check_refused(GgufWriter(0, 0, 1), "GGUF version 1");
  check_refused(GgufWriter(0, 0, 4), "GGUF version 4");
  check_refused(GgufWriter(0, 0, 0x03000000), "big-endian");
  CHECK(refusal(GgufWriter(0, 0, 2)).empty());
}

TEST("counts over the limits are refused before anything is read") {
  check_refused(GgufWriter(~std::uint64_t{0}, 0), "tensors");
  check_refused(GgufWriter(0, ~std::uint64_t{0}), "metadata pairs");
  check_refused(GgufWriter(0, 16'384), "the file ends in its header");
}

TEST("lengths that the file does not have are refused before they are allocated") {
  const std::uint64_t huge[] = {~std::uint64_t{0}, std::uint64_t{1} << 63U, std::uint64_t{1} << 20U, 100};
  for (const std::uint64_t length : huge) {
    check_refused(GgufWriter(0, 1).number(length), "byte 32");
    GgufWriter value(0, 1);
    value.key("k", GgufType::kString).number(length);
    CHECK(!refusal(value).empty());
    for (const GgufType item : {GgufType::kU8, GgufType::kF64, GgufType::kString, GgufType::kArray}) {
      CHECK(!refusal(GgufWriter(0, 1).array("k", item, length)).empty());
    }
    GgufWriter inner(0, 1);
    inner.array("k", GgufType::kString, 1).number(length);
    CHECK(!refusal(inner).empty());
    GgufWriter name(1, 0);
    name.number(length);
    CHECK(!refusal(name).empty());
  }
}

TEST("bad keys, names and types are refused") {
  GgufWriter twice(0, 2);
  twice.u32("a", 1).u32("a", 2);
  GgufWriter tensor_twice(2, 0);
  tensor_twice.tensor("a", {8}, kF32, 0).tensor("a", {8}, kF32, 32).data(64);

  check_refused(twice, "'a' comes twice");
  check_refused(tensor_twice, "tensor 'a' comes twice");
  check_refused(GgufWriter(0, 1).u32("", 1), "no name");
  check_refused(GgufWriter(0, 1).u32("a\n", 1), "no name");
  check_refused(GgufWriter(0, 1).u32("a\xFF", 1), "no name");
  check_refused(GgufWriter(0, 1).u32("\xC0\x80", 1), "no name");
  check_refused(GgufWriter(0, 1).u32("\xED\xA0\x80", 1), "no name");
  check_refused(GgufWriter(1, 0).tensor("\xE2\x82", {8}, kF32, 0).data(32), "no name");
  check_refused(GgufWriter(0, 1).string("a").number(std::uint32_t{13}), "value type 13");
  GgufWriter bad_item(0, 1);
  bad_item.key("a", GgufType::kArray).number(std::uint32_t{77}).number(std::uint64_t{0});
  check_refused(bad_item, "value type 77");
  CHECK(refusal(GgufWriter(0, 1).u32("\xE2\x82\xAC \xF0\x9F\x8D\x8E", 1)).empty());
}

TEST("arrays nested deeper than allowed are refused") {
  GgufWriter writer(0, 1);
  writer.array("deep", GgufType::kArray, 1);
  for (int depth = 0; depth < 1000; ++depth) writer.type(GgufType::kArray).number<std::uint64_t>(1);
  writer.type(GgufType::kU8).number<std::uint64_t>(0);

  check_refused(writer, "deep in each other");
}

TEST("an alignment that is none is refused") {
  for (const std::uint32_t alignment : {0U, 3U, 48U, 1U << 30U}) {
    check_refused(GgufWriter(0, 1).u32("general.alignment", alignment), "power of two");
  }
  check_refused(GgufWriter(0, 1).text("general.alignment", "32"), "no uint32");
}

TEST("dimensions that overflow or do not fit the block are refused") {
  const std::uint64_t big = std::uint64_t{1} << 33U;

  check_refused(GgufWriter(1, 0).tensor("a", {1, 1, 1, 1, 1}, kF32, 0).data(32), "dimensions");
  check_refused(GgufWriter(1, 0).tensor("a", {big, big}, kF32, 0).data(32), "more than 2^63");
  check_refused(GgufWriter(1, 0).tensor("a", {~std::uint64_t{0}}, kF32, 0).data(32), "more than 2^63");
  check_refused(GgufWriter(1, 0).tensor("a", {std::uint64_t{1} << 62U}, kF32, 0).data(32), "larger than any file");
  check_refused(GgufWriter(1, 0).tensor("a", {33}, kQ41, 0).data(64), "no multiple of 32");
  GgufWriter sum(3, 0);
  for (const char* name : {"a", "b", "c"}) sum.tensor(name, {std::uint64_t{1} << 60U}, kF32, 0);
  check_refused(sum.data(32), "together are larger than any file");
}

TEST("tensors outside the file, out of line or over each other are refused") {
  check_refused(GgufWriter(1, 0).tensor("a", {9}, kF32, 0).data(32), "truncated");
  check_refused(GgufWriter(1, 0).tensor("a", {8}, kF32, 32).data(32), "truncated");
  check_refused(GgufWriter(1, 0).tensor("a", {8}, kF32, ~std::uint64_t{31}).data(32), "truncated");
  check_refused(GgufWriter(1, 0).tensor("a", {1}, kF32, 4).data(32), "no multiple of the alignment");
  GgufWriter shared(2, 0);
  shared.tensor("a", {16}, kF32, 0).tensor("b", {8}, kF32, 32).data(64);
  check_refused(shared, "share bytes");
}

TEST("each limit is kept") {
  const auto with = [](const std::function<void(GgufLimits&)>& change) {
    GgufRequest request;
    change(request.limits);
    return request;
  };
  GgufWriter array(0, 1);
  array.array("long", GgufType::kU8, 10).raw("0123456789");
  GgufRequest asked = with([](GgufLimits& limits) { limits.max_asked_array_length = 9; });
  asked.list_keys = {"long"};

  check_refused(small_model(), "takes more than 100 bytes", with([](GgufLimits& l) { l.max_header_bytes = 100; }));
  check_refused(small_model(), "1 are allowed", with([](GgufLimits& l) { l.max_tensors = 1; }));
  check_refused(small_model(), "2 are allowed", with([](GgufLimits& l) { l.max_metadata = 2; }));
  check_refused(small_model(), "a metadata key claims", with([](GgufLimits& l) { l.max_key_bytes = 19; }));
  check_refused(small_model(), "a tensor's name claims", with([](GgufLimits& l) { l.max_tensor_name_bytes = 0; }));
  check_refused(small_model(), "a metadata value claims", with([](GgufLimits& l) { l.max_string_bytes = 4; }));
  check_refused(array, "an array claims 10", with([](GgufLimits& l) { l.max_array_length = 9; }));
  check_refused(array, "9 can be listed", asked);
  CHECK(refusal(array, with([](GgufLimits& l) { l.max_array_length = 10; })).empty());
}

TEST("a header larger than the reading window comes out whole") {
  GgufWriter writer(1, 3);
  const std::string long_text(600'000, 't');
  writer.text("long", long_text).array("tokens", GgufType::kString, 100'000);
  for (int i = 0; i < 100'000; ++i) writer.string("t" + std::to_string(i));
  writer.u32("after", 5).tensor("a", {8}, kF32, 0).data(32);
  const ScratchFolder folder;
  const auto& bytes = writer.bytes();
  const auto path = folder.write("model.gguf", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});

  const GgufHeader header = read_gguf_header(path, {});

  CHECK(get<std::string>(header, "long") == long_text);
  CHECK(get<GgufArray>(header, "tokens").length == 100'000 && get<std::uint64_t>(header, "after") == 5);
  CHECK(header.file_bytes == bytes.size());
}

TEST("what is no readable regular file is refused") {
  const ScratchFolder folder;

  CHECK_THROWS(std::system_error, read_gguf_header(folder.file("missing"), {}));
  CHECK_THROWS(GgufError, read_gguf_header(folder.write("empty", 0), {}));
#if !defined(_WIN32)
  CHECK_THROWS(std::invalid_argument, read_gguf_header(folder.file("."), {}));
  CHECK_THROWS(std::invalid_argument, read_gguf_header("/dev/zero", {}));
#endif
}

CHECK_MAIN()
