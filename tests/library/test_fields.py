"""Settings and parameters of a model: types, ranges, other spellings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.domain import SamplingParams
from hostler.errors import InvalidRequest
from hostler.library import fields


def test_settings_are_accepted_as_strings_and_come_out_native():
    given = {"ctx_len": "2048", "ngl": "100", "embedding": "true", "n_parallel": "4", "mlock": "False"}

    assert fields.validate_settings(given) == {
        "ctx_len": 2048,
        "ngl": 100,
        "embedding": True,
        "n_parallel": 4,
        "mlock": False,
    }


def test_unknown_keys_and_nulls_are_left_out():
    assert fields.validate_settings({"nonsense": 1, "ctx_len": None}) == {}


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        ({"ctx_len": 127}, "settings.ctx_len", "from 128 to 2147483647"),
        ({"ctx_len": "many"}, "settings.ctx_len", "'many'"),
        ({"ctx_len": True}, "settings.ctx_len", "whole number"),
        ({"ctx_len": [1]}, "settings.ctx_len", "whole number"),
        ({"n_parallel": 257}, "settings.n_parallel", "from 1 to 256"),
        ({"n_parallel": 1.5}, "settings.n_parallel", "1.5"),
        ({"ngl": float("inf")}, "settings.ngl", "inf"),
        ({"embedding": "perhaps"}, "settings.embedding", "true or false"),
        ({"cache_type": "q5_9"}, "settings.cache_type", "f16, q8_0, q4_0"),
        ({"model_path": 5}, "settings.model_path", "a string"),
        ({"prompt_template": "no marker"}, "settings.prompt_template", "{prompt}"),
        ({"extra": "x"}, "settings.extra", "an object"),
    ],
)
def test_a_bad_setting_is_refused_with_its_path_and_what_is_allowed(values, param, words):
    with pytest.raises(InvalidRequest) as raised:
        fields.validate_settings(values)

    assert raised.value.param == param
    assert words in raised.value.message


@pytest.mark.parametrize("value", [0, "0", "auto", 128, 128.0, "1000000"])
def test_ctx_len_may_be_auto_or_the_files(value):
    assert "ctx_len" in fields.validate_settings({"ctx_len": value})


def test_other_spellings_mean_the_same_setting():
    assert fields.validate_settings({"model_path": "x.gguf", "n_gpu_layers": 3}) == {"llama_model_path": "x.gguf", "ngl": 3}


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        ({"token_limit": 1, "max_tokens": 2, "max_completion_tokens": 3}, 3),
        ({"token_limit": 1, "max_tokens": 2}, 2),
        ({"token_limit": 1}, 1),
    ],
)
def test_the_newest_spelling_of_the_token_limit_wins(sent, limit):
    assert fields.validate_parameters(sent) == {"token_limit": limit}


def test_a_losing_spelling_is_checked_all_the_same():
    with pytest.raises(InvalidRequest) as raised:
        fields.validate_parameters({"max_completion_tokens": 3, "token_limit": 0})

    assert raised.value.param == "parameters.token_limit"


@pytest.mark.parametrize(("sent", "meant"), [(False, 0), (True, 1), ("false", 0), ("true", 1), (2, 2), ("2", 2)])
def test_mirostat_is_a_boolean_for_cortex_and_a_number_for_llama_cpp(sent, meant):
    assert fields.validate_parameters({"mirostat": sent}) == {"mirostat": meant}


@pytest.mark.parametrize("value", [2**31, 10**30, str(2**31)])
def test_a_setting_that_no_engine_can_count_is_refused(value):
    with pytest.raises(InvalidRequest, match="from 0 to 2147483647"):
        fields.validate_settings({"ngl": value})


def test_what_a_worker_is_sent_holds_no_whole_number_beyond_64_bits():
    deep = {"extra": {"a": [2**64, -(2**63) - 1, {"b": 2**64 - 1}], "c": True}}

    extra = fields.validate_settings(deep)["extra"]

    assert extra == {"a": [2.0**64, -(2.0**63) - 1, {"b": 2**64 - 1}], "c": True}
    assert [type(one) for one in extra["a"]] == [float, float, dict]
    with pytest.raises(InvalidRequest):
        fields.validate_settings({"extra": {"a": 10**400}})


@pytest.mark.parametrize("name", ["llama_model_path", "mmproj", "grammar_file", "device"])
def test_an_empty_name_names_nothing(name):
    assert fields.validate_settings({name: ""}) == {}
    assert fields.changes_of(fields.SETTINGS, {name: ""}) == {name: None}


def test_stop_may_be_one_string():
    assert fields.validate_parameters({"stop": "end"}) == {"stop": ["end"]}
    with pytest.raises(InvalidRequest):
        fields.validate_parameters({"stop": ["a", 1]})


def test_an_empty_prefix_gives_bare_paths():
    with pytest.raises(InvalidRequest) as raised:
        fields.validate_parameters({"temperature": 3}, prefix="")

    assert raised.value.param == "temperature"


def test_with_defaults_every_setting_that_has_one_is_there():
    complete = fields.settings_with_defaults({"ngl": 0})

    assert complete["ngl"] == 0
    assert complete["ctx_len"] == "auto"
    assert complete["n_parallel"] == 4
    assert "prompt_template" not in complete


def test_defaults_agree_with_the_sampling_defaults_of_the_domain():
    complete = fields.parameters_with_defaults({})
    shared = set(complete) & set(SamplingParams.__struct_fields__) - {"stop"}

    assert len(shared) >= 15
    assert {name: complete[name] for name in shared} == {name: getattr(SamplingParams(), name) for name in shared}
    assert complete["token_limit"] == SamplingParams().max_tokens


@pytest.mark.parametrize("table", [fields.SETTINGS, fields.PARAMETERS])
def test_defaults_are_values_that_would_be_accepted(table):
    for field in table:
        if field.default not in (None, ()) and field.name != "cpu_threads":
            assert field.parse(field.default, field.name) == field.default


def test_no_two_fields_share_a_spelling():
    for table in (fields.SETTINGS, fields.PARAMETERS):
        spellings = [spelling for field in table for spelling in (field.name, *field.aliases)]
        assert len(spellings) == len(set(spellings))


def test_tolerated_keeps_the_good_and_drops_the_bad():
    good = fields.tolerated({"ctx_len": 5, "ngl": "7", "n_parallel": "x"}, fields.validate_settings)

    assert good == {"ngl": 7}
    assert fields.tolerated("no mapping", fields.validate_settings) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(fields.SETTINGS + fields.PARAMETERS), JSON)
def test_any_json_value_is_taken_or_refused_never_a_crash(field, value):
    if value is None:
        return
    try:
        parsed = field.parse(value, field.name)
    except InvalidRequest:
        return
    assert field.parse(parsed, field.name) == parsed
