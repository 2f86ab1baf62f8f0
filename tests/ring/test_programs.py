# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do unmodified programs exchange the right bytes through the ring, and nothing by the network?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from ringlab.guest import channel, programs
from ringlab.guest.lib import wait_for
from ringlab.lab import Lab
from ringlab.show import Show

MIB = 1 << 20
LARGE = 16 * MIB
# What both ends of a connection inside one guest say of it.
INSIDE = frozenset({"same_guest", "no_offer"})
PYTHON = "python3", "-m"


@pytest.fixture
def show(lab: Lab) -> Iterator[Show]:
    """Two guests whose rings are moved by the BPF programs, as in production."""
    before = [guest.run(channel.use_programs, True) for guest in lab.guests]
    yield Show(lab)
    for guest, wanted in zip(lab.guests, before, strict=True):
        guest.end_worker()
        guest.run(channel.use_programs, wanted)


# redis


def redis(show: Show) -> int:
    """A server; its port."""
    options = ("--port", "{port}", "--save", "", "--protected-mode", "no", "--daemonize", "no")
    return show.serve("redis-server", *options)


def test_redis_values(show: Show) -> None:
    """Values of several sizes, set by one connection and got by another."""
    port = redis(show)
    sizes = (1, 70_000, 2 * MIB)
    cli = ("redis-cli", "-h", show.host, "-p", str(port), "--raw")
    with show.account(2 * sum(sizes), 2 * len(sizes)):
        for size in sizes:
            wanted = show.file(show.one, "/tmp/value", size)
            assert show.run(*cli, "-x", "set", f"k{size}", given="/tmp/value").strip() == "OK"
            show.run(*cli, "get", f"k{size}", saved="/tmp/got")
            # redis-cli ends its output with a newline of its own.
            assert show.sum(show.one, "/tmp/got", 0, size) == wanted


def inserts(path: str, count: int, size: int) -> None:
    """Many commands in redis's own protocol."""
    value = b"v" * size
    with open(path, "wb") as file:
        for number in range(count):
            key = b"key:%d" % number
            words = (b"SET", key, value)
            file.write(b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))


def test_redis_pipe(show: Show) -> None:
    """Mass insertion: one connection, written without waiting for answers."""
    port = redis(show)
    cli = ("redis-cli", "-h", show.host, "-p", str(port))
    show.one.run(inserts, "/tmp/commands", 3000, 500)
    with show.account(3000 * 500, 2):
        printed = show.run(*cli, "--pipe", given="/tmp/commands")
        assert "errors: 0, replies: 3000" in printed
        assert show.run(*cli, "dbsize").strip() == "3000"


@pytest.mark.parametrize("pipeline", ["1", "16"])
def test_redis_benchmark(show: Show, pipeline: str) -> None:
    port = redis(show)
    count, size = 1500, 3000
    options = ("-n", str(count), "-c", "20", "-d", str(size), "-t", "set,get", "-P", pipeline)
    with show.account(2 * count * size, 40):
        printed = show.run("redis-benchmark", "-h", show.host, "-p", str(port), "-e", "-q",
                           *options)  # fmt: skip
    assert len(re.findall(r"(SET|GET): [\d.]+ requests per second", printed)) == 2, printed


def test_redis_publishes(show: Show) -> None:
    """A subscriber and a MONITOR that mostly wait."""
    port = redis(show)
    text = "news " * 400
    cli = f"redis-cli -h {show.host} -p {port}"
    show.one.run(programs.write_text, "/tmp/publish", f"publish channel '{text}'\n" * 20)
    with show.account(3 * 20 * len(text), 5):
        # They end when redis does, and complain of that.
        waiting = [
            show.later(show.one, "sh", "-c", f"timeout 40 {cli} {what} || true")
            for what in ("monitor", "subscribe channel")
        ]
        for mark in ("cmd=monitor", "cmd=subscribe"):
            clients = (*cli.split(), "client", "list")
            wait_for(mark, lambda: mark in show.run(*clients), 20)  # noqa: B023
        assert show.run(*cli.split(), given="/tmp/publish").split() == ["1"] * 20
        show.run(*cli.split(), "shutdown", "nosave")
        monitored, news = (str(show.wait(call)) for call in waiting)
    assert news.count(text) == 20
    assert monitored.count('"publish"') == 20


