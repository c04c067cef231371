// Python face of the model cache. Every call may wait for a disk, a lock or the kernel, so every call releases the GIL;
// a progress callback takes it back for as long as it runs. No lock of the cache is held then.
#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "hostler/model_cache.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hostler::bindings {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

std::uint64_t prefetch(ModelCache& cache, const std::filesystem::path& path, const nb::object& progress) {
  const nb::gil_scoped_release released;
  return cache.prefetch(path, [&progress](std::uint64_t n_done, std::uint64_t n_total) {
    const nb::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!progress.is_none()) progress(n_done, n_total);
  });
}

}  // namespace

void register_cache(nb::module_& module) {
  const nb::exception<ModelCacheError> base(module, "ModelCacheError", PyExc_RuntimeError);
  base.doc() = "What keeping files warm may fail with, apart from OSError.";
  nb::exception<CacheBudgetExceeded>(module, "CacheBudgetExceeded", base).doc() =
      "What should be kept warm is larger than the cache's budget.";
  nb::exception<CacheEntryInUse>(module, "CacheEntryInUse", base).doc() =
      "The file is open or pinned, so it cannot be evicted.";
  nb::exception<CacheClosed>(module, "CacheClosed", base).doc() = "The cache was closed.";
  nb::exception<FileChanged>(module, "FileChanged", base).doc() = "The file got shorter while it was read.";

  nb::class_<CacheEntry>(module, "CacheEntry", "One file of the cache, as it was when `entries` was called.")
      .def_ro("path", &CacheEntry::path, "As first opened.")
      .def_ro("size_bytes", &CacheEntry::size_bytes)
      .def_ro("n_open", &CacheEntry::n_open, "Handles that keep it.")
      .def_ro("is_pinned", &CacheEntry::is_pinned)
      .def_ro("is_replaced", &CacheEntry::is_replaced, "Another file has taken its path; it goes when it is not in use.");

  nb::class_<CacheStats>(module, "CacheStats", "Counters of a cache, as they were when `stats` was called.")
      .def_ro("budget_bytes", &CacheStats::budget_bytes)
      .def_ro("mapped_bytes", &CacheStats::mapped_bytes, "Whole sizes of all files in the cache.")
      .def_ro("pinned_bytes", &CacheStats::pinned_bytes)
      .def_ro("n_entries", &CacheStats::n_entries)
      .def_ro("n_hits", &CacheStats::n_hits, "Opens that found the file mapped.")
      .def_ro("n_misses", &CacheStats::n_misses, "Opens that mapped it.")
      .def_ro("n_evictions", &CacheStats::n_evictions, "For the budget, by request, or because the file was replaced.");

  nb::class_<CacheHandle>(module, "MappedFile", "One open file of the cache; a context manager. Any thread.")
      .def_prop_ro("path", &CacheHandle::path)
      .def_prop_ro(
          "size_bytes", [](const CacheHandle& handle) { return handle.file().size_bytes(); },
          "As it was when the file was mapped.")
      .def(
          "residency", [](const CacheHandle& handle) { return handle.file().residency(); }, Released(),
          "Fraction of the file's pages in memory; None where the system does not say.")
      .def_prop_ro("is_closed", &CacheHandle::is_closed)
      .def("close", &CacheHandle::close, Released(), "Let the cache evict the file when it must. Twice is fine.")
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> MappedFile"))
      .def(
          "__exit__",
          [](CacheHandle& handle, const nb::args&) {
            const nb::gil_scoped_release released;
            handle.close();
          },
          nb::sig("def __exit__(self, *args: object) -> None"));

  nb::class_<ModelCache>(module, "ModelCache", "Weight files kept warm under a budget; any thread may call any method.")
      .def(nb::new_([](std::uint64_t budget_bytes) { return ModelCache::create(budget_bytes); }), "budget_bytes"_a,
           "An empty cache.\n\n"
           "Args:\n"
           "    budget_bytes: Whole sizes of the files it may keep. What is open or pinned may exceed it.")
      .def("open", &ModelCache::open, "path"_a, Released(),
           nb::sig("def open(self, path: str | os.PathLike[str]) -> MappedFile"),
           "Map a file, or find it mapped; it is not evicted until the handle is closed.\n\n"
           "A file that was replaced on disk, or written to, is another file.\n\n"
           "Raises:\n"
           "    OSError: It cannot be opened or mapped.\n"
           "    ValueError: It is empty or no regular file.")
      .def("prefetch", &prefetch, "path"_a, "progress"_a = nb::none(),
           nb::sig("def prefetch(self, path: str | os.PathLike[str], "
                   "progress: collections.abc.Callable[[int, int], object] | None = None) -> int"),
           "Bring a file into memory, the GIL released; what is there already is not read again.\n\n"
           "Args:\n"
           "    path: The file; it stays in the cache afterwards.\n"
           "    progress: Called every few MiB with (bytes done, bytes in all); raise in it to stop.\n\n"
           "Returns:\n"
           "    Bytes that had to be read.\n\n"
           "Raises:\n"
           "    CacheBudgetExceeded: The file is larger than the budget.\n"
           "    FileChanged: Somebody truncated it meanwhile.\n"
           "    OSError: It cannot be read.")
      .def("pin", &ModelCache::pin, "path"_a, Released(), nb::sig("def pin(self, path: str | os.PathLike[str]) -> None"),
           "Keep all of a file in memory until `unpin`; twice is as good as once.\n\n"
           "Raises:\n"
           "    CacheBudgetExceeded: All pinned files together would be larger than the budget.\n"
           "    OSError: The system refuses; the message names its limit.")
      .def("unpin", &ModelCache::unpin, "path"_a, Released(), nb::sig("def unpin(self, path: str | os.PathLike[str]) -> bool"),
           "Undo `pin`; False when the file was not pinned.")
      .def("residency", &ModelCache::residency, "path"_a, Released(),
           nb::sig("def residency(self, path: str | os.PathLike[str]) -> float | None"),
           "Fraction of a file's pages in memory, 0 to 1, whoever brought them there; the file need not be cached.\n\n"
           "None where the system does not say: on Windows, and on Linux for a file that this user neither owns nor\n"
           "may write.")
      .def("evict", &ModelCache::evict, "path"_a, Released(), nb::sig("def evict(self, path: str | os.PathLike[str]) -> bool"),
           "Give a file's memory back; False when it is not in the cache.\n\n"
           "Raises:\n"
           "    CacheEntryInUse: It is open or pinned.")
      .def("trim", &ModelCache::trim, "target_bytes"_a, Released(),
           "Evict the least recently used until `target_bytes` are mapped or nothing evictable is left.\n\n"
           "Returns:\n"
           "    Bytes given back.")
      .def_prop_rw("budget_bytes", &ModelCache::budget_bytes, &ModelCache::set_budget_bytes,
                   "Setting it evicts what no longer fits.")
      .def("close", &ModelCache::close, Released(),
           "Let go of everything that is not open, unpin all, and refuse what comes later.\n\n"
           "What is in memory stays there, so that the next start finds it warm. Twice is fine.")
      .def("entries", &ModelCache::entries, Released(), "The files in the cache, least recently used first.")
      .def("stats", &ModelCache::stats, Released());
}

}  // namespace hostler::bindings
