"""Our attention: right for every shape and mask, and the same to the last bit however it is cut."""

from __future__ import annotations

import numpy as np
import pytest

from hostler_llamacpp import _kernels

KERNELS = _kernels.attention_kernels()
pytestmark = pytest.mark.skipif(not KERNELS, reason="attention is written for AVX2 and AVX-512")

SHAPES = [
    # heads, heads with keys, width, tokens, positions, streams
    (9, 3, 64, 1, 16, 1),
    (9, 3, 64, 1, 1072, 1),
    (9, 3, 64, 5, 256, 3),
    (9, 3, 64, 70, 208, 1),
    (4, 4, 80, 30, 96, 2),
    (8, 1, 128, 7, 320, 1),
    (2, 2, 256, 3, 64, 2),
    (64, 1, 32, 3, 64, 1),
    (6, 3, 16, 100, 512, 2),
]
CASES = [("f16", shape) for shape in SHAPES] + [("q8_0", shape) for shape in SHAPES if shape[2] % 32 == 0]


def q8_0_blocks(values: np.ndarray) -> np.ndarray:
    """As ggml stores them: by thirty-two a factor and as many bytes."""
    rows = values.astype(np.float32).reshape(-1, 32)
    factors = (np.abs(rows).max(axis=1) / 127).astype(np.float16)
    blocks = np.empty(len(rows), [("factor", np.float16), ("values", np.int8, 32)])
    blocks["factor"] = factors
    blocks["values"] = np.rint(rows / np.where(factors == 0, 1, factors).astype(np.float32)[:, None])
    return blocks


class Case:
    """Random queries, keys and values of a shape, and a mask as a causal model has it: the last token sees everything but the
    padding, and every stream's first token sees one position."""

    instruction_set = ""
    """Of the fixture."""

    def __init__(self, shape: tuple[int, ...], kind: str = "f16") -> None:
        self.kind = kind
        self.n_heads, self.n_kv_heads, width, self.n_tokens, n_positions, self.n_streams = shape
        random = np.random.default_rng(0)
        self.q = random.normal(size=(self.n_streams, self.n_tokens, self.n_heads, width)).astype(np.float32)
        self.k = random.normal(size=(self.n_streams, n_positions, self.n_kv_heads, width)).astype(np.float16)
        self.v = random.normal(size=self.k.shape).astype(np.float16)
        self.scale = 2 / width**0.5
        seen = np.linspace(1, max(1, n_positions - 3), self.n_tokens + 1)[1 if self.n_tokens == 1 else 0 :].astype(int)
        self.mask = np.full((self.n_streams, self.n_tokens, n_positions), -np.inf, np.float16)
        for token, n in zip(range(self.n_tokens), seen, strict=False):
            self.mask[:, token, :n] = 0

    def attend(self, *, n_threads: int = 2, has_mask: bool = True) -> np.ndarray:
        found = _kernels.attend(
            self.kind, self.instruction_set, self.q.tobytes(), self.stored(self.k), self.stored(self.v),
            self.mask.tobytes() if has_mask else b"",
            (self.n_heads, self.n_kv_heads, self.n_tokens, self.n_streams), self.scale, n_threads,
        )  # fmt: skip
        return np.frombuffer(found, np.float32).reshape(self.q.shape)

    def stored(self, values: np.ndarray) -> bytes:
        return (q8_0_blocks(values) if self.kind == "q8_0" else values).tobytes()

    def read(self, values: np.ndarray) -> np.ndarray:
        """What is left of them in storage, in float64."""
        if self.kind == "f16":
            return values.astype(np.float64)
        blocks = q8_0_blocks(values)
        return (blocks["factor"].astype(np.float64)[:, None] * blocks["values"]).reshape(values.shape)

    def expected(self, *, has_mask: bool = True) -> np.ndarray:
        """In float64."""
        n_shared = self.n_heads // self.n_kv_heads
        k, v = (np.repeat(self.read(one), n_shared, axis=2) for one in (self.k, self.v))
        scores = np.einsum("sthw,sphw->shtp", self.q.astype(np.float64), k) * np.float64(np.float32(self.scale))
        if has_mask:
            scores += self.mask[:, None].astype(np.float64)
        most = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isfinite(most), most, 0))
        total = weights.sum(axis=-1, keepdims=True)
        shares = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        result: np.ndarray = np.einsum("shtp,sphw->sthw", shares, v)
        return result


