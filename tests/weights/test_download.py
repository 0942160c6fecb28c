"""Fetching files from a server of the test's own; nothing here uses the internet."""

import hashlib
import http.server
import socket
import threading

import pytest

from mrcnn_tf.weights import download
from mrcnn_tf.weights.report import WeightsError

CONTENT = bytes(range(256)) * 9000  # more than two chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/gone.bin":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/without_length.bin":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000] if self.path == "/cut.bin" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(download.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def address(server, name):
    return f"http://127.0.0.1:{server.server_port}/{name}"


def test_the_folder_is_the_users_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv(download.FOLDER)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "mrcnn_tf"


@pytest.mark.parametrize("check", ["", f"sha256:{SHA256}", f"sha256:{SHA256[:8]}", f"md5:{MD5[:6]}"])
def test_a_file_is_fetched_once_with_a_progress_bar(server, folder, check, capfd):
    path = download.fetch(address(server, "weights.bin"), "weights.bin", check)
    assert path == folder / "weights.bin" and path.read_bytes() == CONTENT
    assert "weights.bin: 100%" in capfd.readouterr().err
    assert download.fetch(address(server, "weights.bin"), "weights.bin", check) == path
    assert server.asked == ["/weights.bin"]
    assert [file.name for file in folder.iterdir()] == ["weights.bin"]


def test_a_file_of_unknown_length_and_one_on_the_disk(server, folder, tmp_path, capfd):
    path = download.fetch(address(server, "without_length.bin"), "a.bin", f"md5:{MD5}", progress=False)
    assert path.read_bytes() == CONTENT and capfd.readouterr().err == ""
    (tmp_path / "there.bin").write_bytes(CONTENT)
    path = download.fetch((tmp_path / "there.bin").as_uri(), "b.bin", f"sha256:{SHA256[:8]}")
    assert path == folder / "b.bin" and path.read_bytes() == CONTENT


def test_another_hash_is_told_and_nothing_is_kept(server, folder):
    with pytest.raises(WeightsError) as caught:
        download.fetch(address(server, "weights.bin"), "weights.bin", "sha256:00112233")
    assert SHA256 in str(caught.value) and "00112233 was published" in str(caught.value)
    assert "weights.bin: what came is not what was published" in str(caught.value)
    assert list(folder.iterdir()) == []


def test_a_damaged_file_in_the_folder_is_told(server, folder):
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"half")
    with pytest.raises(WeightsError) as caught:
        download.fetch(address(server, "weights.bin"), "weights.bin", f"sha256:{SHA256[:8]}")
    text = str(caught.value)
    assert str(folder / "weights.bin") in text and "remove it" in text
    assert hashlib.sha256(b"half").hexdigest() in text and SHA256[:8] in text
    assert server.asked == [] and (folder / "weights.bin").read_bytes() == b"half"


@pytest.mark.parametrize(("name", "reason"), [("gone.bin", "Not Found"), ("cut.bin", "after 1000 of 2304000 bytes")])
def test_what_does_not_arrive_leaves_no_file(server, folder, name, reason):
    with pytest.raises(WeightsError, match=reason):
        download.fetch(address(server, name), "weights.bin", f"sha256:{SHA256[:8]}")
    assert list(folder.iterdir()) == []


def test_without_a_network_the_error_says_which_file_goes_where(folder):
    with socket.socket() as taken:  # bound and not listening: refuses
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/models/weights-0011.pth"
        with pytest.raises(WeightsError) as caught:
            download.fetch(url, "weights-0011.pth")
    text = str(caught.value)
    assert text.startswith(f"{url} cannot be fetched (") and "refused" in text
    assert f"get the file weights-0011.pth from there and put it into {folder}" in text
    assert "MRCNN_TF_CACHE" in text and "weights=PATH" in text
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(download.FOLDER, str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="cannot be written to .* MRCNN_TF_CACHE names another folder"):
        download.fetch(address(server, "weights.bin"), "weights.bin")
