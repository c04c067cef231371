"""What outlives the streams: prefixes in host memory and on disk, on tiny models of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hostler import UnsupportedParameter
from hostler.testing import RecordingSequence
from hostler_llamacpp.engine import LlamaCppEngine

from .running import Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3
MIB = 1024 * 1024
KINDS = ("llama", "gemma3", "mamba")


@pytest.fixture
def load_once(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """Like `load`, with host memory for prefixes."""

    def load_with_memory(model: str = "llama", **settings: object) -> Loaded:
        return load(model, **{"cache_ram_bytes": 256 * MIB, **settings})

    return load_with_memory


def turn_after(last: RecordingSequence, seed: int) -> list[int]:
    return [*last.tokens, *last.token_ids, *prompt(20, seed)]


def parted(tokens: list[int], n_shared: int, n_own: int, seed: int) -> list[int]:
    """The first tokens, and then others from the very next one on."""
    own = prompt(n_own, seed)
    own[0] = 261 + (tokens[n_shared] - 260) % 39
    return [*tokens[:n_shared], *own]


def pinned_answer(loaded: Loaded, tokens: list[int], n_pinned: int) -> RecordingSequence:
    sequence = loaded.sequence(tokens)
    sequence.n_pinned = n_pinned
    loaded.driver().run([sequence])
    return sequence


def n_earlier(last: RecordingSequence) -> int:
    """Tokens of a chat that were evaluated; the last one generated never was."""
    return len(last.tokens) + len(last.token_ids) - 1


# -- states -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings", "token_bytes", "is_exact"),
    [
        ("llama", {}, 7 * 2 * 256, True),  # 7 layers of keys and values, 2 heads of 32 in float32; values transposed
        ("llama", {"flash_attn": True, "cache_type": "f16"}, 7 * 2 * 128, True),
        ("llama", {"flash_attn": True, "cache_type": "q8_0"}, 7 * 2 * 68, True),
        ("gemma3", {"flash_attn": True, "cache_type": "f16"}, 2 * 128, False),  # one layer of seven sees everything
        ("mamba", {}, 0, False),
    ],
)
def test_layout_of_a_state_is_learnt(
    load: Callable[..., Loaded], model: str, settings: dict[str, object], token_bytes: int, *, is_exact: bool
) -> None:
    layout = load(model, **settings).engine._streams.prefixes.layout

    assert (layout.token_bytes, layout.is_exact_anywhere) == (token_bytes, is_exact)


@pytest.mark.parametrize(
    "settings", [{}, {"flash_attn": True, "cache_type": "f16"}, {"flash_attn": True, "cache_type": "q8_0"}]
)
def test_any_beginning_of_a_saved_prompt_is_restored(load_once: Callable[..., Loaded], settings: dict[str, object]) -> None:
    loaded = load_once("llama", n_parallel=1, **settings)
    tolerance = TOLERANCE if not settings else 0.3
    saved = prompt(300, 1)
    for n_shared in (299, 250, 64, 63, 17):
        loaded.answer(saved)
        loaded.answer(prompt(300, 2))  # takes the only stream
        other = parted([*saved, 261], n_shared, 30, 3 + n_shared)

        answer = loaded.answer(other)

        assert answer.n_cached == n_shared
        assert_same_answer(loaded.answer(other, cache_prompt=False), answer, tolerance)


# -- host memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", KINDS)
def test_chats_of_many_turns_on_few_slots_find_all_earlier_turns(load_once: Callable[..., Loaded], model: str) -> None:
    loaded = load_once(model, n_parallel=2)
    system = prompt(70, 10)
    chats = [loaded.answer([*system, *prompt(15, 11 + i)]) for i in range(6)]
    for turn in range(3):
        for i, last in enumerate(chats):
            now = loaded.answer(turn_after(last, 100 * turn + i))
            assert now.n_cached == n_earlier(last)
            chats[i] = now

    for last in chats:
        assert_same_answer(loaded.answer(last.tokens, cache_prompt=False), last, TOLERANCE)


@pytest.mark.parametrize("model", KINDS)
def test_same_prompt_again_is_found_after_others_took_every_stream(load_once: Callable[..., Loaded], model: str) -> None:
    loaded = load_once(model, n_parallel=1)
    tokens = prompt(150, 20)
    first = loaded.answer(tokens)
    loaded.answer(prompt(150, 21))

    again = loaded.answer(tokens)

    assert again.n_cached == len(tokens) - 1
    assert_same_answer(first, again, TOLERANCE)


def test_shared_beginning_lies_in_host_memory_once(load_once: Callable[..., Loaded]) -> None:
    loaded = load_once("llama", n_parallel=1)
    system = prompt(200, 30)
    prefixes = loaded.engine._streams.prefixes
    for i in range(5):
        loaded.answer([*system, 261 + i, *prompt(29, 31 + i)])

    n_tokens = prefixes.n_bytes / prefixes.layout.token_bytes

    assert loaded.engine.memory().cache_bytes == prefixes.n_bytes
    assert n_tokens == 200 + 4 * (30 + 15)  # the fifth still lies in its stream


@pytest.mark.parametrize("model", KINDS)
def test_budget_is_never_exceeded(load_once: Callable[..., Loaded], model: str) -> None:
    loaded = load_once(model, n_parallel=2, cache_ram_bytes=600_000)
    prefixes = loaded.engine._streams.prefixes
    for i in range(12):
        tokens = prompt(60 + 20 * i, 40 + i % 4)
        answer = loaded.answer(tokens)
        assert prefixes.n_bytes <= 600_000
        assert prefixes.n_bytes == sum(node.kept.n_bytes for node in prefixes.tree.nodes() if node.kept is not None)
        assert_same_answer(loaded.answer(tokens, cache_prompt=False), answer, TOLERANCE)
    assert prefixes.n_bytes > 0


def test_what_does_not_fit_the_budget_is_kept_in_part(load_once: Callable[..., Loaded]) -> None:
    loaded = load_once("llama", n_parallel=1, cache_ram_bytes=100 * 3584)
    tokens = prompt(200, 60)
    loaded.answer(tokens)
    loaded.answer(prompt(20, 61))

    assert loaded.answer(tokens).n_cached == 100


def test_cancelled_prefill_is_found_by_every_slot(load_once: Callable[..., Loaded]) -> None:
    loaded = load_once("llama", n_parallel=1)
    tokens = prompt(300, 70)
    sequence = loaded.sequence(tokens)
    driver = loaded.driver()
    driver.add(sequence)
    driver.step_until(lambda: sequence.n_prefilled >= 128)
    driver.cancel(sequence)
    loaded.answer(prompt(100, 71))

    again = loaded.answer(tokens)

    assert again.n_cached == sequence.n_prefilled
    assert_same_answer(loaded.answer(tokens, cache_prompt=False), again, TOLERANCE)


def test_pinned_prefix_outlives_what_was_used_later(load_once: Callable[..., Loaded]) -> None:
    loaded = load_once("llama", n_parallel=1, cache_ram_bytes=300 * 3584)
    pinned = prompt(120, 80)
    for n_pinned, expected in ((0, 0), (120, 120)):
        pinned_answer(loaded, [*pinned, *prompt(10, 81)], n_pinned)
        for i in range(6):
            loaded.answer(prompt(100, 82 + i))

        assert loaded.answer([*pinned, *prompt(10, 90)]).n_cached == expected
        loaded.answer(prompt(280, 91))


def test_more_pins_than_fit_lose_the_oldest_and_say_so(
    load_once: Callable[..., Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_once("llama", n_parallel=1, cache_ram_bytes=250 * 3584)
    for i in range(4):
        pinned_answer(loaded, [*prompt(100, 92 + i), *prompt(10, 96)], 100)

    assert "pinned prefix of 100 tokens left host memory" in capsys.readouterr().err
    assert loaded.engine._streams.prefixes.n_bytes <= 250 * 3584
    assert (loaded.answer(prompt(100, 92)).n_cached or 0) < 16
    assert loaded.answer(prompt(100, 94)).n_cached == 99


def test_without_caching_nothing_is_saved(load_once: Callable[..., Loaded]) -> None:
    loaded = load_once("llama", n_parallel=1, caching_enabled=False)
    for i in range(3):
        loaded.answer(prompt(100, 100 + i))

    assert loaded.engine._streams.prefixes.n_bytes == 0
    assert loaded.answer(prompt(100, 100)).n_cached == 0


def run_unkept(loaded: Loaded, tokens: list[int]) -> None:
    """A whole answer, a prefill that is cancelled, and a pin, all of which are to leave nothing."""
    loaded.answer(tokens, cache_prompt=False)
    for n_evaluated in (1, len(tokens)):
        sequence = loaded.sequence(tokens, cache_prompt=False)
        sequence.n_pinned = len(tokens) // 2
        driver = loaded.driver()
        driver.add(sequence)
        driver.step_until(lambda n=n_evaluated, sequence=sequence: (sequence.n_prefilled or 0) >= n)  # type: ignore[misc]
        driver.cancel(sequence)


@pytest.mark.parametrize("model", KINDS)
def test_nothing_is_kept_of_a_prompt_that_is_not_to_be_cached(load_once: Callable[..., Loaded], model: str) -> None:
    loaded = load_once(model, n_parallel=2)
    unkept, kept = prompt(300, 102), prompt(300, 103)
    fresh = loaded.answer(kept)
    prefixes = loaded.engine._streams.prefixes

    run_unkept(loaded, unkept)
    assert loaded.answer(kept).n_cached == 299, "what another left was lost for it"
    assert not prefixes.tree.find(np.array(unkept, np.int32))[1]
    loaded.answer(prompt(100, 104))
    loaded.answer(prompt(100, 105))

    later = loaded.answer(unkept)
    assert later.n_cached == 0
    assert_same_answer(loaded.answer(kept), fresh, TOLERANCE)


@pytest.mark.parametrize("model", KINDS)
def test_a_running_prompt_that_is_not_to_be_cached_is_neither_copied_nor_waited_for(
    load_once: Callable[..., Loaded], model: str
) -> None:
    loaded = load_once(model, n_parallel=3)
    tokens = prompt(200, 106)
    unkept = loaded.sequence(tokens, cache_prompt=False)
    driver = loaded.driver()
    driver.add(unkept)
    driver.step_until(lambda: (unkept.n_prefilled or 0) > 0)
    beside = loaded.sequence(tokens)
    driver.add(beside)
    driver.step_until(lambda: len(unkept.token_ids) > 0)
    behind = loaded.sequence([*tokens, 270, 271], cache_prompt=False)
    driver.add(behind)

    driver.run()

    assert (unkept.n_cached, beside.n_cached, behind.n_cached) == (0, 0, 0)
    assert_same_answer(unkept, beside, TOLERANCE)


# -- models that forget -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gemma3", "mamba"])
def test_prompt_that_parts_from_a_known_one_leaves_a_checkpoint_there(load_once: Callable[..., Loaded], model: str) -> None:
    loaded = load_once(model, n_parallel=1, ctx_len=1024)
    system = prompt(400, 110)
    cached = [loaded.answer([*system, *prompt(40, 111 + i)]).n_cached for i in range(4)]

    assert cached[2:] == [400, 400], cached


@pytest.mark.parametrize("model", ["gemma3", "mamba"])
def test_answer_that_comes_back_changed_goes_on_from_the_end_of_the_prompt(
    load_once: Callable[..., Loaded], model: str
) -> None:
    loaded = load_once(model, ctx_len=1024)
    first = loaded.answer(prompt(300, 120))
    changed = parted([*first.tokens, *first.token_ids], 305, 30, 121)

    second = loaded.answer(changed)

    assert (second.n_cached or 0) >= 299
    assert_same_answer(loaded.answer(changed, cache_prompt=False), second, TOLERANCE)


@pytest.mark.parametrize("model", ["gemma3", "mamba"])
def test_equal_beginnings_that_arrive_together_are_evaluated_once_by_models_that_forget(
    load_once: Callable[..., Loaded], model: str
) -> None:
    loaded = load_once(model, n_parallel=3, ctx_len=1024)
    system = prompt(350, 130)
    sequences = [loaded.sequence([*system, *prompt(10, 131 + i)]) for i in range(3)]

    loaded.driver().run(sequences)

    assert sequences[0].n_cached == 0
    assert min(sequence.n_cached or 0 for sequence in sequences[1:]) >= 350 - 32
    for sequence in sequences:
        assert_same_answer(loaded.answer(sequence.tokens, cache_prompt=False), sequence, TOLERANCE)


@pytest.mark.parametrize("model", ["gemma3", "mamba"])
def test_long_prompt_leaves_checkpoints_on_its_way(load_once: Callable[..., Loaded], model: str) -> None:
    loaded = load_once(model, n_parallel=1, ctx_len=2048)
    tokens = prompt(1800, 140)
    loaded.answer(tokens)
    other = parted(tokens, 1500, 30, 141)

    answer = loaded.answer(other)

    assert answer.n_cached == 1024
    assert_same_answer(loaded.answer(other, cache_prompt=False), answer, TOLERANCE)


def test_two_branches_wait_each_for_its_own(load_once: Callable[..., Loaded]) -> None:
    loaded = load_once("llama", n_parallel=4)
    system = prompt(100, 150)
    branches = [[*system, *prompt(150, 151 + i)] for i in range(2)]
    sequences = [loaded.sequence([*branches[i % 2], *prompt(10, 153 + i)]) for i in range(4)]

    loaded.driver().run(sequences)

    n_cached = [sequence.n_cached or 0 for sequence in sequences]
    assert n_cached[0] == 0
    assert n_cached[1] >= 100 - 64
    assert min(n_cached[2:]) >= 250 - 64, n_cached


# -- disk ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def restart(load_once: Callable[..., Loaded], tmp_path: Path) -> Callable[..., Loaded]:
    """Loads a model again and again with one folder for its prefixes; the one before is closed."""
    last: list[Loaded] = []

    def restart(model: str = "llama", **settings: object) -> Loaded:
        if last:
            last.pop().engine.close()
        disk = {"cache_folder": str(tmp_path), "cache_disk_bytes": 256 * MIB, "model_digest": f"digest of {model}"}
        last.append(loaded := load_once(model, **{**disk, **settings}))
        return loaded

    return restart


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("ram_bytes", [0, 256 * MIB])
def test_chats_go_on_after_a_restart(restart: Callable[..., Loaded], model: str, ram_bytes: int) -> None:
    loaded = restart(model, n_parallel=2, cache_ram_bytes=ram_bytes)
    chats = [loaded.answer([*prompt(70, 200), *prompt(230, 201 + i)]) for i in range(4)]
    loaded = restart(model, n_parallel=2, cache_ram_bytes=ram_bytes)

    for i, last in enumerate(chats):
        tokens = turn_after(last, 210 + i)
        now = loaded.answer(tokens)

        assert now.n_cached == n_earlier(last)
        assert_same_answer(loaded.answer(tokens, cache_prompt=False), now, TOLERANCE)


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_answer_from_what_was_kept_is_to_the_bit_that_of_the_stream_which_kept_it(
    load: Callable[..., Loaded], restart: Callable[..., Loaded], cache_type: str, place: str
) -> None:
    """As users have it, where random weights stand at near ties all the time and sums are of 16 bits."""
    settings = {"n_parallel": 1, "flash_attn": True, "cache_type": cache_type}
    stream, kept = load("llama", **settings, cache_ram_bytes=0), restart(**settings)
    prompts = [prompt(150, 226 + index) for index in range(3)]
    for tokens in prompts:
        kept.answer(tokens)
    if place == "disk":
        kept = restart(**settings, cache_ram_bytes=0)

    for tokens in prompts[:2]:
        turn = [*tokens, *prompt(12, 229)]
        restored = kept.answer(turn)
        stream.answer(tokens)
        never_left = stream.answer(turn)

        assert restored.n_cached == never_left.n_cached == len(tokens)
        assert restored.token_ids == never_left.token_ids
        assert [one.logprob for one in restored.logprobs if one] == [one.logprob for one in never_left.logprobs if one]


def test_prefixes_of_another_model_or_setting_are_not_found(restart: Callable[..., Loaded]) -> None:
    tokens = prompt(300, 220)
    restart().answer(tokens)

    changes = ({"model_digest": "another"}, {"cache_type": "f16"}, {"flash_attn": True}, {"extra": {"rope_freq_base": 9e3}})
    for change in changes:
        assert restart(**change).answer(tokens).n_cached == 0
    assert restart(n_parallel=2, ctx_len=1024, cpu_threads=2).answer(tokens).n_cached == 299


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("ram_bytes", [0, 256 * MIB])
def test_nothing_of_a_prompt_that_is_not_to_be_cached_is_found_after_a_restart(
    restart: Callable[..., Loaded], tmp_path: Path, model: str, ram_bytes: int
) -> None:
    loaded = restart(model, cache_ram_bytes=ram_bytes)
    tokens = prompt(400, 224)
    run_unkept(loaded, tokens)
    running = loaded.sequence(tokens, cache_prompt=False)
    driver = loaded.driver()
    driver.add(running)
    driver.step_until(lambda: len(running.token_ids) > 2)

    loaded = restart(model, cache_ram_bytes=ram_bytes)  # while it runs

    assert not list(tmp_path.rglob("*.prefix"))
    assert loaded.answer(tokens).n_cached == 0


def test_worker_that_dies_has_written_what_was_worth_it(restart: Callable[..., Loaded]) -> None:
    loaded = restart()
    tokens = prompt(300, 230)
    loaded.answer(tokens)
    loaded.engine._streams.prefixes._files.close(10)  # what the thread would have done by then; nothing else is closed
    loaded.engine._streams.prefixes._files = None

    assert restart().answer(tokens).n_cached == 299


def test_damaged_file_is_evaluated_again_and_never_used(restart: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = restart()
    tokens = prompt(300, 240)
    fresh = loaded.answer(tokens)
    loaded.engine.close()
    for path in tmp_path.rglob("*.prefix"):
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)

    again = restart()
    answer = again.answer(tokens)

    assert answer.n_cached == 0
    assert_same_answer(fresh, answer, TOLERANCE)
    again.answer(prompt(300, 241))
    again.answer(prompt(300, 242))
    again.answer(prompt(300, 243))
    assert again.answer(tokens).n_cached == 299, "host memory works as before"


def test_fork_is_written_once(restart: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = restart(n_parallel=2)
    system = prompt(300, 250)
    for i in range(6):
        loaded.answer([*system, *prompt(60, 251 + i)])
    token_bytes = loaded.engine._streams.prefixes.layout.token_bytes
    restart()

    # A file's payload begins at a multiple of 64 KiB.
    n_tokens = sum(path.stat().st_size - 65_536 for path in tmp_path.rglob("*.prefix")) / token_bytes

    # The first file holds all of the first prompt; the shared part is written once more, as one that others go on from.
    assert n_tokens < 2 * 300 + 6 * 76 + 10


def test_load_that_fails_at_its_end_lets_go_of_the_folder(
    restart: Callable[..., Loaded], models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = prompt(300, 260)
    restart().answer(tokens)

    with pytest.raises(UnsupportedParameter, match="cannot guess"):
        restart(speculation="auto", draft_path=str(models / "mamba.gguf"))

    assert restart().answer(tokens).n_cached == 299
    assert "another worker" not in capsys.readouterr().err


def test_engine_without_a_folder_keeps_nothing_on_disk(load_once: Callable[..., Loaded]) -> None:
    loaded = load_once("llama", cache_disk_bytes=MIB, model_digest="x")

    assert not loaded.engine._streams.prefixes.has_files
    assert isinstance(loaded.engine, LlamaCppEngine)