# HTTP

NGINX = """
worker_processes 1;
pid /tmp/nginx/pid;
error_log /tmp/nginx/error.log;
daemon off;
user root;
events {{ worker_connections 500; }}
http {{
  access_log off;
  client_body_temp_path /tmp/nginx/1; proxy_temp_path /tmp/nginx/2;
  fastcgi_temp_path /tmp/nginx/3; uwsgi_temp_path /tmp/nginx/4; scgi_temp_path /tmp/nginx/5;
  sendfile {sendfile};
  server {{ listen {port}; root /tmp/www; }}
}}
"""


def nginx(show: Show, sendfile: str = "on") -> int:
    """A server of /tmp/www; its port."""
    port = show.port()
    show.two.run(programs.write_text, "/tmp/nginx/conf", NGINX.format(port=port, sendfile=sendfile))
    return show.serve("nginx", "-p", "/tmp/nginx", "-e", "stderr", "-c", "conf", port=port)


@pytest.mark.parametrize("sendfile", ["on", "off"])
def test_nginx_and_curl(show: Show, sendfile: str) -> None:
    """Small files and a large one over one kept connection."""
    port = nginx(show, sendfile)
    sizes = (1, 1000, 65536, MIB + 1, LARGE)
    sums = [show.file(show.two, f"/tmp/www/{size}", size) for size in sizes]
    fetches = [part for size in sizes for part in (
        "-o", f"/tmp/got-{size}", f"http://{show.host}:{port}/{size}")]  # fmt: skip
    with show.account(sum(sizes)) as account:
        show.run("curl", "-sSf", "-w", "%{num_connects}\n", *fetches)
    assert account.opened(0) == {"ring": 1}, "the connection was not kept"
    assert [show.sum(show.one, f"/tmp/got-{size}") for size in sizes] == sums


def test_nginx_and_wget(show: Show) -> None:
    port = nginx(show)
    wanted = show.file(show.two, "/tmp/www/large", LARGE)
    with show.account(LARGE):
        show.run("wget", "-q", "-O", "/tmp/got", f"http://{show.host}:{port}/large")
    assert show.sum(show.one, "/tmp/got") == wanted


def test_ranges(show: Show) -> None:
    """A part, and the rest of an interrupted transfer."""
    port = nginx(show)
    wanted = show.file(show.two, "/tmp/www/large", 4 * MIB)
    part = show.sum(show.two, "/tmp/www/large", 1_000_000, 2_000_001)
    url = f"http://{show.host}:{port}/large"
    with show.account(6 * MIB, 3):
        show.run("curl", "-sSf", "-r", "1000000-2000000", "-o", "/tmp/part", url)
        show.run("curl", "-sSf", "-r", "0-999999", "-o", "/tmp/got", url)
        show.run("curl", "-sSf", "-C", "-", "-o", "/tmp/got", url)
    assert show.sum(show.one, "/tmp/part") == part
    assert show.sum(show.one, "/tmp/got") == wanted


def test_uploads(show: Show) -> None:
    """PUT with a length (and Expect), chunked, POST by curl and by wget."""
    port = show.serve(*PYTHON, "guest.uploads", "{port}")
    wanted = show.file(show.one, "/tmp/sent", 2 * MIB)
    url = f"http://{show.host}:{port}/"
    ways = (
        ("curl", "-sSf", "-T", "/tmp/sent", url),
        ("curl", "-sSf", "-T", "/tmp/sent", "-H", "Transfer-Encoding: chunked", url),
        ("curl", "-sSf", "--data-binary", "@/tmp/sent", url),
        ("wget", "-q", "-O", "-", "--post-file", "/tmp/sent", url),
    )
    with show.account(8 * MIB, 4):
        assert [show.run(*command) for command in ways] == [wanted] * 4


