"""Fetching one file from a real server on this machine, with bad manners."""

from __future__ import annotations

import hashlib
import threading

import pytest

from hostler.errors import DownloadFailed, InsufficientStorage
from hostler.library.fetch import Fetch, RetryPolicy, Stopped, StopSignal, _next_hop
from hostler.library.partfile import Identity, PartFile
from hostler.sources.contract import RemoteFile, SourceContext
from support.hub import FileServer

DATA = bytes((index * 31 + index // 251) % 256 for index in range(300_000))
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = bytes(reversed(DATA))
CHUNK = 32 * 1024
NO_WAIT = RetryPolicy(attempts=4, first_wait_s=0.0, longest_wait_s=0.0)


@pytest.fixture
def server():
    with FileServer() as server:
        yield server


class Puller:
    """Fetches into one folder, again and again."""

    def __init__(self, folder, server):
        self.target = folder / "x.gguf"
        self.server = server
        self.stop = StopSignal()
        self.reports = []

    def fetch(self, path="/x.gguf", *, policy=NO_WAIT, free=10**12, write=None, context=None, **remote):
        remote = RemoteFile("x.gguf", remote.pop("url", self.server.url + path), **remote)
        with PartFile(self.target, chunk_bytes=CHUNK) as part:
            fetch = Fetch(
                remote,
                part,
                context or SourceContext(timeout_s=20),
                self.stop,
                lambda done, total: self.reports.append((done, total)),
                policy,
                lambda folder: free,
            )
            if write is not None:
                part.write = write(part)
            fetch.run()
            part.finish(self.target)
        return self.target.read_bytes()

    @property
    def kept(self):
        path = self.target.with_name("x.gguf.part")
        return path.stat().st_size if path.exists() else None


@pytest.fixture
def puller(tmp_path, server):
    return Puller(tmp_path, server)


def test_a_file_arrives_whole_with_progress(puller, server):
    server.add("/x.gguf", DATA)

    assert puller.fetch(sha256=DIGEST, size_bytes=len(DATA)) == DATA
    assert puller.reports[0] == (0, len(DATA))
    assert puller.reports[-1] == (len(DATA), len(DATA))
    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_a_lost_connection_is_resumed_with_range_in_the_same_pull(puller, server):
    server.add("/x.gguf", DATA, etag='"v1"', drop_after=100_000, drop_times=2)

    assert puller.fetch() == DATA
    assert server.ranges("/x.gguf") == [None, "bytes=100000-", "bytes=200000-"]


def test_progress_renews_the_patience(puller, server):
    server.add("/x.gguf", DATA, etag='"v1"', drop_after=20_000)

    assert puller.fetch() == DATA
    assert len(server.asked) == 15


def test_a_server_that_brings_nothing_more_ends_the_pull_and_the_bytes_are_kept(puller, server):
    served = server.add("/x.gguf", DATA, etag='"v1"', drop_after=50_000, drop_times=1)
    served.drop_times = 1

    def then_nothing(part):
        write = part.write

        def written(block):
            write(block)
            served.drop_after, served.drop_times = 0, 10**9

        return written

    with pytest.raises(DownloadFailed, match="4 times in a row; 50000 bytes are kept"):
        puller.fetch(write=then_nothing)
    assert puller.kept == 50_000
    assert len(server.asked) == 4

    served.drop_times = 0
    assert puller.fetch() == DATA
    assert server.ranges("/x.gguf")[-1] == "bytes=50000-"


def test_a_busy_server_is_asked_again(puller, server):
    server.add("/x.gguf", DATA, status=503, status_times=3, headers={"Retry-After": "0"})

    assert puller.fetch() == DATA


def test_retry_after_is_honoured_within_limits():
    policy = RetryPolicy(first_wait_s=0.5, longest_wait_s=15)

    assert [policy.wait_s(n, None) for n in (1, 2, 3, 10)] == [0.5, 1.0, 2.0, 15]
    assert policy.wait_s(1, 10) == 10
    assert policy.wait_s(1, 3600) == 30


def test_nobody_listening_is_an_error_that_names_the_address(puller):
    with FileServer() as gone:
        url = gone.url + "/x.gguf?token=secret"

    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:\d+/x\.gguf could not be fetched") as raised:
        puller.fetch(url=url)
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(("status", "words"), [(404, "check the name"), (401, "huggingface_token"), (403, "403 Forbidden")])
def test_a_refusal_is_final_and_says_what_to_do(puller, server, status, words):
    server.add("/x.gguf", DATA, status=status, headers={"X-Error-Message": "it is gated"})

    with pytest.raises(DownloadFailed, match=words) as raised:
        puller.fetch()
    assert "it is gated" in raised.value.message
    assert len(server.asked) == 1


def interrupted(puller, server, n_bytes, **remote):
    """Leave a part of n_bytes, as a pull does that somebody stops."""
    served = server.files["/x.gguf"]
    served.hold_after = n_bytes
    served.held.clear()
    served.released.clear()
    failures = []

    def work():
        try:
            puller.fetch(**remote)
        except Stopped as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert served.held.wait(20)
    while not puller.reports or puller.reports[-1][0] < n_bytes:
        assert thread.is_alive()
    puller.stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(failures) == 1
    served.released.set()
    puller.stop = StopSignal()
    puller.reports.clear()
    server.asked.clear()


def test_stopping_wakes_a_thread_that_waits_for_a_silent_server(puller, server):
    served = server.add("/x.gguf", DATA)

    interrupted(puller, server, 70_000)

    assert puller.kept == 70_000
    assert served.held.is_set()


def test_a_stopped_pull_is_resumed_by_the_next(puller, server):
    server.add("/x.gguf", DATA)
    interrupted(puller, server, 70_000, sha256=DIGEST)

    assert puller.fetch(sha256=DIGEST) == DATA
    assert server.ranges("/x.gguf") == ["bytes=70000-"]
    assert "if-range" not in server.asked[0].headers


def test_resuming_without_a_hash_asks_for_the_same_version(puller, server):
    server.add("/x.gguf", DATA, etag='"v1"')
    interrupted(puller, server, 70_000)

    assert puller.fetch() == DATA
    assert server.asked[0].headers["if-range"] == '"v1"'
    assert server.ranges("/x.gguf") == ["bytes=70000-"]


def test_a_changed_etag_begins_again_and_gives_the_new_file_only(puller, server):
    server.add("/x.gguf", DATA, etag='"v1"')
    interrupted(puller, server, 70_000)

    server.add("/x.gguf", OTHER, etag='"v2"')

    assert puller.fetch() == OTHER


def test_a_date_is_a_validator_where_there_is_no_etag(puller, server):
    server.add("/x.gguf", DATA, last_modified=1_700_000_000)
    interrupted(puller, server, 70_000)
    server.add("/x.gguf", OTHER, last_modified=1_700_009_999)

    assert puller.fetch() == OTHER


def test_without_any_proof_of_the_version_it_begins_again(puller, server):
    server.add("/x.gguf", DATA)
    interrupted(puller, server, 70_000)
    server.add("/x.gguf", OTHER)

    assert puller.fetch() == OTHER
    assert server.ranges("/x.gguf") == [None]


def test_a_changed_file_under_a_known_hash_never_mixes(puller, server):
    server.add("/x.gguf", DATA)
    interrupted(puller, server, 70_000, sha256=DIGEST)
    server.add("/x.gguf", OTHER)

    with pytest.raises(DownloadFailed, match="SHA-256"):
        puller.fetch(sha256=DIGEST)
    assert puller.kept is None


def test_a_damaged_part_is_fetched_again_from_where_it_is_good(puller, server):
    server.add("/x.gguf", DATA)
    interrupted(puller, server, 70_000, sha256=DIGEST)
    path = puller.target.with_name("x.gguf.part")
    damaged = bytearray(path.read_bytes())
    damaged[CHUNK + 5] ^= 1
    path.write_bytes(damaged)

    assert puller.fetch(sha256=DIGEST) == DATA
    assert server.ranges("/x.gguf") == [f"bytes={CHUNK}-"]


def test_a_wrong_hash_is_refused_and_nothing_stays(puller, server):
    server.add("/x.gguf", OTHER)

    with pytest.raises(DownloadFailed, match=f"expected {DIGEST}") as raised:
        puller.fetch(sha256=DIGEST)
    assert hashlib.sha256(OTHER).hexdigest() in raised.value.message
    assert puller.kept is None
    assert len(server.asked) == 1


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_another_size_than_the_source_said_is_refused(puller, server, size):
    server.add("/x.gguf", DATA)

    with pytest.raises(DownloadFailed, match="expected"):
        puller.fetch(size_bytes=size)


def test_more_bytes_than_known_are_not_taken(puller, server):
    server.add("/x.gguf", DATA, is_length_told=False)

    with pytest.raises(DownloadFailed, match="more than the 1000 bytes"):
        puller.fetch(size_bytes=1000)
    assert puller.kept is None


def test_a_file_of_unknown_length_ends_with_the_connection(puller, server):
    server.add("/x.gguf", DATA, is_length_told=False)

    assert puller.fetch() == DATA


def test_a_server_without_ranges_is_read_again_from_the_start(puller, server):
    server.add("/x.gguf", DATA, has_ranges=False, drop_after=100_000, drop_times=2)

    assert puller.fetch(sha256=DIGEST) == DATA


def test_a_server_without_ranges_that_never_gets_through_is_given_up(puller, server):
    server.add("/x.gguf", DATA, has_ranges=False, drop_after=100_000)

    with pytest.raises(DownloadFailed, match=r"neither goes on|times in a row"):
        puller.fetch(sha256=DIGEST)


def test_an_encoded_body_is_refused(puller, server):
    server.add("/x.gguf", DATA, headers={"Content-Encoding": "gzip"})

    with pytest.raises(DownloadFailed, match="gzip"):
        puller.fetch()


def test_room_is_checked_before_the_first_byte(puller, server):
    server.add("/x.gguf", DATA)

    with pytest.raises(InsufficientStorage, match=r"300000 bytes more, 1000 are free") as raised:
        puller.fetch(free=1000)
    assert (raised.value.needed_bytes, raised.value.available_bytes) == (300_000, 1000)
    assert puller.kept == 0


def test_a_disk_that_fills_up_keeps_what_arrived(puller, server):
    server.add("/x.gguf", DATA, etag='"v1"')

    def full(part):
        write = part.write

        def written(block):
            if part.size + len(block) > 150_000:
                write(block[: 150_000 - part.size])
                raise OSError(28, "No space left on device")
            write(block)

        return written

    with pytest.raises(InsufficientStorage, match="No room left") as raised:
        puller.fetch(write=full)
    assert raised.value.needed_bytes == 150_000
    assert puller.kept == 150_000

    assert puller.fetch() == DATA
    assert server.ranges("/x.gguf")[-1] == "bytes=150000-"


def test_redirects_are_followed_and_a_token_stays_with_its_host(puller, server):
    with FileServer() as other:
        other.add("/real", DATA)
        server.add("/x.gguf", b"", location="/moved")
        server.add("/moved", b"", location=other.url + "/real")

        assert puller.fetch(headers={"Authorization": "Bearer secret"}) == DATA

        assert [asked.headers.get("authorization") for asked in server.asked] == ["Bearer secret"] * 2
        assert "authorization" not in other.asked[0].headers


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("file:///etc/passwd", "no http"),
        ("ftp://host/x", "no http"),
        ("http://[::1/x", "URL"),
        ("http://host:port/x", "URL"),
        ("/x.gguf", "more than 10 times"),
    ],
)
def test_a_redirect_may_only_lead_to_http_and_not_for_ever(puller, server, location, words):
    server.add("/x.gguf", b"", location=location)

    with pytest.raises(DownloadFailed, match=words):
        puller.fetch()


