"""Embeddings: right by a reference for each kind of model and pooling, in pieces, beside answers, given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from hostler import (
    ContextLengthExceeded,
    EngineFailed,
    EngineSettings,
    InsufficientMemory,
    InvalidRequest,
    ModelFiles,
    ModelLoadFailed,
    SamplingParams,
    UnsupportedParameter,
)
from hostler_llamacpp import embedding
from hostler_llamacpp.embedding import Pool
from hostler_llamacpp.engine import PIECE_SHARE, LlamaCppEngine
from hostler_llamacpp.estimate import LOGIT_BYTES, MAX_ROWS, MIN_ROWS, chunk_rows, whole_rows

from . import tiny_models
from .running import GREEDY, Loaded, assert_same_answer, prompt

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
U32, BOOL = 4, 7
EXACT = 0.99999
"""Cosine of two computations of one vector: float32, but not the same batches."""


def embed(loaded: Loaded, *inputs: Sequence[int]) -> list[np.ndarray]:
    return [np.array(vector) for piece in loaded.engine.embed(inputs) for vector in piece]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def reference(path: Path, inputs: Sequence[Sequence[int]], pooling: int) -> list[np.ndarray]:
    """What llama-cpp-python's own high-level embedding gives, each input whole in one batch."""
    model = llama_cpp.Llama(
        str(path), embedding=True, pooling_type=pooling, n_ctx=2048, n_batch=2048, n_ubatch=2048, type_k=0, type_v=0,
        n_threads=1, n_threads_batch=1, verbose=False,
    )  # fmt: skip
    vectors = []
    for tokens in inputs:
        model._batch.reset()
        model._ctx.kv_cache_clear()
        model._batch.add_sequence(list(tokens), 0, True)
        model._ctx.decode(model._batch)
        pointer = llama_cpp.llama_get_embeddings_seq(model._ctx.ctx, 0)
        vectors.append(np.array(pointer[: model.n_embd()]))
    model.close()
    return vectors


INPUTS = [prompt(n_tokens, seed) for seed, n_tokens in enumerate((1, 9, 64, 17, 17, 500, 3))]


# -- right ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", [None, MEAN, CLS, LAST])
@pytest.mark.parametrize("model", ["llama", "gemma3", "mamba"])
def test_vectors_are_those_of_the_whole_input_pooled_as_the_model_says(
    load: Callable[..., Loaded], tmp_path: Path, model: str, pooling: int | None
) -> None:
    """Long inputs go in chunks of 128 and shorter ones together; mean where the model says nothing."""
    path = write(model, tmp_path / "model.gguf", pooling)

    vectors = embed(load(path), *INPUTS)

    expected = reference(path, INPUTS, pooling or MEAN)
    assert [cosine(one, other) > EXACT for one, other in zip(vectors, expected, strict=True)] == [True] * len(INPUTS)


def write(model: str, path: Path, pooling: int | None) -> Path:
    said = {} if pooling is None else {f"{model}.pooling_type": (U32, pooling)}
    match model:
        case "llama":
            return tiny_models.write_llama(path, **said)
        case "gemma3":
            return tiny_models.write_gemma3(path, window=64, **said)
        case _:
            return tiny_models.write_mamba(path, **said)


def bert(tokens: Sequence[int]) -> np.ndarray:
    """The tiny bert in numpy: the vectors of all tokens."""
    weights = tiny_models.bert_tensors()
    n_tokens, head = len(tokens), tiny_models.WIDTH // tiny_models.N_HEADS

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["token_embd.weight"][list(tokens)] + weights["token_types.weight"][0]
    x = norm(x + weights["position_embd.weight"][:n_tokens], "token_embd_norm")
    for layer in range(tiny_models.BERT_LAYERS):
        block = f"blk.{layer}"
        query, key, value = (
            linear(x, f"{block}.attn_{part}").reshape(n_tokens, tiny_models.N_HEADS, head).transpose(1, 0, 2)
            for part in "qkv"
        )
        scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(head))
        seen = scores / scores.sum(-1, keepdims=True) @ value
        seen = linear(seen.transpose(1, 0, 2).reshape(n_tokens, -1), f"{block}.attn_output")
        x = norm(seen + x, f"{block}.attn_output_norm")
        inner = linear(x, f"{block}.ffn_up")
        inner *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = norm(linear(inner, f"{block}.ffn_down") + x, f"{block}.layer_output_norm")
    return x


