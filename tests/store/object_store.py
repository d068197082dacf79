"""Run a real S3-compatible object store here: OpenStack Swift with its s3api, in its own virtual environment.

    python tests/store/object_store.py start --folder ~/wsss-objects --bucket wsss

The first start installs Swift from the package index (about 15 s), later ones take a few seconds. It serves on
127.0.0.1 until Ctrl-C or SIGTERM; objects stay in the folder. The lines it prints (also in FOLDER/environment.sh)
are what boto3, Ray, MLflow and wsss need to find it. One copy of each object and no TLS: for one machine and for
tests. Shared clusters want AWS S3, Ceph, SeaweedFS, Garage or a Swift with replicas.

Needs Linux, Python 3.11 or 3.12 and a folder whose file system has extended attributes (ext4, xfs, btrfs have).
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import fcntl
import hmac
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from email.utils import formatdate
from pathlib import Path
from types import FrameType

SWIFT = "swift==2.38.3"
REQUIREMENTS = (SWIFT, "setuptools<81")  # swift loads its servers through pkg_resources, gone from later setuptools
ACCOUNT, USER = "wsss", "admin"
KINDS = ("account", "container", "object")
NO_INSTALL = 3  # exit status when the package index does not answer

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_suffix = {suffix}
swift_hash_path_prefix = wsss

[storage-policy:0]
name = Policy-0
default = yes
"""

BACKEND_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {folder}/node
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
workers = 0
user = {user}
swift_dir = {folder}/etc
recon_cache_path = {folder}/cache
log_level = WARNING

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

# In this order; versioned_writes refuses to load without symlink. No cache: it would need a memcached.
FILTERS = (
    *("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "s3api"),
    *("tempauth", "slo", "dlo", "symlink", "versioned_writes", "copy"),
)

PROXY_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}/etc
log_level = WARNING

[pipeline:main]
pipeline = {filters} proxy-server

[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true

[filter:s3api]
use = egg:swift#s3api
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret} .admin http://127.0.0.1:{port}/v1/AUTH_{account}
"""

BUILD_RINGS = """\
import sys
from swift.common.ring import RingBuilder
folder = sys.argv[1]
for pair in sys.argv[2:]:
    kind, port = pair.split("=")
    builder = RingBuilder(8, 1, 0)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "sdb1", "weight": 1.0})
    builder.rebalance(seed="wsss")
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


class LauncherError(Exception):
    """What is wrong and what to do, with the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def install(environment: Path) -> Path:
    """Create the virtual environment once, also when several launchers start together. Returns its Python."""
    python = environment / "bin" / "python"
    complete = environment / ".complete"
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_name(environment.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete.is_file() and complete.read_text() == " ".join(REQUIREMENTS):
            return python
        print(f"installing {SWIFT} into {environment}", file=sys.stderr, flush=True)
        venv.create(environment, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LauncherError(
                f"could not install {SWIFT}: {done.stderr.strip()[-1000:]}\n"
                "check that pip reaches its package index (PIP_INDEX_URL), then start again",
                NO_INSTALL,
            )
        complete.write_text(" ".join(REQUIREMENTS))
    return python


def check_folder(folder: Path) -> None:
    """Raises LauncherError when Swift could not keep objects in this folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        try:
            os.setxattr(probe, "user.swift.probe", b"1")
        finally:
            probe.unlink()
    except OSError as error:
        raise LauncherError(
            f"{folder} cannot hold objects: {error.strerror}\n"
            "name a writable --folder on a file system with extended attributes (ext4, xfs, btrfs)"
        ) from error


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def kept_secret(path: Path) -> str:
    """A random secret that survives restarts, readable by its owner only."""
    if not path.is_file():
        write_private(path, secrets.token_hex(20))
    return path.read_text()


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(content)