@pytest.mark.parametrize(
    ("url", "location", "words"),
    [
        ("https://hub.example/x", "http://hub.example/x", "drops encryption"),
        ("https://hub.example/x", "https://127.0.0.1/x", "this machine"),
        ("https://hub.example/x", "https://169.254.169.254/meta", "this machine"),
        ("https://hub.example/x", "https://[::1]/x", "this machine"),
        ("https://hub.example/x", "https://localhost/x", "this machine"),
        ("https://hub.example/x", "", "without saying where"),
    ],
)
def test_a_redirect_inwards_or_without_encryption_is_refused(url, location, words):
    with pytest.raises(DownloadFailed, match=words):
        _next_hop(url, location)


def test_a_redirect_to_another_host_outside_is_followed():
    assert _next_hop("https://hub.example/a/b", "https://cdn.example/c?sig=1") == "https://cdn.example/c?sig=1"
    assert _next_hop("http://127.0.0.1:1/a", "http://127.0.0.1:2/b") == "http://127.0.0.1:2/b"


def test_a_file_url_is_copied_and_resumed(puller, tmp_path):
    source = tmp_path / "source name.gguf"
    source.write_bytes(DATA)
    with PartFile(puller.target, chunk_bytes=CHUNK) as part:
        part.start(Identity(sha256=DIGEST))
        part.write(DATA[:70_000])

    assert puller.fetch(url=source.as_uri(), sha256=DIGEST) == DATA
    assert 70_000 in [done for done, _ in puller.reports]


def test_a_file_url_that_is_gone_is_a_clear_error(puller, tmp_path):
    with pytest.raises(DownloadFailed, match="cannot be read: No such file"):
        puller.fetch(url=(tmp_path / "gone.gguf").as_uri())


def test_an_unreadable_certificate_file_is_a_clear_error(puller, server, tmp_path):
    server.add("/x.gguf", DATA)

    with pytest.raises(DownloadFailed, match="certificate file"):
        puller.fetch(ca_file=str(tmp_path / "none.pem"))


def test_a_proxy_is_used_when_one_is_set(puller, server):
    with FileServer() as proxy:
        proxy.add("/x.gguf", DATA)

        data = puller.fetch(url="http://models.example/x.gguf", context=SourceContext(proxy=proxy.url, timeout_s=20))

        assert data == DATA
        assert proxy.asked[0].path == "http://models.example/x.gguf"
