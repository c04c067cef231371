// What the binding files share: one register function each, called by module.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace hostler::bindings {

void register_errors(nanobind::module_& module);
void register_ring(nanobind::module_& module);
void register_cache(nanobind::module_& module);
void register_gguf(nanobind::module_& module);

}  // namespace hostler::bindings
