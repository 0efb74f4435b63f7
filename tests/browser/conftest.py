"""A real JupyterLab in a real browser, for tests that do what a learner does.

Where there is no Chromium it is installed if that can be done quietly; otherwise the tests say so and are skipped.
``CHROMIUM=/path/to/chromium`` names one. Pictures of every step are left in ``tests/artifacts``.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ARTIFACTS = ROOT / "tests" / "artifacts"
LOCAL_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
PATIENCE = 240  # seconds for a whole notebook to run while the machine does other things

QUIET_LAB = """
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.port_retries = 0
c.ServerApp.open_browser = False
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
c.LabApp.expose_app_in_browser = True  # lets a test ask the application what it does
"""
QUIET_SETTINGS = """
{"@jupyterlab/apputils-extension:notification": {"checkForUpdates": false, "fetchNews": "false"},
 "@jupyterlab/docmanager-extension:plugin": {"autosave": false}}
"""


# ---------------------------------------------------------------------------------------------------------- the browser


def _installed(playwright) -> str | None:
    named = os.environ.get("CHROMIUM")
    candidates = [named] if named else [playwright.chromium.executable_path]
    if not named:
        candidates += [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "msedge")]
        candidates.append("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    return next((path for path in candidates if path and Path(path).is_file()), None)


def _install() -> str:
    """Try to install Chromium; what went wrong, or nothing."""
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        packages = ["chromium", "fonts-dejavu-core"]
        commands = [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]]
    else:
        commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    print("\nInstalling Chromium for the browser test ...", flush=True)
    for command in commands:
        try:
            env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        if done.returncode:
            return f"{' '.join(command)}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    return ""


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium that reaches nothing but this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path, trouble = _installed(playwright), ""
        if path is None and not os.environ.get("CHROMIUM"):
            trouble = _install()
            path = _installed(playwright)
        if path is None:
            trouble = trouble or f"CHROMIUM={os.environ.get('CHROMIUM')}"
            pytest.skip(f"no Chromium here, and none could be installed ({trouble})")
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        arguments += ["--disable-component-update", "--disable-sync", "--no-first-run", LOCAL_ONLY]
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=arguments, timeout=120_000)
        yield browser
        browser.close()


# -------------------------------------------------------------------------------------------------------- the server


@pytest.fixture
def server(tmp_path, chromium):
    """(address, token, folder): JupyterLab for one new learner, with a copy of the notebooks in ``folder``."""
    folder, home = tmp_path / "notebooks", tmp_path / "home"
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (home / "config" / "labconfig").mkdir(parents=True)
    (home / "config" / "jupyter_lab_config.py").write_text(QUIET_LAB)
    (home / "config" / "labconfig" / "default_setting_overrides.json").write_text(QUIET_SETTINGS)
    startup = home / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "no_network.py", startup / "00_no_network.py")
    environment = {
        **os.environ,
        "COURSE_STATE": str(tmp_path / "state"),
        "COURSE_DATA": str(tmp_path / "datasets"),
        "COURSE_OUTPUTS": str(tmp_path / "outputs"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, address = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder}", *["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(process, f"{address}/api/status?token={token}", tmp_path / "server.log")
        yield address, token, folder
    finally:
        process.terminate()  # the server ends its kernels
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


# ----------------------------------------------------------------------------------------------------------- the driver


class Lab:
    """One notebook open in JupyterLab, and the hands and eyes of somebody who works through it."""

    def __init__(self, page, address: str, token: str, story: str):
        self.page, self.address, self.token, self.story, self.shots = page, address, token, story, 0
        self.thrown: list[str] = []  # errors of the page itself
        page.on("pageerror", lambda error: self.thrown.append(str(error)))

    def open(self, name: str) -> None:
        """Open a notebook in an empty workspace and wait until its kernel listens."""
        workspace = f"auto-{time.monotonic_ns()}"
        self.page.goto(f"{self.address}/lab/workspaces/{workspace}?token={self.token}")
        self.page.wait_for_function("() => window.jupyterapp")
        self.page.evaluate(
            """async path => {
                const app = window.jupyterapp;
                await app.restored;
                const panel = await app.commands.execute("docmanager:open", {path, factory: "Notebook"});
                await panel.context.ready;
                await panel.sessionContext.ready;
                await panel.sessionContext.session.kernel.info;
                window.opened = panel;
            }""",
            name,
        )

    def cells(self) -> list[dict]:
        """All cells as JSON, those included that the page has not drawn."""
        return self.page.evaluate(
            "() => Array.from({length: opened.content.model.cells.length}, (_, i) => "
            "opened.content.model.cells.get(i).toJSON())"
        )

    def index(self, beginning: str) -> int:
        """Position of the first cell whose source holds this text."""
        for index, cell in enumerate(self.cells()):
            if beginning in "".join(cell["source"]):
                return index
        raise AssertionError(f"no cell holds {beginning!r}")

    def wait_idle(self) -> None:
        """Wait until the kernel has nothing left to do."""
        ready = "() => opened.sessionContext.session?.kernel?.status === 'idle'"
        self.page.wait_for_function(ready, timeout=PATIENCE * 1000)
        self.page.wait_for_timeout(300)

    def command(self, name: str) -> None:
        """Run one of JupyterLab's commands; the answer to a dialog is Enter's default."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name) }", name)

    def run_all(self) -> None:
        """Run > Run All Cells, and wait for the end."""
        finished = "() => window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => null)"
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.evaluate(finished)
        self.wait_idle()
        self.page.set_default_timeout(30_000)

    def show(self, index: int):
        """Scroll to a cell and return it."""
        self.page.evaluate(
            "async i => { opened.content.activeCellIndex = i; await opened.content.scrollToItem(i, 'start') }", index
        )
        cell = self.page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell[data-windowed-list-index='{index}']")
        cell.wait_for()
        return cell

    def write(self, index: int, source: str) -> None:
        """Replace what is in a cell by typing, and run it with Shift+Enter."""
        cell = self.show(index)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(source)
        self.run(index)

    def run(self, index: int) -> None:
        """Run a cell with Shift+Enter and wait for its end."""
        self.show(index).locator(".cm-content").click()
        # A saved number would look like the new one: a fresh kernel counts from 1 as well.
        self.page.evaluate("i => { opened.content.model.cells.get(i).executionCount = null }", index)
        self.page.keyboard.press("Shift+Enter")
        finished = "i => opened.content.model.cells.get(i).executionCount !== null"
        self.page.wait_for_function(finished, arg=index, timeout=PATIENCE * 1000)
        self.wait_idle()

    def restart(self) -> None:
        """Kernel > Restart Kernel, confirmed."""
        self.command("kernelmenu:restart")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")
        self.wait_idle()

    def theme(self, name: str) -> None:
        """Settings > Theme."""
        self.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme}).then(() => null)", name
        )
        self.page.wait_for_timeout(700)

    def drag(self, slider, share: float) -> None:
        """Drag a slider's handle by a share of its length, as a mouse does."""
        handle = slider.locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        box, track = handle.bounding_box(), slider.locator(".noUi-target").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + share * track["width"], y, steps=6)
        self.page.mouse.up()
        self.wait_idle()

    def screenshot(self, name: str) -> None:
        """Keep a picture of what is on the screen."""
        self.shots += 1
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"{self.story} {self.shots:02} {name}.png")


@pytest.fixture
def lab(chromium, server, request):
    """JupyterLab in a fresh browser window."""
    address, token, _ = server
    context = chromium.new_context(viewport={"width": 1280, "height": 960})
    page = context.new_page()
    page.set_default_timeout(60_000)
    lab = Lab(page, address, token, request.node.name.removeprefix("test_").replace("_", " "))
    yield lab
    lab.screenshot("at the end")
    context.close()
