"""Checks of `load`. Floor 2, tests only."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hostler.engine import EngineInfo
from hostler.errors import HostlerError
from hostler.testing.rules.registry import also_for_messages, check

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


@also_for_messages
@check
def load_gives_sane_info(c: EngineContract) -> None:
    """`load` returns an EngineInfo true of the settings, and reports progress within 0 to 1, never going back."""
    info = c.info
    assert isinstance(info, EngineInfo), f"load() gave {info!r}, not an EngineInfo"
    assert info.n_vocab > 0 or c.takes_messages, f"n_vocab is {info.n_vocab}"
    assert info.version, "version is empty; it is part of cache keys and of `hostler show`"
    assert 1 <= info.n_slots <= c.settings.n_parallel, (
        f"n_slots is {info.n_slots}, n_parallel asked for {c.settings.n_parallel}"
    )
    assert info.n_slots == c.settings.n_parallel or info.warnings, (
        f"n_slots is {info.n_slots} instead of {c.settings.n_parallel} without a word in `warnings`"
    )
    assert info.n_ctx >= 2 or c.takes_messages, f"n_ctx is {info.n_ctx}"
    assert info.n_ctx >= c.settings.ctx_len or info.warnings or c.takes_messages, (
        f"n_ctx is {info.n_ctx} instead of {c.settings.ctx_len} without a word in `warnings`; ctx_len is per slot"
    )
    if c.settings.device != "auto":
        assert info.device == c.settings.device, f"device is {info.device!r}, {c.settings.device!r} was demanded"
    assert not info.can_embed or info.n_embd > 0, "can_embed is true, n_embd is 0"
    assert all(0.0 <= fraction <= 1.0 for fraction in c.progress), f"progress left 0 to 1: {c.progress}"
    assert c.progress == sorted(c.progress), f"progress went back: {c.progress}"


@also_for_messages
@check
def load_stops_when_told(c: EngineContract) -> None:
    """`load` calls `progress` at least once and raises when it gives False."""
    calls: list[float] = []

    def refuse(fraction: float) -> bool:
        calls.append(fraction)
        return False

    c.close()
    engine = c.make_engine()
    try:
        engine.load(c.files, c.settings, refuse)
    except Exception:  # noqa: BLE001 - which one is the engine's choice
        assert calls, "load() raised without a call of progress"
        return
    engine.close()
    raise AssertionError("load() went on although progress() gave False" if calls else "load() never called progress()")


@also_for_messages
@check
def load_refuses_what_is_no_model(c: EngineContract) -> None:
    """`load` of a missing file, and of one with other content, raises a HostlerError with a text for the user."""
    c.close()
    name = Path(c.files.primary).name
    with tempfile.TemporaryDirectory(prefix="hostler-contract-") as folder:
        for kind in ("missing", "garbage"):
            path = Path(folder) / kind / name
            path.parent.mkdir()
            if kind == "garbage" and Path(c.files.primary).is_dir():
                path.mkdir()
                (path / "config.json").write_bytes(b"\x7fno model\n" * 100)
            elif kind == "garbage":
                path.write_bytes(b"\x7fno model\n" * 100)
            engine = c.make_engine()
            files = msgspec.structs.replace(c.files, primary=str(path), others=())
            try:
                engine.load(files, c.settings, lambda _: True)
            except HostlerError as error:
                refusal = str(error)
            else:
                engine.close()
                raise AssertionError(f"load() took a {kind} model")
            assert refusal.strip(), f"a {kind} model was refused without a text"