@pytest.mark.parametrize("pooling", [None, MEAN, CLS])
def test_vectors_of_a_model_that_only_embeds_are_those_of_the_mathematics(
    load: Callable[..., Loaded], tmp_path: Path, pooling: int | None
) -> None:
    loaded = load(tiny_models.write_bert(tmp_path / "bert.gguf", pooling=pooling))
    inputs = [loaded.tokens("ba ce do"), loaded.tokens("ba " * 60), [2, 9, 3], [5 + k % 90 for k in range(128)]]

    vectors = embed(loaded, *inputs)

    assert inputs[0][0] == 2  # [CLS], from the tokenizer
    for tokens, vector in zip(inputs, vectors, strict=True):
        rows = bert(tokens)
        assert cosine(vector, rows[0] if pooling == CLS else rows.mean(0)) > EXACT


@pytest.mark.parametrize("model", ["llama", "gemma3", "mamba", "bert"])
def test_many_inputs_give_what_each_gives_alone(load: Callable[..., Loaded], model: str) -> None:
    loaded = load(model)
    inputs = [[5 + (3 * one + k) % 80 for k in range(1 + one * 7 % 40)] for one in range(60)]

    together = embed(loaded, *inputs)

    for tokens, vector in zip(inputs, together, strict=True):
        assert cosine(embed(loaded, tokens)[0], vector) > EXACT


def test_a_pool_of_chunks_is_a_pool_of_the_whole() -> None:
    rows = np.random.default_rng(1).normal(0, 1, (10, 4)).astype(np.float32)
    for pooling, expected in ((MEAN, rows.mean(0)), (CLS, rows[0]), (LAST, rows[-1])):
        pool = Pool(pooling)
        for start, end in ((0, 1), (1, 7), (7, 10)):
            pool.add(rows[start:end])

        assert pool.vector() == pytest.approx(expected.tolist(), rel=1e-5)


def test_quantized_caches_are_for_answers_and_leave_vectors_alone(load: Callable[..., Loaded]) -> None:
    exact = embed(load("llama", cache_type="f16", flash_attn=True), INPUTS[2])[0]

    assert cosine(embed(load("llama", cache_type="q4_0", flash_attn=True), INPUTS[2])[0], exact) > EXACT


# -- in pieces ------------------------------------------------------------------------------------------------------------


def test_a_long_input_takes_several_pieces_and_answers_go_on_between_them(load: Callable[..., Loaded]) -> None:
    loaded = load("llama")
    alone = loaded.answer(prompt(10, 50))
    talking = loaded.sequence(prompt(10, 50))
    driver = loaded.driver()
    driver.add(talking)
    driver.step_until(lambda: len(talking.token_ids) >= 2)

    n_vectors = []
    for vectors in loaded.engine.embed([prompt(500, 51), prompt(5, 52)]):
        n_vectors.append(len(vectors))
        if driver.active:
            driver.step()
    driver.run()

    assert sum(n_vectors) == 2
    assert n_vectors.index(1) >= 3, "500 tokens are at least four chunks of 128"
    assert_same_answer(alone, talking, 1e-3)


