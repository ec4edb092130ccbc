import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from pimlip_zoo.cli.data import app
from pimlip_zoo.datasets.catalogue import KNOWN_SETS, known_set
from pimlip_zoo.datasets.download import download, parse_checksum
from pimlip_zoo.errors import InputError

CONTENT = bytes(range(256)) * 5000
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves one file; paths ask for misbehaviour."""

    requests = []  # noqa: RUF012 - what the server was asked

    def do_GET(self):
        asked = self.headers.get("Range")
        self.requests.append((self.path, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.path == "/missing":
            self.send_error(404)
        elif self.path == "/challenge":
            self.send_response(202)
            self.end_headers()
        elif asked and self.path != "/no-ranges" and start >= len(CONTENT):
            self.send_error(416)
        else:
            resumed = asked and self.path != "/no-ranges"
            body = CONTENT[start:] if resumed else CONTENT
            self.send_response(206 if resumed else 200)
            self.send_header("Content-Length", str(len(body)))
            if resumed:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path == "/breaks" and not asked else body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("pooch")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def test_a_file_with_the_right_checksum_gets_its_name(server, tmp_path):
    seen = []
    target = tmp_path / "new" / "a.bin"
    assert download(f"{server}/file", target, checksum=MD5, progress=lambda *a: seen.append(a)) == SHA256
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    with pytest.raises(InputError, match="is there already"):
        download(f"{server}/file", target, checksum=MD5)


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    with pytest.raises(InputError, match="thrown away"):
        download(f"{server}/file", tmp_path / "a.bin", checksum="sha256:" + "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/breaks", "/no-ranges"])
def test_an_interrupted_download_goes_on(server, tmp_path, path):
    if path == "/breaks":
        with pytest.raises(InputError, match="run again"):
            download(f"{server}{path}", tmp_path / "a.bin", checksum=MD5)
    else:
        (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    have = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < have < len(CONTENT)
    assert not (tmp_path / "a.bin").exists()
    download(f"{server}{path}", tmp_path / "a.bin", checksum=MD5)
    assert Handler.requests[-1] == (path, f"bytes={have}-")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_was_already_whole_is_taken(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert download(f"{server}/file", tmp_path / "a.bin", checksum=MD5) == SHA256


def test_a_part_of_something_else_is_thrown_away(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="thrown away"):
        download(f"{server}/file", tmp_path / "a.bin", checksum=MD5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{server}/missing", "the server says 404"),
        ("{server}/challenge", "the server says 202, which is no file"),
        ("http://127.0.0.1:9/file", "cannot be fetched"),
        ("file:///etc/passwd", "is no http address"),
    ],
)
def test_what_is_no_file_is_an_error(server, tmp_path, address, message):
    with pytest.raises(InputError, match=message):
        download(address.format(server=server), tmp_path / "a.bin", checksum=None)
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("text", ["", "md5:", "md5:123", "crc:00", "sha256:" + "g" * 64])
def test_what_is_no_checksum_is_refused(text):
    with pytest.raises(InputError, match="is no checksum"):
        parse_checksum(text)


def test_known_sets_are_complete_and_their_checksums_well_formed():
    for known in KNOWN_SETS.values():
        assert known.address.startswith("http")
        assert known.page.startswith("http")
        assert known.citation
        assert known.licence
        assert known.file
        if known.checksum:
            parse_checksum(known.checksum)
    with pytest.raises(InputError, match="did you mean spice-1"):
        known_set("spice1")


def test_the_command_shows_licence_and_citation_and_asks_for_a_checksum(server, tmp_path):
    runner = CliRunner()
    run = runner.invoke(app, ["get", "rmd17", "-o", str(tmp_path), "--address", f"{server}/file", "--yes"])
    assert "no checksum of this file is known" in str(run.exception)
    assert "Christensen" in run.output
    arguments = ["get", "rmd17", "-o", str(tmp_path), "--address", f"{server}/file", "--checksum", MD5]
    assert runner.invoke(app, arguments, input="n\n").exit_code == 1
    assert list(tmp_path.iterdir()) == []
    run = runner.invoke(app, [*arguments, "--yes"])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "rmd17.tar.bz2").read_bytes() == CONTENT
    assert SHA256 in run.output
    run = runner.invoke(app, ["get", "spice-1", "-o", str(tmp_path), "--address", f"{server}/file", "--yes"])
    assert "thrown away" in str(run.exception)
    assert "spice-2" in runner.invoke(app, ["get"]).output


def test_without_pooch_nothing_is_asked_or_fetched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    run = CliRunner().invoke(app, ["get", "spice-1", "-o", str(tmp_path)])
    assert "pip install 'pimlip-zoo[download]'" in str(run.exception)
    assert run.output == ""
    with pytest.raises(InputError, match="pooch is not installed"):
        download("http://127.0.0.1:9/file", tmp_path / "a.bin", checksum=None)
    assert list(tmp_path.iterdir()) == []
