"""What an engine is to be checked with: a small model, settings, and what it cannot do.

Floor 2, for the authors of engine plugins. Named by `EngineSpec.sample`, made in the process of `hostler plugins check` and
in the plugin's own tests, so that both check alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from hostler.engine import Engine, EngineSettings, ModelFiles
from hostler.testing.contract import MIB, EngineContract, contract_checks


class Sample(msgspec.Struct, frozen=True):
    """A model and the arguments of `check_engine_contract` that go with it."""

    files: ModelFiles | None = None
    """The model; None: the plugin brings none, and `hostler plugins check` wants one by --model."""
    settings: EngineSettings = EngineSettings(ctx_len=512, n_parallel=4, n_batch=64)
    without: tuple[str, ...] = ()
    """Checks that ask for what the engine cannot do."""
    allow_near_tie: float = 0.0
    ending_prompt: str | None = None
    max_tokens_per_step: int = 1
    memory_margin_bytes: int = 32 * MIB

    def checks(self, **more: Any) -> tuple[str, ...]:
        """The names of the checks that are to be run, in their order."""
        return contract_checks(without=self.without, **more)

    def contract(self, engine: Callable[[], Engine], **more: Any) -> EngineContract:
        """The frame to run them in.

        Args:
            engine: The engine's class.
            more: Further arguments of EngineContract.

        Raises:
            ValueError: There is no model.
        """
        if self.files is None:
            raise ValueError("the sample has no model")
        return EngineContract(
            engine,
            self.files,
            self.settings,
            allow_near_tie=self.allow_near_tie,
            ending_prompt=self.ending_prompt,
            max_tokens_per_step=self.max_tokens_per_step,
            memory_margin_bytes=self.memory_margin_bytes,
            **more,
        )
