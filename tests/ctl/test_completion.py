"""Completion of keys in bash, zsh and fish, from the server."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from tests.support.server import PATIENCE_S, ROOT, free_port
from tests.support.terminal import Terminal


@pytest.fixture(scope="module", autouse=True)
def app(server):
    client = server.client()
    for key in ("/app/db/url", "/app/web", "/app/_hidden", "/apple"):
        client.put(key, "x")


@pytest.fixture
def completed(kvdctl, own_environment):
    """What is offered for a command line, as bash gets it."""

    def run(line, at):
        words = line.split(" ")
        own_environment.setenv("KVDCTL_ENDPOINTS", at)
        own_environment.setenv("_KVDCTL_COMPLETE", "bash_complete")
        own_environment.setenv("COMP_WORDS", "\n".join(words))
        own_environment.setenv("COMP_CWORD", str(len(words) - 1))
        status, out, err = kvdctl()
        assert (status, err) == (0, "")
        return [line for line in out.splitlines() if line]

    return run


def test_keys_complete_one_level_at_a_time(completed, server):
    assert completed("kvdctl get /a", server.url) == ["nospace,/app/", "plain,/apple"]
    assert completed("kvdctl get /app/", server.url) == ["nospace,/app/db/", "plain,/app/web"]
    assert completed("kvdctl ls app/d", server.url) == ["nospace,app/db/"]
    assert completed("kvdctl set /apple /", server.url) == []  # that is the value
    assert completed("kvdctl get /none/", server.url) == []
    assert completed("kvdctl nosuch /", server.url) == []
    for verb in ("tree", "edit", "tail", "history", "rm -r", "watch", "exec-watch", "lock"):
        assert completed(f"kvdctl {verb} /appl", server.url) == ["plain,/apple"], verb


def test_verbs_and_flags_complete_too(completed, server):
    assert completed("kvdctl cluster", server.url)[0].startswith("plain,cluster-health")
    assert completed("kvdctl get --q", server.url)[0].startswith("plain,--quorum")
    assert completed("kvdctl user gr", server.url)[0].startswith("plain,grant")


def test_without_a_server_or_a_password_it_is_silent(completed, server, own_environment):
    assert completed("kvdctl get /", f"http://127.0.0.1:{free_port()}") == []
    assert completed("kvdctl -u al get /a", server.url) == []
    own_environment.setenv("KVDCTL_PROFILE", "none")
    assert completed("kvdctl get /a", server.url) == []


def test_a_silent_server_is_given_up(server, tmp_path):
    """The process ends by its timer, however long the server would take."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            "XDG_CONFIG_HOME": str(tmp_path),
            "KVDCTL_ENDPOINTS": f"127.0.0.1:{silent.getsockname()[1]}",
            "_KVDCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": "kvdctl\nget\n/",
            "COMP_CWORD": "2",
        }
        ended = subprocess.run(
            [sys.executable, "-m", "kvd.ctl.main"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(ctl, shell):
    status, out, err = ctl("completion", shell)
    assert (status, err) == (0, "")
    assert f"_KVDCTL_COMPLETE={shell}_complete" in out
    assert ("nospace" in out) == (shell != "fish")


SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "--private"],
}
SETUP = {
    "bash": "PS1='ready>'; eval \"$(kvdctl completion bash)\"",
    "zsh": "PS1='ready>'; autoload -Uz compinit; compinit -u -D; eval \"$(kvdctl completion zsh)\"",
    "fish": "function fish_prompt; echo -n 'ready>'; end; kvdctl completion fish | source",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_lists_the_children_of_a_key(server, tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    terminal = Terminal(SHELLS[shell], server, tmp_path)
    try:
        terminal.send(f"{SETUP[shell]}; echo set''up\n")
        terminal.wait_for("setup\r?\n")
        terminal.send("kvdctl get /app/\t\t")
        terminal.wait_for(r"(?s)/app/db/.*/app/web|db/.*web")
    finally:
        terminal.close()
