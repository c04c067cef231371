// hostler._native: the Python face of cpp/. Nothing but the list of what is in it.
#include "bindings.h"

NB_MODULE(_native, module) {
  module.doc() = "hostler's native core. Import hostler.ring, hostler.modelcache and hostler.library.gguf instead.";
  hostler::bindings::register_errors(module);
  hostler::bindings::register_ring(module);
  hostler::bindings::register_cache(module);
  hostler::bindings::register_gguf(module);
}
