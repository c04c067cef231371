"""A whole tuning of a tiny model in a real home: measure, apply, revert, go on after a kill, refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler import InsufficientStorage, InvalidModelFile, InvalidRequest, ModelNotFound, read_gguf_header
from hostler.config import Settings
from hostler.library.store import Library
from hostler_llamacpp import ENVIRONMENT, hugepages
from hostler_llamacpp.tuning import applying, job, plot, report
from hostler_llamacpp.tuning.child import StepFailed
from hostler_llamacpp.tuning.job import Order, Tuned, Tuning
from hostler_llamacpp.tuning.source import find_source
from hostler_llamacpp.tuning.work import TuningRuns, Work

from . import tiny_models
from .test_tuning_steps import quantized
from .tuning_home import Silent, home_with, run_here, run_with, speeds_by_size

FAST = job.Effort(n_rounds=1, n_prompt=64, n_new=4, n_repeats=1)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPEEDS", "QUICK_SPEEDS", "SEARCH", "QUICK_SEARCH"):
        monkeypatch.setattr(job, name, FAST)
    monkeypatch.setattr(job, "QUICK_TOKENS", 300)
    monkeypatch.setattr(job, "SENSITIVITY_TOKENS", 100)
    monkeypatch.setattr(job.kernels, "packed_types", frozenset)  # the same types whatever the processor


@pytest.fixture
def settings(tmp_path: Path, models: Path) -> Settings:
    """A home with a copy of the tiny llama under the id `tiny`."""
    own = tmp_path / "files"
    own.mkdir()
    shutil.copy(models / "llama.gguf", own / "llama.gguf")
    return home_with(tmp_path / "home", tiny=own / "llama.gguf")


@pytest.fixture
def work(settings: Settings) -> Iterator[Work]:
    with Work(settings.home, "tiny") as work:
        yield work


def tuning_of(settings: Settings, work: Work, *, quick: bool = True, again: bool = False, **options: Any) -> Tuning:
    order = Order(find_source(settings, "tiny"), max_loss=1.0, is_quick=quick, is_again=again)
    return Tuning(settings, order, work, options.pop("display", Silent()), **{"run": run_here, "n_cores": 2, **options})


def kept(settings: Settings) -> Any:
    return Library(settings.home, {}).find("tiny").manifest


# -- measuring --------------------------------------------------------------------------------------------------------


def test_quick_tuning_measures_the_single_types_and_settings(settings: Settings, work: Work) -> None:
    tuned = tuning_of(settings, work).run()

    assert [one.name for one in tuned.variants] == ["original", "Q8_0", "IQ4_NL", "Q4_0"]
    assert tuned.variants[0].loss.change == 0.0
    sizes = {one.name: one.size_bytes for one in tuned.variants}
    assert sizes["original"] > sizes["Q8_0"] > sizes["Q4_0"]
    assert tuned.recommended == "IQ4_NL", "of the two smallest, here the fastest, the closer one"
    assert {one.name for one in tuned.settings} == {"threads", "n_batch / n_ubatch"}
    assert "Q8_0" in tuned.variants[1].types


def test_full_tuning_adds_mixes_between_fine_and_coarse(settings: Settings, work: Work) -> None:
    tuned = tuning_of(settings, work, quick=False).run()

    mixes = [one for one in tuned.variants if one.name.startswith("mix-")]
    assert len(mixes) >= 2
    how_read = "huge pages" if hugepages.are_given(ENVIRONMENT) else "mmap"
    assert {"KV type", how_read, "flash attention"} <= {one.name for one in tuned.settings}
    fine, coarse = (tuned.variant(name) for name in ("Q8_0", "Q4_0"))
    assert fine is not None
    assert coarse is not None
    assert all(coarse.size_bytes * 0.9 <= one.size_bytes <= fine.size_bytes for one in mixes)
    assert tuned.best_settings == tuning_of(settings, work).start, "nothing that was tried is better"


def test_coarse_types_that_save_no_time_make_no_mixes(settings: Settings, work: Work) -> None:
    def coarse_is_slow(arguments: Mapping[str, Any]) -> float:
        return 1e-3 * Path(arguments["path"]).stat().st_size

    tuned = tuning_of(settings, work, quick=False, run=run_with(coarse_is_slow)).run()

    assert [one.name for one in tuned.variants] == ["original", "Q8_0", "IQ4_NL", "Q4_0"]
    assert tuned.recommended == "original"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [({}, ["Q8_0", "Q4_1", "IQ4_NL", "Q4_0"]), ({"repack": False}, ["Q8_0", "IQ4_NL", "Q4_0"])],
)
def test_a_type_that_the_plugin_packs_is_tried(
    settings: Settings, work: Work, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], expected: list[str]
) -> None:
    monkeypatch.setattr(job.kernels, "packed_types", lambda: frozenset({"Q4_1"}))
    Library(settings.home, {}).update("tiny", settings={"extra": extra})

    tuned = tuning_of(settings, work).run()

    assert [one.name for one in tuned.variants] == ["original", *expected]


def test_kernels_that_cannot_be_used_are_told_and_none_of_their_types_is_tried(
    settings: Settings, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.kernels, "packed_types", lambda: frozenset({"Q4_1"}))
    monkeypatch.setattr(job.kernels, "attach", lambda: ["another llama.cpp"])
    display = Silent()

    tuned = tuning_of(settings, work, display=display).run()

    assert "another llama.cpp" in display.notes
    assert "Q4_1" not in {one.name for one in tuned.variants}


def test_every_step_loads_the_model_as_it_is_run(settings: Settings, work: Work) -> None:
    Library(settings.home, {}).update("tiny", settings={"extra": {"repack": False}})
    asked: dict[str, set[bool]] = {}

    def watches(step: str, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        asked.setdefault(step, set()).add(arguments["repack"])
        return run_here(step, arguments, **options)

    tuning_of(settings, work, quick=False, run=watches).run()

    assert asked == {step: {False} for step in ("loss", "importance", "quantize", "sensitivity", "speed")}


@pytest.mark.parametrize("change", ["the setting", "the kernels"])
def test_what_was_measured_with_other_kernels_begins_anew(
    settings: Settings, work: Work, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    tuning_of(settings, work).begin()
    work.note("loss source", {"perplexity": 1.0})
    if change == "the setting":
        Library(settings.home, {}).update("tiny", settings={"extra": {"repack": False}})
    else:
        monkeypatch.setattr(job.kernels, "names", lambda: ["q4_1 avx3"])

    tuning_of(settings, work).begin()

    assert "loss source" not in work.state.done


def test_settings_that_are_faster_are_found_one_after_the_other(settings: Settings, work: Work) -> None:
    def knows_what_it_likes(arguments: Mapping[str, Any]) -> float:
        likes = (arguments["n_threads"] == 1, arguments["n_ubatch"] == 128, not arguments["flash_attn"])
        return speeds_by_size({**arguments, "n_threads": 1 + sum(likes)})

    tuned = tuning_of(settings, work, quick=False, run=run_with(knows_what_it_likes)).run()

    best = tuned.best_settings
    assert (best.cpu_threads, best.n_ubatch, best.flash_attn) == (1, 128, False)
    assert (best.use_mmap, best.huge_pages, best.cache_type) == (True, hugepages.are_given(ENVIRONMENT), "f16")
    taken = {(one.name, one.value) for one in tuned.settings if one.is_taken}
    assert {("threads", "1"), ("n_batch / n_ubatch", "512 / 128"), ("flash attention", "off")} <= taken
    assert "KV type" not in {one.name for one in tuned.settings}, "a quantized one needs flash attention"


def test_what_was_measured_is_known_to_the_next_command(settings: Settings, work: Work) -> None:
    first = tuning_of(settings, work).run()

    def nobody(step: str, *_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError(f"{step} was run again")

    assert tuning_of(settings, work, run=nobody).run() == first


def test_again_measures_again(settings: Settings, work: Work) -> None:
    first = tuning_of(settings, work).run()

    second = tuning_of(settings, work, again=True).run()

    assert second.measured_at >= first.measured_at
    assert [one.loss for one in second.variants] == [one.loss for one in first.variants], "losses are deterministic"


def test_another_file_begins_anew(settings: Settings, work: Work) -> None:
    tuning_of(settings, work).run()
    path = find_source(settings, "tiny").path
    tiny_models.write_llama(path, spread=0.5)

    assert work.resume({**find_source(settings, "tiny").fingerprint()}) == []


def test_tuning_that_was_killed_goes_on_after_its_last_measurement(settings: Settings, work: Work) -> None:
    ran: list[str] = []

    def dies_at_the_second_loss(step: str, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        ran.append(step)
        if ran.count("loss") == 3:
            raise KeyboardInterrupt
        return run_here(step, arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        tuning_of(settings, work, run=dies_at_the_second_loss).run()
    n_before = len(ran)
    (work.folder / "Q4_0.gguf.part").write_bytes(b"half")

    def goes_on(step: str, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        ran.append(step)
        return run_here(step, arguments, **options)

    tuning_of(settings, work, run=goes_on).run()

    assert ran[n_before:][:1] == ["loss"]
    assert ran.count("quantize") == 3
    assert ran.count("importance") == 1


def test_two_commands_do_not_tune_one_model(settings: Settings, work: Work) -> None:
    with pytest.raises(TuningRuns), Work(settings.home, "tiny"):
        pass
    assert work.folder.is_dir()


# -- refusing ---------------------------------------------------------------------------------------------------------


def test_too_little_disk_is_said_with_both_numbers_before_anything_is_done(settings: Settings, work: Work) -> None:
    tuning = tuning_of(settings, work, free_bytes=lambda _: 1000, run=None)

    with pytest.raises(InsufficientStorage, match=r"needs \d+ bytes in .*, and 1000 are free"):
        tuning.run()


def test_unknown_model_is_not_found(settings: Settings) -> None:
    with pytest.raises(ModelNotFound, match="The model nope does not exist"):
        find_source(settings, "nope")


def test_model_that_only_embeds_is_refused(settings: Settings, models: Path) -> None:
    Library(settings.home, {}).import_path(models / "bert.gguf", id="bert")

    with pytest.raises(InvalidRequest, match="bert only gives embeddings"):
        find_source(settings, "bert")


def test_model_of_another_engine_is_refused_by_its_format(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "genai_config.json").write_text('{"model": {"type": "llama"}}')
    (folder / "model.onnx").write_bytes(b"x")
    Library(settings.home, {}).import_path(folder, id="onnx")

    with pytest.raises(InvalidRequest, match="onnx is a model of the format onnxgenai"):
        find_source(settings, "onnx")


def test_file_that_was_cut_since_it_was_imported_is_refused(settings: Settings) -> None:
    path = find_source(settings, "tiny").path
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(InvalidModelFile, match="has 1000 bytes now"):
        find_source(settings, "tiny")


def test_file_whose_weights_are_garbage_is_refused_by_the_step(settings: Settings, work: Work) -> None:
    path = find_source(settings, "tiny").path
    data = bytearray(path.read_bytes())
    start = read_gguf_header(path).data_offset
    data[start : start + 4000] = b"\xff" * 4000  # float32 NaN
    path.write_bytes(data)

    with pytest.raises(StepFailed, match="cannot load"):
        tuning_of(settings, work, run=_in_words).run()


def _in_words(step: str, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
    """As a child would: a reason becomes a StepFailed."""
    try:
        return run_here(step, arguments, **options)
    except Exception as error:
        raise StepFailed(str(error)) from error


# -- a better source --------------------------------------------------------------------------------------------------


def test_better_file_of_the_same_model_is_the_source(settings: Settings, models: Path, tmp_path: Path) -> None:
    Library(settings.home, {}).import_path(quantized(models / "llama.gguf", tmp_path / "small.gguf", "Q5_1"), id="small")
    source = find_source(settings, "small")

    assert (source.made_from_id, source.made_from_quantization, source.quantization) == ("tiny", "F32", "Q5_1")
    with Work(settings.home, "small") as work:
        tuned = Tuning(settings, Order(source, is_quick=True), work, Silent(), run=run_here, n_cores=1).run()
    original, fine = tuned.variants[:2]
    assert fine.name == "Q8_0"
    assert 0 < fine.loss.kl < original.loss.kl, "what is made from the better file is nearer to it than the original"
    assert "tiny (F32)" in tuned.source


def test_file_of_another_model_is_no_source(settings: Settings, models: Path) -> None:
    Library(settings.home, {}).import_path(models / "gemma3.gguf", id="gemma")

    assert find_source(settings, "tiny").made_from_id == "tiny"


# -- keeping ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tuned(settings: Settings, work: Work) -> tuple[Tuning, Tuned]:
    tuning = tuning_of(settings, work)
    return tuning, tuning.run()


def test_applied_variant_runs_in_place_of_the_file_and_revert_takes_it_back(
    settings: Settings, work: Work, tuned: tuple[Tuning, Tuned]
) -> None:
    before, own = kept(settings), find_source(settings, "tiny").path
    original = own.read_bytes()

    applied = applying.apply(settings, work, *tuned, find_source(settings, "tiny"), "Q4_0")

    manifest = kept(settings)
    running = Path(Library(settings.home, {}).files("tiny").primary)
    assert (applied.variant, applied.is_running) == ("Q4_0", False)
    assert running.parent == settings.home / "models" / "tiny"
    assert read_gguf_header(running).quantization == "Q4_0"
    assert manifest.metadata["quantization"].startswith("Q4_0")
    assert manifest.metadata["tuned_variant"] == "Q4_0"
    assert own.read_bytes() == original
    assert find_source(settings, "tiny").path == own
    assert find_source(settings, "tiny").is_tuned

    applying.revert(settings, "tiny")

    assert kept(settings) == before
    assert own.read_bytes() == original
    assert not running.exists()
    with pytest.raises(InvalidRequest, match="nothing to revert"):
        applying.revert(settings, "tiny")


def test_second_apply_replaces_the_first_and_revert_goes_to_the_beginning(
    settings: Settings, work: Work, tuned: tuple[Tuning, Tuned]
) -> None:
    before = kept(settings)
    for name in ("Q4_0", "Q8_0"):
        applying.apply(settings, work, *tuned, find_source(settings, "tiny"), name)

    assert len(list((settings.home / "models" / "tiny").glob("variant-*"))) == 1
    assert kept(settings).metadata["tuned_variant"] == "Q8_0"

    applying.revert(settings, "tiny")

    assert kept(settings) == before


def test_variant_that_was_not_measured_is_refused_with_those_that_were(
    settings: Settings, work: Work, tuned: tuple[Tuning, Tuned]
) -> None:
    with pytest.raises(InvalidRequest, match="Q2_K is no variant that was measured; there are original, Q8_0"):
        applying.apply(settings, work, *tuned, find_source(settings, "tiny"), "Q2_K")


def test_variant_is_written_from_the_same_bytes_when_its_files_are_gone(
    settings: Settings, work: Work, tuned: tuple[Tuning, Tuned]
) -> None:
    work.clear()

    applying.apply(settings, work, *tuned, find_source(settings, "tiny"), "IQ4_NL")

    assert kept(settings).metadata["tuned_variant"] == "IQ4_NL"


def test_better_settings_are_kept_with_the_original_file(settings: Settings, work: Work, tuned: tuple[Tuning, Tuned]) -> None:
    tuning, found = tuned
    better = msgspec.structs.replace(tuning.start, n_ubatch=128, cache_type="q8_0")
    found = msgspec.structs.replace(found, best_settings=better, settings=[])

    applying.apply(settings, work, tuning, found, find_source(settings, "tiny"), "original")

    assert kept(settings).settings == {"cache_type": "q8_0", "extra": {"n_ubatch": 128}}
    assert kept(settings).variant.file is None
    applying.revert(settings, "tiny")
    assert kept(settings).settings == {}


# -- showing ----------------------------------------------------------------------------------------------------------


def test_report_names_what_is_recommended(tuned: tuple[Tuning, Tuned], capsys: pytest.CaptureFixture[str]) -> None:
    report.print_report(tuned[1])
    report.print_lines(report.plot_of_characters(tuned[1]))

    out = capsys.readouterr().out
    assert "Recommended: " in out
    assert all(one.name in out for one in tuned[1].variants)
    assert "a original, b Q8_0" in out


def test_json_has_ratios_against_the_original(tuned: tuple[Tuning, Tuned]) -> None:
    found = report.as_json(tuned[1])

    assert found["variants"][0]["prefill_ratio"] == 1.0
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(found)), Tuned) == tuned[1]


@pytest.mark.skipif(not plot.has_matplotlib(), reason="matplotlib is an extra")
def test_plot_is_written_as_png_and_svg(tuned: tuple[Tuning, Tuned], tmp_path: Path) -> None:
    png, svg = plot.draw(tuned[1], tmp_path / "tune")

    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in svg.read_bytes()


def test_plot_without_matplotlib_says_how_to_get_it(
    tuned: tuple[Tuning, Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "has_matplotlib", lambda: False)

    with pytest.raises(plot.NoMatplotlib, match=r"pip install 'hostler-llamacpp\[tune\]'"):
        plot.draw(tuned[1], tmp_path / "tune")