@pytest.mark.parametrize("size", [100, 100_000])
def test_wrk(show: Show, size: int) -> None:
    port = nginx(show)
    show.file(show.two, "/tmp/www/file", size)
    url = f"http://{show.host}:{port}/file"
    with show.account(100 * size + 100_000, 20):
        printed = show.run("wrk", "-t1", "-c20", "-d1s", url)
    assert "Socket errors" not in printed, printed
    assert "Non-2xx" not in printed, printed
    assert int(re.findall(r"(\d+) requests in", printed)[0]) > 100


# iperf3, nc, socat


@pytest.mark.parametrize("options", [(), ("-R",), ("-P", "4"), ("-R", "-P", "4")],
                         ids=lambda options: "".join(options) or "send")  # fmt: skip
def test_iperf3(show: Show, options: tuple[str, ...]) -> None:
    port = show.serve("iperf3", "-s", "-p", "{port}")
    size = 8 * MIB
    streams = 5 if "-P" in options else 2
    with show.account(size, streams):
        printed = show.run("iperf3", "-c", show.host, "-p", str(port), "-J", "-n", str(size),
                           *options)  # fmt: skip
    end = json.loads(printed)["end"]
    assert end["sum_received"]["bytes"] >= (size if "-R" in options else 0.9 * size)
    assert end["sum_sent"]["bytes"] >= size


def test_iperf3_file(show: Show) -> None:
    """A file through iperf3's own way of writing and reading."""
    port = show.serve("iperf3", "-s", "-1", "-F", "/tmp/got", "-p", "{port}")
    wanted = show.file(show.one, "/tmp/sent", 4 * MIB)
    with show.account(4 * MIB, 2):
        show.run("iperf3", "-c", show.host, "-p", str(port), "-F", "/tmp/sent")
        show.two.run(programs.finished, port)
    assert show.sum(show.two, "/tmp/got") == wanted


def test_nc(show: Show) -> None:
    """A file one way and another back, each end closing when it is done."""
    sent = show.file(show.one, "/tmp/sent", 4 * MIB)
    back = show.file(show.two, "/tmp/back", 3 * MIB)
    shell = "exec nc -N -l {port} </tmp/back >/tmp/got"
    port = show.serve("sh", "-c", shell)
    with show.account(7 * MIB):
        show.run("nc", "-N", show.host, str(port), given="/tmp/sent", saved="/tmp/got")
        show.two.run(programs.finished, port)
    assert show.sum(show.two, "/tmp/got") == sent
    assert show.sum(show.one, "/tmp/got") == back


def test_socat_both_directions(show: Show) -> None:
    """File to file both ways at once."""
    sent = show.file(show.one, "/tmp/sent", 4 * MIB)
    back = show.file(show.two, "/tmp/back", 3 * MIB)
    files = "OPEN:{}!!CREATE:/tmp/got"
    port = show.serve("socat", "-t30", files.format("/tmp/back"), "TCP-LISTEN:{port},reuseaddr")
    with show.account(7 * MIB):
        show.run("socat", "-t30", files.format("/tmp/sent"), f"TCP:{show.host}:{port}")
        show.two.run(programs.finished, port)
    assert show.sum(show.two, "/tmp/got") == sent
    assert show.sum(show.one, "/tmp/got") == back


def test_socat_forks(show: Show) -> None:
    """A child for each connection, which hands the socket to `cat` itself."""
    wanted = show.file(show.one, "/tmp/sent", 2 * MIB)
    port = show.serve("socat", "TCP-LISTEN:{port},reuseaddr,fork", "EXEC:cat,nofork")
    with show.account(8 * MIB, 2):
        for _ in range(2):
            show.run("socat", "-t30", "-", f"TCP:{show.host}:{port}", given="/tmp/sent",
                     saved="/tmp/got")  # fmt: skip
            assert show.sum(show.one, "/tmp/got") == wanted


# asyncio


@pytest.mark.parametrize("kind", ["streams", "protocol", "buffered"])
def test_asyncio(show: Show, kind: str) -> None:
    """Many connections that send and receive at once; by uvloop too where the guests have it."""
    loops = [loop for loop in ("asyncio", "uvloop")
             if show.one.run(programs.has_python_module, loop)]  # fmt: skip
    assert "asyncio" in loops
    for loop in loops:
        port = show.serve(*PYTHON, "guest.echo", loop, "server", kind, "{port}")
        count, size = 8, 100_000
        with show.account(2 * count * size, count):
            asked = (loop, "client", kind, str(port), show.host, str(count), str(size))
            assert show.run(*PYTHON, "guest.echo", *asked).strip() == str(count)


