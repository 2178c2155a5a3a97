"""What a page of another site, or of another name for this computer, can do: nothing. And what crafted requests get."""

import contextlib
import http.client
import io
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from atomtune.shipped import IMAGES

UPLOAD = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    + (IMAGES / "teapot.png").read_bytes()
    + b"\r\n--x--\r\n"
)
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def ask(server, method: str, path: str, body: bytes | str | None = None, **headers: str) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()


def files(server) -> list[str]:
    return sorted(str(path) for path in server.workspace.rglob("*"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:1"},
        {"Origin": "http://localhost:1"},
        {"Host": "evil.example"},
        {"Host": "evil.example:7860"},
        {"Sec_Fetch_Site": "cross-site"},
    ],
    ids=str,
)
def test_another_origin_changes_nothing(server, headers):
    before = files(server)
    call = json.dumps({"data": [], "fn_index": 0, "session_hash": "x", "trigger_id": 1})
    for path, body, kind in (
        ("/gradio_api/upload", UPLOAD, FORM),
        ("/gradio_api/queue/join", call, {"Content-Type": "text/plain"}),
        ("/gradio_api/queue/join", call, {"Content-Type": "application/json"}),
    ):
        status, answer = ask(server, "POST", path, body, **{**kind, **headers})
        assert status == 403 and b"answers only pages of its own" in answer
    assert ask(server, "GET", "/config", **headers)[0] == 403  # and reads nothing
    assert files(server) == before


def test_its_own_page_is_answered(server):
    for host in ("127.0.0.1", "localhost"):
        own = f"{host}:{server.port}"
        assert ask(server, "GET", "/", Host=own, Origin=f"http://{own}", Sec_Fetch_Site="same-origin")[0] == 200
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(server, "GET", "/", **link)[0] == 200  # a link on another page leads to the studio


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2fetc%2fpasswd",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_file_outside_is_read(server, path):
    status, answer = ask(server, "GET", path)
    assert status >= 300 and b"root:" not in answer and b"[project]" not in answer


def test_an_upload_is_limited_in_size(server):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    status, _ = ask(server, "POST", "/gradio_api/upload", head + b"\0" * 20_500_000 + b"\r\n--x--\r\n", **FORM)
    assert status == 413


def test_an_upload_lands_in_the_workspace_whatever_its_name(server):
    evil = UPLOAD.replace(b"a.png", b"../../../evil.png")
    status, answer = ask(server, "POST", "/gradio_api/upload", evil, **FORM)
    assert status == 200
    (place,) = json.loads(answer)
    assert place.startswith(str(server.cache))
    assert not list(server.workspace.parent.rglob("evil.png")) or all(
        path.is_relative_to(server.workspace / ".studio") for path in server.workspace.parent.rglob("evil.png")
    )


def test_only_this_computer_is_answered(server):
    """It listens at 127.0.0.1 and at no other address of this computer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            own = probe.getsockname()[0]
        except OSError:
            pytest.skip("this computer has no other address")
    if own.startswith("127."):
        pytest.skip("this computer has no other address")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own, server.port), 5).close()


def test_nothing_is_shared(server):
    """Although GRADIO_SHARE is set in its environment (see `studio`)."""
    assert "gradio.live" not in server.log.read_text()
    assert json.loads(ask(server, "GET", "/config")[1])["analytics_enabled"] is False


def press(server, label: str, session: str, values: dict[str, object]) -> str:
    """Press a button of Steer as its page does, with these values for other controls; return all that is answered."""
    config = json.loads(ask(server, "GET", "/config")[1])
    props = {each["id"]: each["props"] | {"type": each["type"]} for each in config["components"]}
    inputs, call = next(
        (each["inputs"], each["id"])
        for each in config["dependencies"]
        for target, event in each["targets"]
        if event == "click" and props[target].get("value") == label and len(each["inputs"]) > 6
    )
    data = [None if props[id]["type"] == "state" else props[id].get("value") for id in inputs]
    data = [values.get(props[id].get("label"), value) for id, value in zip(inputs, data)]
    body = json.dumps({"data": data, "fn_index": call, "session_hash": session, "trigger_id": None})
    status, answer = ask(server, "POST", "/gradio_api/queue/join", body, Content_Type="application/json")
    assert status == 200, answer
    return ask(server, "GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()


def test_users_who_ask_for_the_same_image_get_whole_files(server):
    """In turns of both at once: one is written while the other is read."""

    def use(user: str) -> set[str]:
        files = set()
        for _ in range(5):
            answer = press(server, "Draw", user, {"Prompt": "a sks teapot", "Sampling steps": 2})
            assert "Drawn in" in answer
            for file in re.findall(r"/gradio_api/file=[^\"\\]+", answer):  # whole values, or what has changed of them
                status, data = ask(server, "GET", file)
                assert status == 200
                Image.open(io.BytesIO(data)).load()  # raises where a part is missing
                files.add(file)
        return files

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(use, ("one", "other"))
    assert one == other and len(one) == 2  # base and adapted: the draft has as many steps
