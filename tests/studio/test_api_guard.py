"""Who may ask: every route and method, with foreign names, origins and tokens."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from cones2.studio.security import Access, Guard
from cones2.studio.studio import Studio
from studio_server import MODEL, PORT, TOKEN, app_alone, client_of

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with app_alone(tmp_path_factory.mktemp("studio")) as (found, _):
        yield found


def paths(client: TestClient) -> list[str]:
    """Return every address that the app knows, names filled in."""
    described = client.get("/v1/openapi.json").json()["paths"]
    found = [path.format(job="j", picture="p", name="n", binned="b") for path in described]
    return [*found, "/", "/page/style.css", "/v1/openapi.json", "/nothing", "/v1/../healthz"]


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", "", "127.0.0.1@evil.example"])
def test_a_foreign_host_gets_nothing_anywhere(client: TestClient, host: str) -> None:
    for path in paths(client):
        for method in METHODS:
            answer = client.request(method, path, headers={"Host": host})
            assert answer.status_code == 403, (method, path)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", f"http://127.0.0.1.evil.example:{PORT}", "http://127.0.0.1:1"]
)
def test_a_foreign_origin_gets_nothing_anywhere(client: TestClient, origin: str) -> None:
    for path in paths(client):
        for method in METHODS:
            answer = client.request(method, path, headers={"Origin": origin})
            assert answer.status_code == 403, (method, path)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"Cookie": f"cones2_token_{PORT}=x"}],
)
def test_no_token_gets_nothing_but_health(client: TestClient, headers: dict[str, str]) -> None:
    stranger = client_of(client.app, headers=headers)
    for path in paths(client):
        for method in METHODS:
            answer = stranger.request(method, path)
            expected = (200, 405) if path.endswith("/healthz") else (401,)
            assert answer.status_code in expected, (method, path)
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_every_answer_keeps_the_page_to_itself(client: TestClient) -> None:
    for path in paths(client):
        if not path.endswith("events"):
            headers = client.get(path).headers
            assert "default-src 'self'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_address_with_the_token_sets_cookies_and_leaves_the_bar(client: TestClient) -> None:
    browser = client_of(client.app, headers={})
    assert browser.get("/?token=wrong", follow_redirects=False).status_code == 401
    entered = browser.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (entered.status_code, entered.headers["Location"]) == (303, "/")
    cookies = entered.headers.get_list("set-cookie")
    assert len(cookies) == 2
    assert all("HttpOnly" in cookie and "SameSite=Strict" in cookie for cookie in cookies)
    assert browser.get("/v1/jobs").status_code == 200


def test_a_browser_without_a_client_gets_one(client: TestClient) -> None:
    browser = client_of(client.app, headers={"Cookie": f"cones2_token_{PORT}={TOKEN}"})
    assert f"cones2_client_{PORT}=" in browser.get("/v1/jobs").headers["set-cookie"]


@pytest.mark.parametrize("other", ['x={"a": "b c"}', "x y", "a[b]=1", "Path=/; expires", "=", "x=\xe4"])
def test_the_cookies_of_other_servers_on_the_machine_spoil_nothing(client: TestClient, other: str) -> None:
    cookies = f"{other}; cones2_token_{PORT}={TOKEN}; cones2_client_{PORT}=c".encode("latin-1")
    stranger = client_of(client.app, headers={})
    assert stranger.get("/v1/jobs", headers=[(b"cookie", cookies)]).status_code == 200


def test_any_token_that_the_command_takes_comes_in_by_address_and_cookie() -> None:
    token = "".join(chr(code) for code in range(33, 127) if chr(code) not in ';,"\\')
    app = Guard(lambda *_: None, Access(token, PORT))  # type: ignore[arg-type]
    browser = client_of(app, headers={})
    entered = browser.get(f"/?token={quote(token, safe='')}", follow_redirects=False)
    assert entered.status_code == 303
    (cookie,) = (each for each in entered.headers.get_list("set-cookie") if "_token_" in each)
    scope = {"headers": [(b"cookie", cookie.partition("; Max-Age")[0].encode())]}
    assert Request({"type": "http", **scope}).cookies == {f"cones2_token_{PORT}": token}


@pytest.mark.parametrize("kept", ["", "\n", "short", "\xff" * 40])
def test_a_token_file_that_is_cut_off_lets_in_nobody(tmp_path: Path, kept: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "token").write_text(kept, encoding="latin-1")
    studio = Studio(tmp_path / "data", tmp_path / "library", MODEL)
    studio.stop()
    assert len(studio.token) > 20
    assert (tmp_path / "data" / "token").read_text() == studio.token


def test_the_usual_port_stands_in_no_host() -> None:
    assert Access(TOKEN, 80).knows_host("localhost")
    assert not Access(TOKEN, PORT).knows_host("localhost")


@pytest.mark.parametrize(
    "path", ["..%2fapp.py", "%2e%2e/app.py", "index.html%00", ".hidden", "a/b.js", "INDEX.HTML", "x.py"]
)
def test_no_path_leads_out_of_the_page(client: TestClient, path: str) -> None:
    assert client.get(f"/page/{path}").status_code == 404


@pytest.mark.parametrize("name", ["..", "../rex", "..%2frex", "%00", "<b>", "\x1b[31m", "x" * 1000, "CON"])
def test_no_name_leads_out_of_the_library(client: TestClient, name: str) -> None:
    for path in ("", "/file", "/thumb"):
        answer = client.get(f"/v1/subjects/{name}{path}".replace("\x1b", "%1b"))
        assert 400 <= answer.status_code < 500
        assert "\x1b" not in answer.text


def test_a_public_server_takes_any_address_but_no_name() -> None:
    access = Access(TOKEN, PORT, frozenset({"studio.example"}), is_public=True)
    assert access.knows_host(f"192.168.1.7:{PORT}")
    assert access.knows_host(f"[::1]:{PORT}")
    assert access.knows_host("studio.example")
    assert not access.knows_host(f"evil.example:{PORT}")
    assert not Access(TOKEN, PORT).knows_host(f"192.168.1.7:{PORT}")
