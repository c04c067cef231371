"""The shipped catalogue is data; these are its rules."""

from __future__ import annotations

from hostler.config import BY_NAME
from hostler.library import names
from hostler.library.catalogue import shipped_catalogue
from hostler.library.fields import validate_parameters, validate_settings
from hostler.library.manifest import check_member_path


def test_every_entry_obeys_the_rules_of_the_library():
    for entry in shipped_catalogue().entries:
        names.check_id(entry.id)
        for alias in entry.aliases:
            names.check_id(alias)
        check_member_path(entry.filename)
        assert validate_settings(entry.settings) == entry.settings
        assert validate_parameters(entry.parameters) == entry.parameters
        assert names.scheme_of(entry.source) in {"pypi", "https"}
        assert not entry.manifest().is_complete


def test_no_name_and_no_source_means_two_entries():
    catalogue = shipped_catalogue()
    all_names = [name for entry in catalogue.entries for name in (entry.id, *entry.aliases)]

    assert len(set(all_names)) == len(all_names)
    assert len({names.normalised_source(entry.source) for entry in catalogue.entries}) == len(catalogue.entries)


def test_the_default_model_is_the_smallest_entry():
    catalogue = shipped_catalogue()

    assert catalogue.by_name(BY_NAME["default_model"].default) is catalogue.smallest


def test_zephyr_has_the_source_url_of_the_seed():
    source = "https://huggingface.co/TheBloke/zephyr-7B-beta-GGUF/blob/main/zephyr-7b-beta.Q4_K_M.gguf"

    assert shipped_catalogue().by_id("zephyr-7b").manifest().source_url == source
