"""Against servers on loopback, real archives and real kills."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import wbc_keras.sets.download
from wbc_keras.errors import DataError
from wbc_keras.sets.download import Download, fetch, is_archive, unpack, unpacked_folder

BODY = random.Random(0).randbytes(300_000)


@dataclass(frozen=True)
class Reply:
    """How the server meets a request: what it declares, and what it sends of it."""

    body: bytes = BODY
    status: int = 200
    sent: int | None = None
    ranges: bool = True
    pause: float = 0.0


@dataclass
class Site:
    """A server on loopback: its replies, in order, the last one for ever; what it was asked."""

    url: str
    replies: list[Reply] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            site.ranges.append(asked)
            reply = site.replies.pop(0) if len(site.replies) > 1 else site.replies[0]
            body, status = reply.body, reply.status
            if asked and reply.ranges and status == 200:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                body, status = body[start:], 206 if start < len(body) else 416
            time.sleep(reply.pause)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 302:
                self.send_header("Location", site.url)
            self.end_headers()
            self.wfile.write(body[: reply.sent])

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_port}/cells.bin")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _download(site: Site, body: bytes = BODY) -> Download:
    return Download(site.url, "cells.bin", f"md5:{hashlib.md5(body).hexdigest()}")


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _refusal(call) -> str:
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_whole_file_is_fetched_into_a_new_folder(site, tmp_path):
    site.replies = [Reply()]
    path = fetch(_download(site), tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "cells.bin"
    assert path.read_bytes() == BODY
    assert _names(tmp_path) == ["a", "a/b", "a/b/cells.bin"]


def test_sha256_holds_as_well(site, tmp_path):
    site.replies = [Reply()]
    checksum = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert fetch(Download(site.url, "cells.bin", checksum), tmp_path).read_bytes() == BODY


def test_file_with_the_right_checksum_is_not_fetched_again(site, tmp_path):
    (tmp_path / "cells.bin").write_bytes(BODY)
    assert fetch(_download(site), tmp_path).read_bytes() == BODY
    assert site.ranges == []


def test_file_with_another_checksum_is_replaced_only_by_the_right_one(site, tmp_path):
    (tmp_path / "cells.bin").write_bytes(b"older")
    site.replies = [Reply(status=404)]
    _refusal(lambda: fetch(_download(site), tmp_path, retries=0))
    assert (tmp_path / "cells.bin").read_bytes() == b"older"
    site.replies = [Reply()]
    assert fetch(_download(site), tmp_path).read_bytes() == BODY


def test_cut_off_file_never_appears_and_the_next_call_goes_on(site, tmp_path):
    site.replies = [Reply(sent=200_000)]
    refusal = _refusal(lambda: fetch(_download(site), tmp_path, retries=0))
    assert "ended before the whole file had come" in refusal
    kept = tmp_path / ".cells.bin.part" / "arrived"
    assert f"{kept.stat().st_size:,} bytes that arrived" in refusal
    assert 0 < kept.stat().st_size <= 200_000
    assert _names(tmp_path) == [".cells.bin.part", ".cells.bin.part/arrived"]
    received = kept.stat().st_size
    site.replies = [Reply()]
    assert fetch(_download(site), tmp_path).read_bytes() == BODY
    assert site.ranges == [None, f"bytes={received}-"]
    assert _names(tmp_path) == ["cells.bin"]


def test_broken_connection_is_tried_again_where_it_ended(site, tmp_path):
    site.replies = [Reply(sent=131_072), Reply()]
    assert fetch(_download(site), tmp_path, retries=1).read_bytes() == BODY
    assert site.ranges == [None, "bytes=131072-"]


def test_server_without_ranges_starts_over(site, tmp_path):
    site.replies = [Reply(sent=131_072), Reply(ranges=False)]
    assert fetch(_download(site), tmp_path, retries=1).read_bytes() == BODY


def test_redirect_is_followed_and_keeps_the_range(site, tmp_path):
    moved = Reply(b"moved", status=302)
    site.replies = [moved, Reply(sent=131_072), moved, Reply()]
    assert fetch(_download(site), tmp_path, retries=1).read_bytes() == BODY
    assert site.ranges == [None, None, "bytes=131072-", "bytes=131072-"]


def test_server_at_fault_is_tried_again(site, tmp_path):
    site.replies = [Reply(b"busy", status=503), Reply()]
    assert fetch(_download(site), tmp_path, retries=1).read_bytes() == BODY


def test_whole_file_that_was_not_checked_before_a_kill_is_fetched_anew(site, tmp_path):
    (tmp_path / ".cells.bin.part").mkdir()
    (tmp_path / ".cells.bin.part" / "arrived").write_bytes(BODY)
    (tmp_path / ".cells.bin.part" / "tmpk2j8").write_bytes(b"")  # pooch's, for the checked file
    site.replies = [Reply()]
    assert fetch(_download(site), tmp_path, retries=1).read_bytes() == BODY
    assert _names(tmp_path) == ["cells.bin"]


@pytest.mark.parametrize("kept", [b"", b"another file's first bytes"])
def test_altered_file_is_deleted(site, tmp_path, kept):
    if kept:
        (tmp_path / ".cells.bin.part").mkdir()
        (tmp_path / ".cells.bin.part" / "arrived").write_bytes(kept)
    site.replies = [Reply(BODY[:-1] + bytes([BODY[-1] ^ 1]))]
    refusal = _refusal(lambda: fetch(_download(site), tmp_path, retries=0))
    assert "is not the published file" in refusal
    assert hashlib.md5(BODY).hexdigest() in refusal
    assert _names(tmp_path) == []


def test_missing_file_is_not_asked_for_twice(site, tmp_path):
    site.replies = [Reply(b"no such file", status=404)]
    refusal = _refusal(lambda: fetch(_download(site), tmp_path, retries=3))
    assert "the server answers 404 Not Found" in refusal
    assert site.url in refusal
    assert len(site.ranges) == 1
    assert _names(tmp_path) == []


def test_server_that_stays_at_fault_is_named(site, tmp_path):
    site.replies = [Reply(b"busy", status=503)]
    refusal = _refusal(lambda: fetch(_download(site), tmp_path, retries=0))
    assert refusal.endswith("the server answers 503 Service Unavailable; run the command again")
    assert _names(tmp_path) == []


def test_silent_server(site, tmp_path, monkeypatch):
    monkeypatch.setattr(wbc_keras.sets.download, "_TIMEOUT", 0.1)
    site.replies = [Reply(pause=0.5)]
    refusal = _refusal(lambda: fetch(_download(site), tmp_path, retries=0))
    assert "the server is silent" in refusal


def test_refused_connection(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever calls is refused
        download = Download(f"http://127.0.0.1:{taken.getsockname()[1]}/x", "x", "md5:0")
        refusal = _refusal(lambda: fetch(download, tmp_path, retries=0))
    assert "the server cannot be reached" in refusal
    assert _names(tmp_path) == []


def test_certificate_that_cannot_be_verified(site, tmp_path):
    download = Download(site.url.replace("http:", "https:"), "x", "md5:0")
    refusal = _refusal(lambda: fetch(download, tmp_path, retries=0))
    assert "certificate" in refusal


def test_unknown_host(tmp_path):
    download = Download("http://no-such-host.invalid/x", "x", "md5:0")
    refusal = _refusal(lambda: fetch(download, tmp_path, retries=0))
    assert "the server cannot be reached" in refusal


def test_folder_that_is_a_file(site, tmp_path):
    (tmp_path / "taken").write_text("")
    refusal = _refusal(lambda: fetch(_download(site), tmp_path / "taken"))
    assert "taken" in refusal


def test_full_disk_is_one_line_and_what_arrived_is_kept(site, tmp_path):
    site.replies = [Reply()]
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from wbc_keras.errors import DataError\n"
        "from wbc_keras.sets.download import Download, fetch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "try: fetch(Download(*sys.argv[1:4]), Path(sys.argv[4]))\n"
        "except DataError as error: sys.exit(f'refused: {error}')"
    )
    download = _download(site)
    arguments = [download.url, download.file, download.checksum, str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("refused: ")
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert fetch(download, tmp_path).read_bytes() == BODY
    assert site.ranges[1] is not None


# Archives


def _zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def _tar(path: Path, *entries: tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


CELLS = (("cells/BAS/1.jpg", b"basophil"), ("cells/EOS/1.jpg", b"eosinophil"))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("set.zip", ""), ("set.tar", "w"), ("set.tar.gz", "w:gz"), ("set.tgz", "w:gz")],
)
def test_archive_is_unpacked_beside_itself_without_its_single_top(tmp_path, name, mode):
    path = tmp_path / name
    _tar(path, *CELLS, mode=mode) if mode else _zip(path, *CELLS, ("__MACOSX/._1.jpg", b"junk"))
    assert is_archive(path)
    folder = unpack(path)
    assert folder == tmp_path / "set"
    assert (folder / "BAS" / "1.jpg").read_bytes() == b"basophil"
    assert _names(tmp_path) == sorted(
        [name, "set", "set/BAS", "set/BAS/1.jpg", "set/EOS", "set/EOS/1.jpg"]
    )
    assert stat.S_IMODE((folder / "BAS" / "1.jpg").stat().st_mode) & 0o111 == 0


def test_more_than_one_top_is_kept(tmp_path):
    folder = unpack(_zip(tmp_path / "set.zip", ("a/1", b""), ("b/2", b""), ("empty/", b"")))
    assert _names(folder) == ["a", "a/1", "b", "b/2", "empty"]


def test_npz_is_a_file_and_no_archive_to_unpack():
    assert not is_archive(Path("bloodmnist.npz"))
    assert unpacked_folder(Path("x/Set.v1.TAR.GZ")) == Path("x/Set.v1")


def test_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    unpack(_zip(tmp_path / "set.zip", *CELLS))
    assert _names(tmp_path / "set") == ["mine.txt"]


def _link_zip(path: Path, target: str) -> Path:
    info = zipfile.ZipInfo("cells/link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return _zip(path, (info, target.encode()), ("cells/link/x", b"out"))


def _special_tar(path: Path, kind: bytes, target: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("cells/odd")
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return path


UNSAFE = {
    "zip up": lambda folder: _zip(folder / "s.zip", *CELLS, ("../x", b"out")),
    "zip up inside": lambda folder: _zip(folder / "s.zip", ("cells/a/../../../x", b"out")),
    "zip absolute": lambda folder: _zip(folder / "s.zip", (str(folder / "x"), b"out")),
    "zip backslash": lambda folder: _zip(folder / "s.zip", ("cells\\..\\..\\x", b"out")),
    "zip drive": lambda folder: _zip(folder / "s.zip", ("C:/x", b"out")),
    "zip link": lambda folder: _link_zip(folder / "s.zip", "/etc"),
    "tar up": lambda folder: _tar(folder / "s.tar", *CELLS, ("../x", b"out")),
    "tar absolute": lambda folder: _tar(folder / "s.tar", (str(folder / "x"), b"out")),
    "tar symlink": lambda folder: _special_tar(folder / "s.tar", tarfile.SYMTYPE, "/etc"),
    "tar hard link": lambda folder: _special_tar(folder / "s.tar", tarfile.LNKTYPE, "../x"),
    "tar device": lambda folder: _special_tar(folder / "s.tar", tarfile.CHRTYPE),
    "tar fifo": lambda folder: _special_tar(folder / "s.tar", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("make", UNSAFE.values(), ids=UNSAFE)
def test_unsafe_archive_writes_nothing(tmp_path, make):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    archive = make(inside)
    refusal = _refusal(lambda: unpack(archive))
    assert str(archive) in refusal
    assert "not safe" in refusal
    assert _names(tmp_path) == ["a", "a/b", f"a/b/{archive.name}"]


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_bomb_is_refused_by_what_it_declares(tmp_path, name):
    zeros = bytes(30_000_000)
    make = _zip if name.endswith("zip") else _tar
    archive = make(tmp_path / name, ("zeros", zeros), **({} if make is _zip else {"mode": "w:gz"}))
    assert archive.stat().st_size < 100_000
    assert "times the archive's own size" in _refusal(lambda: unpack(archive))
    assert _names(tmp_path) == [name]


def test_archive_larger_than_the_room_left_is_refused(tmp_path, monkeypatch):
    archive = _zip(tmp_path / "set.zip", *CELLS)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=17))
    assert "needs 18 bytes, and the disk has 17 left" in _refusal(lambda: unpack(archive))
    assert _names(tmp_path) == ["set.zip"]


@pytest.mark.parametrize(("name", "size"), [("cells/1\0.jpg", 0), ("cells/1.jpg", -512)])
def test_impossible_name_or_size_is_refused(tmp_path, name, size):
    info = tarfile.TarInfo("cells/1.jpg")
    info.size, info.pax_headers = size, {"path": name}
    archive = tmp_path / "set.tar"
    form = tarfile.PAX_FORMAT if "\0" in name else tarfile.GNU_FORMAT
    archive.write_bytes(info.tobuf(form) + bytes(1024))
    # Newer Pythons refuse a size below zero themselves.
    assert "not unpacked" in _refusal(lambda: unpack(archive))
    assert _names(tmp_path) == ["set.tar"]


def test_zip_that_holds_more_than_it_declares_is_damaged(tmp_path):
    content = b"basophil" * 1000
    archive = _zip(tmp_path / "set.zip", ("1.jpg", content))
    true, false = len(content).to_bytes(4, "little"), (800).to_bytes(4, "little")
    assert archive.read_bytes().count(true) == 2  # in the entry's header and in the directory
    archive.write_bytes(archive.read_bytes().replace(true, false))
    assert "damaged" in _refusal(lambda: unpack(archive))
    assert _names(tmp_path) == ["set.zip"]


# A plain tar keeps no checksum of its files: altered, only the download's own tells.
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, fault) for name in ("set.zip", "set.tar.gz") for fault in ("cut", "altered")),
        ("set.tar", "cut"),
        *((name, "no archive") for name in ("set.zip", "set.tar", "set.tar.gz")),
    ],
)
def test_damaged_archive_writes_nothing(tmp_path, name, fault):
    archive = tmp_path / name
    entries = [(f"cells/{number}", random.Random(number).randbytes(5_000)) for number in range(9)]
    if name == "set.zip":
        _zip(archive, *entries)
    else:
        _tar(archive, *entries, mode="w:gz" if name.endswith("gz") else "w")
    whole = archive.read_bytes()
    damaged = {
        "cut": whole[:20_000],
        "altered": whole[:20_000] + bytes(100) + whole[20_100:],
        "no archive": b"<html>log in first</html>",
    }
    archive.write_bytes(damaged[fault])
    assert "damaged" in _refusal(lambda: unpack(archive))
    assert _names(tmp_path) == [name]


def test_kill_while_unpacking_leaves_no_folder_and_the_next_call_clears_up(tmp_path):
    entries = [(f"cells/{number}", b"cell" * 250) for number in range(10_000)]
    archive = _tar(tmp_path / "set.tar", *entries)
    code = (
        "import sys; from pathlib import Path; from wbc_keras.sets.download import unpack\n"
        "unpack(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(archive)])
    while not list(tmp_path.glob(".set.*/9")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "set").exists()
    assert list(tmp_path.glob(".set.*"))
    small = _tar(tmp_path / "set.tar", *CELLS)
    unpack(small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.tar"]
