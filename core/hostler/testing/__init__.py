"""For the authors of engine plugins: run the engine contract's checks, and fakes to test against.

Floor 2; for test processes only. `check_engine_contract` runs every check; `contract_checks` and `EngineContract` run
them one by one under pytest:

    @pytest.fixture(scope="module")
    def contract():
        with EngineContract(MyEngine, files, settings) as contract:
            yield contract

    @pytest.mark.parametrize("name", contract_checks())
    def test_engine_keeps_the_contract(contract, name):
        contract.check(name)
"""

from hostler.testing.contract import EngineContract, check_engine_contract, contract_checks
from hostler.testing.driving import ContractError, Driver, drive
from hostler.testing.recording import RecordingSequence
from hostler.testing.sample import Sample
from hostler.testing.scripted import EOS, ScriptedEngine, at_step, die, hang, raise_error

__all__ = [
    "EOS",
    "ContractError",
    "Driver",
    "EngineContract",
    "RecordingSequence",
    "Sample",
    "ScriptedEngine",
    "at_step",
    "check_engine_contract",
    "contract_checks",
    "die",
    "drive",
    "hang",
    "raise_error",
]