# OpenSSH

SSHD = """
Port {port}
HostKey /tmp/sshd/host
AuthorizedKeysFile /tmp/sshd/allowed
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
StrictModes no
Subsystem sftp /usr/lib/openssh/sftp-server
"""
# Quick where the processor has no instructions for AES.
CIPHER = "chacha20-poly1305@openssh.com"
CLIENT = (
    "-F", "none", "-i", "/tmp/key", "-c", CIPHER, "-o", "StrictHostKeyChecking=no",
    "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
)  # fmt: skip


@pytest.fixture
def sshd(show: Show) -> int:
    """An OpenSSH server with keys of this test; its port."""
    keygen = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f")
    show.one.run(programs.tool, "rm", "-f", "/tmp/key", "/tmp/key.pub")
    show.one.run(programs.tool, *keygen, "/tmp/key")
    port = show.port()
    show.two.run(programs.tool, "rm", "-rf", "/tmp/sshd")
    show.two.run(programs.tool, "mkdir", "-p", "/run/sshd", "/tmp/sshd")
    show.two.run(programs.tool, *keygen, "/tmp/sshd/host")
    allowed = show.one.run(channel.read, "/tmp/key.pub")
    show.two.run(programs.write_text, "/tmp/sshd/allowed", allowed, 0o600)
    show.two.run(programs.write_text, "/tmp/sshd/conf", SSHD.format(port=port))
    return show.serve("/usr/sbin/sshd", "-D", "-e", "-f", "/tmp/sshd/conf", port=port)


def test_ssh(show: Show, sshd: int) -> None:
    """Both directions through the standard streams of a remote command."""
    sent = show.file(show.one, "/tmp/sent", 2 * MIB)
    back = show.file(show.two, "/tmp/back", 2 * MIB + 1)
    with show.account(4 * MIB):
        show.run("ssh", *CLIENT, "-p", str(sshd), f"root@{show.host}",
                 "cat >/tmp/got; cat /tmp/back", given="/tmp/sent", saved="/tmp/got")  # fmt: skip
    assert show.sum(show.two, "/tmp/got") == sent
    assert show.sum(show.one, "/tmp/got") == back


def test_scp_and_sftp(show: Show, sshd: int) -> None:
    sent = show.file(show.one, "/tmp/sent", 2 * MIB)
    back = show.file(show.two, "/tmp/back", 2 * MIB + 1)
    place = f"root@{show.host}"
    show.one.run(programs.write_text, "/tmp/batch", "put /tmp/sent /tmp/put\nget /tmp/back /tmp/s")
    with show.account(6 * MIB, 2):
        show.run("scp", "-q", *CLIENT, "-P", str(sshd), "/tmp/sent", f"{place}:/tmp/got")
        show.run("sftp", "-q", *CLIENT, "-P", str(sshd), "-b", "/tmp/batch", place)
    assert show.sum(show.two, "/tmp/got") == sent
    assert show.sum(show.two, "/tmp/put") == sent
    assert show.sum(show.one, "/tmp/s") == back


def test_ssh_forwards(show: Show, sshd: int) -> None:
    """A port forwarded to a server that listens on the other guest's loopback only."""
    wanted = show.file(show.one, "/tmp/sent", MIB)
    door = show.port()
    inner = show.serve(
        "socat", "TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", "EXEC:cat,nofork"
    )
    with show.account(2 * MIB, others=INSIDE):
        show.one.run(programs.start, door, "ssh", *CLIENT, "-N", "-p", str(sshd),
                     "-L", f"127.0.0.1:{door}:127.0.0.1:{inner}", f"root@{show.host}")  # fmt: skip
        show.run("nc", "-N", "127.0.0.1", str(door), given="/tmp/sent", saved="/tmp/got")
    assert show.sum(show.one, "/tmp/got") == wanted
