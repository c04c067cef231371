// C++ exceptions -> Python: std::system_error becomes OSError with its errno; nanobind knows the other standard ones.
#include <nanobind/nanobind.h>

#include <system_error>

#include "bindings.h"

namespace nb = nanobind;

namespace hostler::bindings {

void register_errors(nb::module_& /*module*/) {
  nb::register_exception_translator([](const std::exception_ptr& pointer, void* /*payload*/) {
    try {
      std::rethrow_exception(pointer);
    } catch (const std::system_error& error) {
      // Windows codes map to the errno that Python chooses the OSError subclass by (FileNotFoundError, ...).
      const std::error_condition condition = error.code().default_error_condition();
      const int number = condition.category() == std::generic_category() ? condition.value() : error.code().value();
      PyErr_SetObject(PyExc_OSError, nb::make_tuple(number, error.what()).ptr());
    }
  });
}

}  // namespace hostler::bindings
