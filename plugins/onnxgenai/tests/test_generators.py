"""The library's Generators: on the CPU for real, on devices that no machine of ours has with a fake that keeps the rules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai
import pytest

from hostler import EngineFailed, EngineSettings, FinishReason, ModelFiles, ModelLoadFailed, SamplingParams
from hostler.testing import Driver, EngineContract, RecordingSequence, contract_checks
from hostler_onnxgenai.engine import OnnxGenaiEngine
from hostler_onnxgenai.folder import read_folder
from hostler_onnxgenai.generators import GeneratorBackend

from .fake_genai import FakeGenai
from .running import prompt
from .spoiling import change_config

SETTINGS = EngineSettings(ctx_len=256, n_parallel=2, n_batch=32, device="dml")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeGenai]:
    """Puts a fake in the library's place."""

    def fake(**manners: object) -> FakeGenai:
        module = FakeGenai(**manners)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "onnxruntime_genai", module)
        return module

    return fake


def loaded(path: Path, settings: EngineSettings = SETTINGS) -> OnnxGenaiEngine:
    engine = OnnxGenaiEngine()
    engine.load(ModelFiles(str(path), "onnxgenai"), settings, lambda _: True)
    return engine


def made(path: Path, n_rows: int = 2, n_ctx: int = 128) -> GeneratorBackend:
    return GeneratorBackend(
        onnxruntime_genai, read_folder(path), "cpu", n_rows, n_ctx, n_threads=1, spin_us=0, on_row=lambda _: None
    )


def test_rows_are_rewound_and_reused(tiny: Path) -> None:
    backend = made(tiny)
    one, other = np.array(prompt(30, 1), np.int32), np.array(prompt(30, 2), np.int32)
    first = backend.prefill(0, 0, one).copy()
    backend.prefill(1, 0, one)

    backend.prefill(0, 0, other)
    again = backend.prefill(0, 0, one).copy()
    parted = backend.prefill(1, 10, other[10:]).copy()

    np.testing.assert_allclose(again, first, atol=1e-4)
    np.testing.assert_allclose(parted, backend.prefill(0, 0, np.concatenate([one[:10], other[10:]])), atol=1e-3)


def test_a_row_that_is_full_is_an_error_with_the_librarys_words(tiny: Path) -> None:
    backend = made(tiny, n_ctx=16)

    with pytest.raises(EngineFailed, match="exceeds max length"):
        backend.prefill(0, 0, np.array(prompt(17, 1), np.int32))


def test_generators_give_the_token_that_the_librarys_own_loop_gives(tiny: Path) -> None:
    backend = made(tiny)
    text = np.array(prompt(20, 3), np.int32)
    params = onnxruntime_genai.GeneratorParams(backend._model)
    params.set_search_options(max_length=128, do_sample=False)
    reference = onnxruntime_genai.Generator(backend._model, params)
    reference.append_tokens(text)

    token, ours, theirs = int(backend.prefill(0, 0, text).argmax()), [], []
    for place in range(30):
        reference.generate_next_token()
        theirs.append(int(reference.get_next_tokens()[0]))
        ours.append(token)
        token = int(backend.decode([0], [20 + place], [token])[0].argmax())
        if reference.is_done():
            break

    assert ours[: len(theirs)] == theirs


def test_the_fake_has_nothing_that_the_library_has_not() -> None:
    module = FakeGenai()

    for kind in ("Config", "Model", "GeneratorParams", "Generator"):
        methods = {name for name in vars(getattr(module, kind)) if not name.startswith("_")}
        assert methods <= set(dir(getattr(onnxruntime_genai, kind))), kind
    assert isinstance(onnxruntime_genai.Model.device_type, property)