def configure(folder: Path, python: Path, port: int) -> str:
    """Write rings and configuration files. Returns the secret key."""
    for part in ("etc", "node/sdb1", "cache", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    etc = folder / "etc"
    secret = kept_secret(etc / "secret")
    user = pwd.getpwuid(os.getuid()).pw_name
    write_private(etc / "swift.conf", SWIFT_CONF.format(suffix=kept_secret(etc / "hash-suffix")))
    ports = dict(zip(KINDS, free_ports(len(KINDS)), strict=True))
    for kind, backend_port in ports.items():
        content = BACKEND_CONF.format(kind=kind, port=backend_port, folder=folder, user=user)
        write_private(etc / f"{kind}-server.conf", content)
    proxy = PROXY_CONF.format(
        port=port, folder=folder, user=user, account=ACCOUNT, name=USER, secret=secret, filters=" ".join(FILTERS)
    )
    for name in FILTERS:
        if f"[filter:{name}]" not in proxy:
            proxy += f"\n[filter:{name}]\nuse = egg:swift#{name}\n"
    write_private(etc / "proxy-server.conf", proxy)
    pairs = [f"{kind}={backend_port}" for kind, backend_port in ports.items()]
    done = subprocess.run(
        [str(python), "-c", BUILD_RINGS, str(etc), *pairs], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LauncherError(f"could not build the rings of Swift:\n{done.stderr.strip()[-1000:]}")
    return secret


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no orphans when this launcher is killed


def launch(folder: Path, python: Path) -> list[subprocess.Popen[bytes]]:
    """Start the four servers as children; their output goes to FOLDER/logs."""
    servers = []
    for kind in (*KINDS, "proxy"):
        with (folder / "logs" / f"{kind}.log").open("ab") as log:
            servers.append(
                subprocess.Popen(
                    [str(python), str(python.with_name(f"swift-{kind}-server")), f"{folder}/etc/{kind}-server.conf"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_die_with_parent,
                )
            )
    return servers


def wait_ready(endpoint: str, servers: list[subprocess.Popen[bytes]], folder: Path, seconds: float = 300) -> None:
    """Until the proxy answers. Raises LauncherError when a server died or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check_alive(servers, folder)
        try:
            with urllib.request.urlopen(f"{endpoint}/healthcheck", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise LauncherError(f"Swift did not answer within {seconds:.0f} s; see {folder}/logs")


def check_alive(servers: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Raises LauncherError naming the server that ended, with the end of its log."""
    for kind, server in zip((*KINDS, "proxy"), servers, strict=True):
        if (status := server.poll()) is not None:
            tail = (folder / "logs" / f"{kind}.log").read_text(errors="replace")[-1000:]
            raise LauncherError(f"the {kind} server of Swift ended with status {status}:\n{tail}")


def create_bucket(endpoint: str, secret: str, bucket: str) -> None:
    """Create a bucket; no error when it exists."""
    deadline = time.monotonic() + 120
    while True:
        # The old signature of S3 (version 2) needs three lines; boto3 is not at hand here.
        date = formatdate(usegmt=True)
        text = f"PUT\n\n\n{date}\n/{bucket}"
        signature = base64.b64encode(hmac.digest(secret.encode(), text.encode(), "sha1")).decode()
        headers = {"Date": date, "Authorization": f"AWS {ACCOUNT}:{USER}:{signature}", "Content-Length": "0"}
        request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except OSError as error:  # the servers behind the proxy may still be starting
            if isinstance(error, urllib.error.HTTPError) and error.code == 409:
                return
            if time.monotonic() > deadline:
                raise LauncherError(f"could not create the bucket {bucket!r}: {error}") from error
            time.sleep(0.3)


def stop(servers: list[subprocess.Popen[bytes]]) -> None:
    """End the servers, first politely."""
    for server in reversed(servers):
        server.terminate()
    for server in servers:
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def start(folder: Path, port: int, environment: Path, buckets: list[str]) -> None:
    """Run the store until a signal arrives or one of its servers ends."""
    folder = folder.expanduser().absolute()
    check_folder(folder)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LauncherError(f"another launcher serves {folder} already") from None
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise LauncherError(f"port {port} is taken: {error.strerror}\nname another --port") from error
        port = port or free_ports(1)[0]
        python = install(environment.expanduser().absolute())
        secret = configure(folder, python, port)
        endpoint = f"http://127.0.0.1:{port}"
        servers = launch(folder, python)
        try:
            wait_ready(endpoint, servers, folder)
            for bucket in buckets:
                create_bucket(endpoint, secret, bucket)
            lines = (
                f"export AWS_ENDPOINT_URL={endpoint}\n"
                f"export AWS_ACCESS_KEY_ID={ACCOUNT}:{USER}\n"
                f"export AWS_SECRET_ACCESS_KEY={secret}\n"
                "export AWS_DEFAULT_REGION=us-east-1\n"
            )
            write_private(folder / "environment.sh", lines)
            print(f"{lines}ready", flush=True)
            while True:
                time.sleep(1)
                check_alive(servers, folder)
        finally:
            stop(servers)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    home = Path(os.environ.get("WSSS_HOME", "~/.cache/wsss"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("start", help="serve until Ctrl-C or SIGTERM")
    run.add_argument("--folder", type=Path, required=True, help="where objects and configuration are kept")
    run.add_argument("--port", type=int, default=8080, help="of 127.0.0.1; 0 takes a free one (default: 8080)")
    run.add_argument("--bucket", action="append", default=[], help="create this bucket; may be repeated")
    run.add_argument(
        "--environment",
        type=Path,
        default=home / f"swift-2.38.3-python{sys.version_info[0]}.{sys.version_info[1]}",
        help="virtual environment of Swift (default: below WSSS_HOME or ~/.cache/wsss)",
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        start(options.folder, options.port, options.environment, options.bucket)
    except KeyboardInterrupt:
        return 0
    except LauncherError as error:
        print(f"object_store: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