def test_pieces_beside_an_answer_take_no_longer_than_a_prompts_chunks_would(
    load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("llama")
    driver = loaded.driver()
    talking, waiting = loaded.sequence(prompt(10, 60)), loaded.sequence(prompt(400, 61))
    monkeypatch.setattr(loaded.engine._pace, "prompt_s", lambda n_decoding: 0.01 if n_decoding else 1.0)

    assert loaded.engine._embedding_s() == PIECE_SHARE
    driver.add(talking)
    driver.step_until(lambda: len(talking.token_ids) >= 1)
    assert loaded.engine._embedding_s() == 0.01 * PIECE_SHARE
    driver.add(waiting)
    assert loaded.engine._embedding_s() == 0.005 * PIECE_SHARE
    driver.cancel_all()


def test_jobs_in_turns_do_not_mix(load: Callable[..., Loaded]) -> None:
    """As the worker does it: another job has its turn after each piece that gave vectors."""
    loaded = load("llama")
    jobs = [[prompt(300, 70), prompt(9, 71)], [prompt(9, 72)] * 40, [prompt(500, 73)]]
    expected = [embed(loaded, *inputs) for inputs in jobs]
    iterators = [loaded.engine.embed(inputs) for inputs in jobs]
    vectors: list[list[list[float]]] = [[] for _ in jobs]
    turn = 0

    while any(len(got) < len(inputs) for got, inputs in zip(vectors, jobs, strict=True)):
        piece = next(iterators[turn], [])
        vectors[turn] += piece
        if piece or len(vectors[turn]) == len(jobs[turn]):
            turn = (turn + 1) % len(jobs)
    for iterator in iterators:
        iterator.close()

    for got, wanted in zip(vectors, expected, strict=True):
        assert all(cosine(np.array(one), other) > EXACT for one, other in zip(got, wanted, strict=True))


def test_what_is_closed_in_the_middle_leaves_nothing_behind(load: Callable[..., Loaded]) -> None:
    for model in ("llama", "mamba"):
        loaded = load(model)
        expected = embed(loaded, prompt(40, 80))[0]
        other = loaded.engine.embed([prompt(9, 81), prompt(9, 82)])
        next(other)
        iterator = loaded.engine.embed([prompt(400, 83)])
        next(iterator)
        iterator.close()

        assert cosine(embed(loaded, prompt(40, 80))[0], expected) > EXACT
        other.close()


@pytest.mark.parametrize("n_tokens", [5, 1000])
def test_an_engine_that_is_asked_out_of_turn_says_so(load: Callable[..., Loaded], n_tokens: int) -> None:
    loaded = load("llama", ctx_len=1024)
    early = loaded.engine.embed([prompt(400, 90)])
    next(early)
    other = loaded.engine.embed([prompt(n_tokens, 91)])
    next(other)

    with pytest.raises(EngineFailed, match="in the middle"):
        next(early)
    other.close()


# -- memory ---------------------------------------------------------------------------------------------------------------


def test_memory_is_taken_for_a_job_and_given_back_with_the_last_one(load: Callable[..., Loaded]) -> None:
    loaded = load("llama")
    before = loaded.engine.memory()
    one, other = loaded.engine.embed([prompt(9, 1)] * 20), loaded.engine.embed([prompt(9, 1)] * 20)
    next(one)
    next(other)

    during = loaded.engine.memory()
    one.close()
    still = loaded.engine.memory()
    other.close()

    assert during.kv_bytes > before.kv_bytes
    assert during.compute_bytes > before.compute_bytes
    assert still == during
    assert loaded.engine.memory() == before


def test_a_long_input_that_finds_no_memory_is_refused_with_both_numbers(
    load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("llama", ctx_len=1024)
    monkeypatch.setattr(embedding, "available_bytes", lambda: 2**20)

    with pytest.raises(InsufficientMemory, match=r"1000 tokens needs .* MiB .* 1 MiB are available") as caught:
        embed(loaded, prompt(1000, 1))

    assert caught.value.needed_bytes > caught.value.available_bytes == 2**20
    assert len(embed(loaded, prompt(500, 1))) == 1, "what the estimate covers is not asked for again"


def test_rows_are_as_many_as_logits_and_scores_allow() -> None:
    assert chunk_rows(49_152, 9 * 512) == MAX_ROWS
    assert chunk_rows(262_144, 4 * 512) == MIN_ROWS
    assert chunk_rows(32_000, 32 * 32_768) == MIN_ROWS
    assert 8 * 151_936 * chunk_rows(151_936, 16 * 512) <= LOGIT_BYTES
    assert whole_rows(30_522) == 512
    assert 4 * 250_002 * whole_rows(250_002) <= LOGIT_BYTES


# -- refused --------------------------------------------------------------------------------------------------------------


def test_inputs_that_cannot_be_embedded_are_refused_before_anything_is_evaluated(llama: Loaded) -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        llama.engine.embed([[5], []])
    with pytest.raises(InvalidRequest, match="vocabulary"):
        llama.engine.embed([[5], [10**9]])
    with pytest.raises(ContextLengthExceeded, match=r"513 tokens.*512"):
        llama.engine.embed([[5], [5] * 513])


def test_an_input_may_fill_the_context(llama: Loaded) -> None:
    assert len(embed(llama, [5] * 512)) == 1


def test_a_model_set_not_to_embed_refuses(load: Callable[..., Loaded]) -> None:
    loaded = load("llama", embedding=False)

    assert (loaded.info.can_embed, loaded.info.n_embd) == (False, 0)
    with pytest.raises(UnsupportedParameter):
        loaded.engine.embed([[5]])


def test_a_reranker_that_can_write_gives_no_embeddings(load: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = load(write("llama", tmp_path / "model.gguf", RANK))

    assert not loaded.info.can_embed
    assert loaded.answer(prompt(5, 1)).token_ids
    with pytest.raises(UnsupportedParameter, match="reranker"):
        loaded.engine.embed([[5]])


# -- models that only embed -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(load: Callable[..., Loaded]) -> Iterator[Loaded]:
    return load("bert", ctx_len=4096, n_parallel=4)


def test_a_model_that_only_embeds_says_so_and_ends_where_its_positions_do(encoder: Loaded) -> None:
    info = encoder.info

    assert (info.can_generate, info.can_embed, info.n_embd) == (False, True, tiny_models.WIDTH)
    assert info.n_ctx == tiny_models.BERT_CTX
    assert "4096" in info.warnings[0]
    assert encoder.engine.memory().kv_bytes == 0


def test_a_stretched_rope_does_not_stretch_learnt_positions(load: Callable[..., Loaded]) -> None:
    loaded = load("bert", ctx_len=4096, extra={"rope_freq_base": 1e6})

    assert loaded.info.n_ctx == tiny_models.BERT_CTX


def test_a_model_that_only_embeds_takes_no_sequence(encoder: Loaded) -> None:
    with pytest.raises(EngineFailed, match="only embeds"):
        encoder.engine.add(encoder.sequence([5, 6], SamplingParams(seed=1)))
    assert encoder.engine.step() is False


def test_a_causal_architecture_that_declares_itself_not_causal_only_embeds(
    load: Callable[..., Loaded], tmp_path: Path
) -> None:
    path = tiny_models.write_llama(tmp_path / "model.gguf", **{"llama.attention.causal": (BOOL, False)})
    loaded = load(path)
    one, other = prompt(200, 1), [*prompt(200, 1)[:-1], 5]

    first, changed = embed(loaded, one, other)

    assert not loaded.info.can_generate
    assert cosine(first, reference(path, [one], MEAN)[0]) > EXACT
    assert cosine(first, changed) < EXACT


def test_an_encoder_without_a_decoder_embeds_and_sees_both_ways(load: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = load(tiny_models.write_t5encoder(tmp_path / "t5.gguf"))
    one, other = prompt(200, 1), [*prompt(200, 1)[:-1], 5]

    together = embed(loaded, one, prompt(9, 2), other)

    assert not loaded.info.can_generate
    assert cosine(embed(loaded, one)[0], together[0]) > EXACT
    assert cosine(embed(loaded, prompt(9, 2))[0], together[1]) > EXACT
    assert cosine(together[0], together[2]) < EXACT


@pytest.mark.parametrize(
    ("pooling", "settings", "text"),
    [(RANK, {}, "reranker"), (MEAN, {"embedding": False}, "setting embedding is false")],
)
def test_a_model_that_could_do_nothing_here_is_refused(
    tmp_path: Path, pooling: int, settings: dict[str, bool], text: str
) -> None:
    path = tiny_models.write_bert(tmp_path / "bert.gguf", pooling=pooling)

    with pytest.raises(ModelLoadFailed, match=text):
        LlamaCppEngine().load(ModelFiles(str(path), "gguf"), EngineSettings(ctx_len=512, **settings), lambda _: True)


# -- the real model ---------------------------------------------------------------------------------------------------------

SENTENCES = [
    "The cat sat on the mat.",
    "A kitten is lying on a rug.",
    "The company's quarterly revenue grew by nine percent.",
    "Profits at the firm rose this quarter.",
]


@pytest.fixture(scope="module")
def smollm2(load: Callable[..., Loaded], smollm2_path: Path) -> Loaded:
    return load(smollm2_path, ctx_len=1024, cache_type="f16", flash_attn=True, cpu_threads=0)


@pytest.mark.weights
def test_real_vectors_are_those_of_llama_cpp_pythons_own_path(smollm2: Loaded, smollm2_path: Path) -> None:
    texts = [*SENTENCES, "The engine stood in the roundhouse. " * 100]
    model = llama_cpp.Llama(
        str(smollm2_path), embedding=True, pooling_type=MEAN, n_ctx=1024, n_batch=1024, n_ubatch=1024, verbose=False
    )

    expected = model.embed(texts)
    model.close()

    vectors = embed(smollm2, *(smollm2.tokens(text) for text in texts))
    assert [cosine(one, np.array(other)) > 0.9999 for one, other in zip(vectors, expected, strict=True)] == [True] * 5


@pytest.mark.weights
def test_sentences_that_mean_alike_lie_closer_than_others(smollm2: Loaded) -> None:
    cat, kitten, revenue, profits = embed(smollm2, *(smollm2.tokens(text) for text in SENTENCES))

    assert cosine(cat, kitten) > max(cosine(cat, revenue), cosine(cat, profits))
    assert cosine(revenue, profits) > max(cosine(revenue, cat), cosine(revenue, kitten))


@pytest.mark.weights
def test_real_vectors_of_many_inputs_are_those_of_each_alone(smollm2: Loaded) -> None:
    inputs = [smollm2.tokens(f"Sentence number {number} is about {word}.") for number, word in enumerate(["trains"] * 20)]

    together = embed(smollm2, *inputs)

    assert all(cosine(embed(smollm2, one)[0], vector) > 0.9999 for one, vector in zip(inputs, together, strict=True))


@pytest.mark.weights
def test_answers_are_the_same_after_embeddings(smollm2: Loaded) -> None:
    before = smollm2.answer(smollm2.tokens("The capital of France is"), GREEDY, cache_prompt=False)

    embed(smollm2, *(smollm2.tokens(text) for text in SENTENCES))

    assert smollm2.answer(smollm2.tokens("The capital of France is"), GREEDY, cache_prompt=False).text == before.text
