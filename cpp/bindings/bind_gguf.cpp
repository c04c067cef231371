// Python face of the GGUF header reader: C++ values in, plain Python values out. The reading releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <type_traits>

#include "bindings.h"
#include "hostler/gguf_header.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hostler::bindings {
namespace {

/// The file's bytes are a stranger's: what is no UTF-8 becomes U+FFFD instead of an error.
nb::object text_of(std::string_view bytes) {
  PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace");
  if (text == nullptr) throw nb::python_error();
  return nb::steal(text);
}

nb::object object_of(const GgufValue& value);

/// A listed array becomes a list, any other the pair (type of its items, length).
nb::object object_of(const GgufArray& array) {
  if (!array.is_listed) return nb::make_tuple(text_of(gguf_type_name(array.item_type)), array.length);
  nb::list items;
  for (const GgufValue& item : array.items) items.append(object_of(item));
  return items;
}

nb::object object_of(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> nb::object {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::string>) {
          return text_of(held);
        } else if constexpr (std::is_same_v<Held, GgufArray>) {
          return object_of(held);
        } else {
          return nb::cast(held);
        }
      },
      value.value);
}

GgufHeader read(const std::filesystem::path& path, const GgufRequest& request) {
  const nb::gil_scoped_release released;
  return read_gguf_header(path, request);
}

}  // namespace

void register_gguf(nb::module_& module) {
  nb::exception<GgufError>(module, "GgufError", PyExc_ValueError).doc() =
      "The file is no GGUF, malformed, truncated, or over a limit; the message says what and at which byte.";

  nb::class_<GgufLimits>(module, "GgufLimits", "What a header may take; a file over a limit is refused.")
      .def(nb::init<>())
      .def_rw("max_header_bytes", &GgufLimits::max_header_bytes)
      .def_rw("max_metadata", &GgufLimits::max_metadata, "Pairs.")
      .def_rw("max_tensors", &GgufLimits::max_tensors)
      .def_rw("max_key_bytes", &GgufLimits::max_key_bytes)
      .def_rw("max_tensor_name_bytes", &GgufLimits::max_tensor_name_bytes)
      .def_rw("max_string_bytes", &GgufLimits::max_string_bytes)
      .def_rw("max_array_length", &GgufLimits::max_array_length, "Items.")
      .def_rw("max_listed_array_length", &GgufLimits::max_listed_array_length,
              "Items; a longer array is summarised unless `list_keys` names it.")
      .def_rw("max_asked_array_length", &GgufLimits::max_asked_array_length, "Items, also where `list_keys` names it.")
      .def_rw("max_array_depth", &GgufLimits::max_array_depth);

  nb::class_<TensorTypeUse>(module, "TensorTypeUse", "All tensors of one type together.")
      .def_ro("type", &TensorTypeUse::type, "Such as \"Q4_1\"; \"type N\" for one that this reader does not know.")
      .def_ro("n_tensors", &TensorTypeUse::n_tensors)
      .def_ro("n_elements", &TensorTypeUse::n_elements)
      .def_ro("n_bytes", &TensorTypeUse::n_bytes, "0 where the type is unknown.");

  nb::class_<GgufTensor>(module, "GgufTensor", "Where one tensor lies.")
      .def_prop_ro(
          "name", [](const GgufTensor& tensor) { return text_of(tensor.name); }, nb::sig("def name(self) -> str"))
      .def_prop_ro("type",
                   [](const GgufTensor& tensor) {
                     const TensorType* type = find_tensor_type(tensor.type);
                     return type != nullptr ? std::string(type->name) : "type " + std::to_string(tensor.type);
                   })
      .def_ro("dims", &GgufTensor::dims, "Innermost first, as in the file.")
      .def_ro("offset", &GgufTensor::offset, "Bytes from the beginning of the file.")
      .def_ro("n_elements", &GgufTensor::n_elements)
      .def_ro("n_bytes", &GgufTensor::n_bytes, "0 where the type is unknown.");

  nb::class_<GgufHeader>(module, "GgufHeader", "What a GGUF file says of itself.")
      .def_ro("version", &GgufHeader::version)
      .def_ro("file_bytes", &GgufHeader::file_bytes)
      .def_ro("header_bytes", &GgufHeader::header_bytes)
      .def_ro("data_offset", &GgufHeader::data_offset)
      .def_ro("alignment", &GgufHeader::alignment)
      .def_ro("n_tensors", &GgufHeader::n_tensors)
      .def_ro("n_elements", &GgufHeader::n_elements, "Of all tensors.")
      .def_ro("tensor_bytes", &GgufHeader::tensor_bytes, "Of all tensors whose type is known.")
      .def_ro("tensor_types", &GgufHeader::tensor_types, "Most bytes first.")
      .def_ro("tensors", &GgufHeader::tensors, "Empty unless asked for.")
      .def(
          "metadata",
          [](const GgufHeader& header) {
            nb::dict metadata;
            for (const auto& [key, value] : header.metadata) metadata[text_of(key)] = object_of(value);
            return metadata;
          },
          nb::sig("def metadata(self) -> dict[str, str | int | float | bool | "
                  "list[str | int | float | bool] | tuple[str, int]]"),
          "A new dict of the pairs in the file's order. An array is a list, or (item type, length) if it is long and\n"
          "was not asked for.");

  module.def(
      "read_gguf_header",
      [](const std::filesystem::path& path, const std::vector<std::string>& list_keys, bool with_tensors,
         const GgufLimits& limits) { return read(path, GgufRequest{limits, list_keys, with_tensors}); },
      "path"_a, nb::kw_only(), "list_keys"_a = std::vector<std::string>{}, "with_tensors"_a = false, "limits"_a = GgufLimits{},
      nb::sig("def read_gguf_header(path: str | os.PathLike[str], *, list_keys: collections.abc.Sequence[str] = (), "
              "with_tensors: bool = False, limits: GgufLimits = ...) -> GgufHeader"),
      "Read and check a GGUF file's header, the GIL released; tensor data is not touched.\n\n"
      "Args:\n"
      "    path: The file.\n"
      "    list_keys: Arrays wanted whole, however long.\n"
      "    with_tensors: Whether to list the tensors, too.\n"
      "    limits: What the header may take.\n\n"
      "Raises:\n"
      "    GgufError: It is no GGUF, malformed, truncated, or over a limit.\n"
      "    ValueError: It is no regular file.\n"
      "    OSError: It cannot be read.");
}

}  // namespace hostler::bindings
