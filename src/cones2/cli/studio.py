"""`cones2 studio`: the page in the browser, and its API."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cones2.cli import options as opt
from cones2.cli.console import note, say
from cones2.cli.options import option
from cones2.errors import ModelError, OutputError, SettingsError

if TYPE_CHECKING:
    import socket

PORT = 8321
_NETWORK = "Network"


def studio(
    model: opt.Model = "mini",
    port: Annotated[int, option("--port", "Of the page; 0 takes a free one.", "N", min=0, max=65535)] = PORT,
    data: Annotated[
        Path | None, option("--data", "Folder of pictures and jobs; default: in your data folder.", "DIR")
    ] = None,
    library: opt.Library = None,
    no_browser: Annotated[bool, option("--no-browser", "Do not open the browser.")] = False,
    public: Annotated[bool, option("--public", "Let other machines in; needs --token.", panel=_NETWORK)] = False,
    token: Annotated[
        str | None, option("--token", "Who may come in; default: made once, and kept.", "TEXT", _NETWORK)
    ] = None,
    host: Annotated[list[str] | None, option("--host", "A name that it is reached by.", "NAME", _NETWORK)] = None,
    model_config: opt.ModelConfig = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
) -> None:
    """Open the studio: teach subjects, draw where they go, and watch the picture form, all in the browser.

    Example: cones2 studio --model mini
    """
    if public and not token:
        raise SettingsError("--public lets anyone on the network ask: give --token, a long secret text, as well.")
    if token is not None and (
        len(token) < 8 or not token.isascii() or not token.isprintable() or set(token) & set(' ;,"\\')
    ):
        raise SettingsError("--token can't be used: expected at least 8 letters, digits and signs, no spaces.")
    uvicorn = _uvicorn()
    import webbrowser  # help does without
    from urllib.parse import quote

    import platformdirs

    from cones2.files import expanded
    from cones2.library import Library
    from cones2.studio.app import create_app
    from cones2.studio.security import Access
    from cones2.studio.studio import Studio

    folder = expanded(data) if data else platformdirs.user_data_path("cones2") / "studio"
    listening = _listen("0.0.0.0" if public else "127.0.0.1", port)
    port = listening.getsockname()[1]
    opened = {"name": model, "options": {"device": device, "dtype": dtype, "config": model_config}}
    try:
        room = Studio(folder, Library.open(library).folder, opened, token=token)
    except BlockingIOError as error:
        raise OutputError(f"another studio works in {folder}: end it, or give --data another folder.") from error
    names = frozenset(name.lower() for name in host or ())
    app = create_app(room, Access(room.token, port, names, is_public=public))
    server = _Server(uvicorn, app, room)
    address = f"http://127.0.0.1:{port}/?token={quote(room.token, safe='')}"
    say(f"The studio is at {address}")
    note(f"Pictures and jobs are in {folder}. Press Ctrl+C to end it; jobs go on next time.")
    if not no_browser:
        webbrowser.open(address)
    server.run(listening)
    if room.supervisor.unusable is not None:
        raise ModelError(room.supervisor.unusable)


def _uvicorn() -> Any:
    """Return uvicorn; SettingsError where the studio's packages are missing."""
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise SettingsError(
            f"the studio needs {error.name}, which is missing: pip install 'cones2[studio]'."
        ) from error
    return uvicorn


def _listen(address: str, port: int) -> "socket.socket":
    """Return a socket that listens; OutputError where the port is taken."""
    import socket

    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
    except OSError as error:
        listening.close()
        raise OutputError(f"port {port} can't be used: {error.strerror}. Give --port another number, or 0.") from error
    return listening


class _Server:
    """uvicorn, which ends when the model can't be opened, and does not wait for streams that never end."""

    def __init__(self, uvicorn: Any, app: Any, room: Any) -> None:
        class Server(uvicorn.Server):  # type: ignore[misc]
            async def on_tick(self, counter: int) -> bool:
                if room.supervisor.unusable is not None:
                    self.should_exit = True
                if self.should_exit:
                    room.broker.close()
                return bool(await super().on_tick(counter))

        options = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 3, "lifespan": "on"}
        self._server = Server(uvicorn.Config(app, server_header=False, **options))

    def run(self, listening: "socket.socket") -> None:
        with contextlib.suppress(KeyboardInterrupt):  # which is how it is ended
            self._server.run(sockets=[listening])
