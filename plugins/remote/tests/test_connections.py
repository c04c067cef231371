"""How an upstream is reached: TLS is verified, proxies are those of the setting, connections are kept."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from hostler import ModelLoadFailed

from .conftest import Load
from .scripted import ScriptedUpstream


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority that nobody knows; beside it, in `server.pem`, what it vouches for."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return folder / "ca.pem"


@pytest.fixture
def encrypted(ca_file: Path) -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(tls=ca_file.with_name("server.pem")) as upstream:
        yield upstream


def test_a_certificate_that_nobody_vouches_for_is_refused(encrypted: ScriptedUpstream, load: Load) -> None:
    with pytest.raises(ModelLoadFailed, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
        load(url=encrypted.url)

    assert encrypted.got == []


def test_a_certificate_for_another_host_is_refused_although_it_is_trusted(load: Load, ca_file: Path) -> None:
    with (
        ScriptedUpstream(host="127.0.0.2", tls=ca_file.with_name("server.pem")) as other,
        pytest.raises(ModelLoadFailed, match=r"CERTIFICATE_VERIFY_FAILED.*IP address mismatch"),
    ):
        load(url=other.url, ca_file=str(ca_file))


def test_a_certificate_of_ones_own_is_trusted_by_ca_file(encrypted: ScriptedUpstream, load: Load, ca_file: Path) -> None:
    assert load(url=encrypted.url, ca_file=str(ca_file)).ask().text == "Hello there."


def test_a_ca_file_that_is_none_stops_the_start(encrypted: ScriptedUpstream, load: Load, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", Path(__file__)):
        with pytest.raises(ModelLoadFailed, match=r"\(ca_file\) cannot be used as certificates"):
            load(url=encrypted.url, ca_file=str(path))


def test_nothing_but_tls_is_spoken_to_an_https_url(upstream: ScriptedUpstream, load: Load) -> None:
    with pytest.raises(ModelLoadFailed, match="cannot be reached"):
        load(url=upstream.url.replace("http:", "https:"))


def proxied(proxy: ScriptedUpstream, path: str = "/v1/chat/completions") -> bool:
    """Whether the last request came as a proxy gets it: with the whole URL."""
    return proxy.got[-1].path == f"http://far.example{path}"


def proxy_url(proxy: ScriptedUpstream) -> str:
    return proxy.url.removesuffix("/v1")


def test_the_environments_proxy_is_used_for_other_machines(
    upstream: ScriptedUpstream, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy_url(upstream))

    assert load(url="http://far.example/v1").ask().text == "Hello there."
    assert proxied(upstream)


def test_the_environments_proxy_never_sees_what_stays_on_this_machine(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")

    assert load().ask().text == "Hello there."


def test_no_proxy_means_none(upstream: ScriptedUpstream, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy_url(upstream))

    with pytest.raises(ModelLoadFailed, match="cannot be reached"):
        load(url="http://far.example/v1", proxy="none", connect_timeout_s=2)
    assert upstream.got == []


def test_a_proxy_of_the_models_own_wins_over_the_environments(
    upstream: ScriptedUpstream, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    assert load(url="http://far.example/v1", proxy=proxy_url(upstream)).ask().text == "Hello there."
    assert proxied(upstream)


def test_a_key_that_goes_unencrypted_to_another_machine_is_a_warning(
    upstream: ScriptedUpstream, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-1234567890")

    far = load(url="http://far.example/v1", proxy=proxy_url(upstream), key_env="FAR_KEY")

    assert "without encryption" in far.info.warnings[0]
    assert load(key_env="FAR_KEY").info.warnings == ()


def test_the_context_that_verifies_nothing_is_no_way_around(upstream: ScriptedUpstream) -> None:
    """What is used for http: URLs trusts nobody, should it ever be asked."""
    from hostler_remote.description import Description
    from hostler_remote.upstream import _trust

    context = _trust(Description(url=upstream.url, model="m"))

    assert (context.verify_mode, context.check_hostname, context.get_ca_certs()) == (ssl.CERT_REQUIRED, True, [])