@pytest.fixture(params=KERNELS, autouse=True)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each that this processor has."""
    monkeypatch.setattr(Case, "instruction_set", request.param)
    return str(request.param)


@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
@pytest.mark.parametrize("has_mask", [True, False])
def test_it_is_attention(kind: str, shape: tuple[int, ...], *, has_mask: bool) -> None:
    case = Case(shape, kind)

    assert np.abs(case.attend(has_mask=has_mask) - case.expected(has_mask=has_mask)).max() < 1e-5


@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_no_bit_depends_on_the_number_of_threads(kind: str, shape: tuple[int, ...]) -> None:
    case = Case(shape, kind)

    found = [case.attend(n_threads=n_threads) for n_threads in (1, 2, 3, 64)]

    assert all(np.array_equal(found[0], one) for one in found[1:])


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_no_bit_depends_on_what_is_evaluated_beside_it(kind: str) -> None:
    case = Case((9, 3, 64, 70, 208, 2), kind)
    together = case.attend()
    for token in (0, 1, 33, 69):
        alone = Case((9, 3, 64, 1, 208, 1), kind)
        alone.q, alone.k, alone.v = case.q[1:, token : token + 1], case.k[1:], case.v[1:]
        alone.mask = case.mask[1:, token : token + 1]

        assert np.array_equal(alone.attend()[0, 0], together[1, token]), token


def test_a_window_is_seen_and_nothing_else() -> None:
    case = Case((4, 2, 64, 3, 512, 1))
    case.mask[:] = -np.inf
    case.mask[0, 0, 200:230] = 0
    case.mask[0, 1, [0, 511]] = 0
    case.mask[0, 2, 64:128] = -2.5

    assert np.abs(case.attend() - case.expected()).max() < 1e-5


def test_a_key_that_is_not_seen_may_be_no_number() -> None:
    case = Case((4, 2, 64, 1, 128, 1))
    case.k[0, 126:] = np.nan  # the token sees 125
    expected = Case((4, 2, 64, 1, 128, 1)).expected()

    assert np.abs(case.attend() - expected).max() < 1e-5


def test_many_tokens_behind_many_positions_are_not_split() -> None:
    """What would have to be merged would take more memory than there is for it: the result is the same to the last bit."""
    case = Case((3, 3, 256, 48, 6400, 1))

    assert np.array_equal(case.attend(n_threads=64), case.attend(n_threads=1))


def test_a_token_that_sees_nothing_gets_zeros() -> None:
    case = Case((4, 2, 64, 2, 128, 1))
    case.mask[0, 0] = -np.inf

    found = case.attend()

    assert (found[0, 0] == 0).all()
    assert np.abs(found - case.expected()).max() < 1e-5


@pytest.mark.parametrize("largest", [1e-3, 30.0, 60000.0])
def test_large_and_small_scores_are_weighed(largest: float) -> None:
    case = Case((3, 3, 64, 4, 192, 1))
    case.q[:] = 0
    case.q[..., 0] = 1
    case.k[..., 0] = np.linspace(-largest, largest, 192, dtype=np.float16)[None, :, None]

    assert np.abs(case.attend() - case.expected()).max() < 1e-5


@pytest.mark.parametrize(
    "shape",
    [(9, 2, 64, 1, 64, 1), (8, 8, 40, 1, 64, 1), (8, 8, 512, 1, 64, 1), (8, 8, 64, 1, 40, 1), (65, 1, 64, 1, 64, 1),
     (8, 8, 64, 0, 64, 1)],
)
def test_shapes_without_a_kernel_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no kernel for this shape"):
        Case(shape).attend()


@pytest.mark.parametrize("width", [16, 48, 80])
def test_q8_0_is_attended_in_whole_blocks(width: int, instruction_set: str) -> None:
    keys = bytes(2 * 16 * width)

    with pytest.raises(ValueError, match="no kernel for this shape"):
        _kernels.attend("q8_0", instruction_set, bytes(width * 4), keys, keys, b"", (1, 1, 1, 1), 1.0, 1)