@pytest.mark.parametrize("device", ["cuda", "dml"])
def test_a_device_is_named_in_the_one_way_that_cannot_fall_back(
    own: Path, fake: Callable[..., FakeGenai], device: str
) -> None:
    change_config(own, "model.decoder.session_options", {"provider_options": [{device: {}}]})
    module = fake()

    engine = loaded(own, EngineSettings(ctx_len=256, n_parallel=3, cpu_threads=2))

    assert module.names()[:5] == ["Config", "clear_providers", "append_provider", "overlay", "Model"]
    assert ("append_provider", device) in module.calls
    assert module.calls.count(("set_search_options", {"max_length": 256, "do_sample": False})) == 3
    overlay = next(call[1] for call in module.calls if call[0] == "overlay")
    assert overlay["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 2
    assert engine._backend.device == device


def test_the_folders_own_options_of_its_device_are_kept(own: Path, fake: Callable[..., FakeGenai]) -> None:
    change_config(own, "model.decoder.session_options", {"provider_options": [{"dml": {"enable_graph_capture": 1}}]})
    module = fake()

    loaded(own)

    assert ("set_provider_option", "dml", "enable_graph_capture", "1") in module.calls


@pytest.mark.parametrize("name", contract_checks(without=("close_gives_the_memory_back", "the_model_can_end_its_answer")))
def test_engine_keeps_the_contract_on_directml(tiny: Path, fake: Callable[..., FakeGenai], name: str) -> None:
    fake()

    with EngineContract(OnnxGenaiEngine, ModelFiles(str(tiny), "onnxgenai"), SETTINGS) as contract:
        contract.check(name)


def test_long_prompts_go_to_a_generator_in_short_chunks(tiny: Path, fake: Callable[..., FakeGenai]) -> None:
    """Each call holds the GIL and computes logits for all of its tokens."""
    module = fake()
    engine = loaded(tiny, EngineSettings(ctx_len=512, n_parallel=1, device="dml"))
    module.calls.clear()
    sequence = RecordingSequence(prompt(400, 1), SamplingParams(temperature=0, seed=1, max_tokens=3), n_ctx=512)

    Driver(engine, n_slots=1).run([sequence])

    sizes = [call[1] for call in module.calls if call[0] == "append_tokens"]
    assert sum(sizes) == 400 + len(sequence.token_ids) - (sequence.reason is FinishReason.LENGTH)
    assert max(sizes) <= 64


def test_a_second_turn_is_appended_to_the_first(tiny: Path, fake: Callable[..., FakeGenai]) -> None:
    module = fake()
    engine = loaded(tiny)
    params = SamplingParams(temperature=0, seed=1, max_tokens=6, ignore_eos=True)
    first = RecordingSequence(prompt(100, 1), params, n_ctx=256)
    Driver(engine, n_slots=2).run([first])
    module.calls.clear()
    turn = [*first.tokens, *first.token_ids, *prompt(20, 2)]

    second = RecordingSequence(turn, params, n_ctx=256)
    Driver(engine, n_slots=2).run([second])

    assert second.n_cached == 100 + 5
    assert "rewind_to" not in module.names(), "nothing of it has to go"
    assert (
        sum(call[1] for call in module.calls[: module.names().index("append_tokens") + 1] if call[0] == "append_tokens") == 21
    )


def test_a_device_that_is_not_there_is_an_error_and_no_cpu_run(tiny: Path, fake: Callable[..., FakeGenai]) -> None:
    fake(has=())

    with pytest.raises(
        ModelLoadFailed, match=r"cannot be loaded on dml: dml provider requested.*hostler-onnxgenai\[directml\]"
    ):
        loaded(tiny)


def test_the_librarys_silent_cpu_run_is_an_error(tiny: Path, fake: Callable[..., FakeGenai]) -> None:
    fake(has=(), falls_back=True)

    with pytest.raises(ModelLoadFailed, match=r"device is dml, but onnxruntime-genai loaded .* on cpu"):
        loaded(tiny)


def test_too_little_memory_for_the_caches_is_an_error_with_advice(tiny: Path, fake: Callable[..., FakeGenai]) -> None:
    fake().max_generators = 1

    with pytest.raises(ModelLoadFailed, match=r"could not make 2 KV caches of 256 tokens.*smaller ctx_len"):
        loaded(tiny)


def test_cuda_on_the_package_for_the_cpu_is_an_error(tiny: Path) -> None:
    """For real: the package for the CPU is what the tests have."""
    with pytest.raises(ModelLoadFailed, match=r"cannot be loaded on cuda: .*hostler-onnxgenai\[cuda\]"):
        loaded(tiny, EngineSettings(ctx_len=256, device="cuda"))
