"""The demo of images: a farm makes them of packages, and stock tools pull and run them.

All is in .demo/image of the checkout, made anew each time. Leaves no process behind, unless
--keep is given.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import httpx
from demo_farm import (
    DEMO,
    EXAMPLES,
    GRANGE,
    Ports,
    agent_command,
    answers,
    free_ports,
    remove,
    run_in,
    say,
    serve_command,
    settle,
    start,
    stop_left_over,
    wait,
)

from grange.client.api import GrangeClient
from grange.errors import GrangeError, OutsideError

HERE: Final = DEMO / "image"
FARM: Final = HERE / "farm"
ADMIN_TOKEN: Final = FARM / "admin-token"
CONFIG: Final = EXAMPLES / "packages.toml"
# A meta-package for machines that are not x86_64.
_MACHINE: Final = "arm64/" if platform.machine() == "aarch64" else ""
HELLO: Final = f"shell/{_MACHINE}hello"
MORE: Final = f"shell/{_MACHINE}git/hello/htop"
MANIFESTS: Final = 50  # asked for, one after another
_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-image", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the farm running")
    options = parser.parse_args()
    settle(ADMIN_TOKEN)
    try:
        stop_left_over(("image-agent", "image-farm"))
        remove(HERE)
        HERE.mkdir(parents=True)
        with ExitStack() as farm:
            ports = start_farm(farm)
            show(ports)
            if options.keep:
                farm.pop_all()  # so that nothing is stopped
            say_where_next(ports, is_kept=options.keep)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.")
        return 130
    except GrangeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 3
    return 0


def start_farm(farm: ExitStack) -> Ports:
    ports = Ports(*free_ports(2))
    say("A farm that makes images, and one agent: examples/packages.toml")
    serve = serve_command(ports, FARM, "--config", str(CONFIG))
    coordinator = start(farm, "image-farm", serve)
    with GrangeClient(ports.url, token_file=ADMIN_TOKEN) as client:
        wait(coordinator, lambda: answers(client))
        agent = start(farm, "image-agent", agent_command("one", ports, FARM, HERE / "agent"))
        wait(agent, lambda: client.status().agents_connected == 1)
    return ports


# --- What is shown ----------------------------------------------------------------------------


def show(ports: Ports) -> None:
    say(f"skopeo pulls {HELLO}, of which nothing is built yet")
    pull(ports, HELLO, HERE / "pulled")
    with GrangeClient(ports.url, token_file=ADMIN_TOKEN) as client:
        builds = len(client.builds())
    print(f"  for that the package set was evaluated, and {builds} of its packages were built")
    pulled = Pulled.read(HERE / "pulled")
    print(f"  manifest {pulled.digest}")
    print(f"  {len(pulled.layers)} layers, {kilobytes(sum(pulled.layers.values()))}")
    say("Which layers those are, and why")
    run([str(GRANGE), "image", "layers", HELLO, "--url", ports.url])

    say("umoci unpacks it, and its programs run with nothing but that root")
    layout = HERE / "layout"
    run(["skopeo", "copy", "--quiet", f"dir:{HERE}/pulled", f"oci:{layout}:hello"])
    root = unpack(f"{layout}:hello", HERE / "hello")
    for command in (["/bin/hello"], ["/bin/bash", "-c", "LANG=de_DE hello $(whoami)"]):
        print(f"  $ {' '.join(command)}")
        print(f"  {run_in(root, *command)}", end="")

    say("The same again: from here on nothing is evaluated, built or compressed")
    pull(ports, HELLO, HERE / "again")
    if Pulled.read(HERE / "again") != pulled:
        raise OutsideError("the same image should have the same bytes")
    time_manifests(ports)

    say(f"An image of more, {MORE}: what it shares with the other is not fetched again")
    run(["skopeo", "copy", "--quiet", f"dir:{HERE}/pulled", f"oci:{layout}:more"])
    before = blobs(layout)
    pull(ports, MORE, layout, "more", transport="oci")
    new = {name: size for name, size in blobs(layout).items() if name not in before}
    print(f"  {len(new)} new blobs, {kilobytes(sum(new.values()))}: "
          "manifest and config, a layer for each new package, and one of links")  # fmt: skip
    root = unpack(f"{layout}:more", HERE / "more")
    print(f"  $ git\n  {run_in(root, '/bin/git')}", end="")


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image in a directory that skopeo has written."""

    digest: str
    layers: dict[str, int]  # bytes by digest

    @classmethod
    def read(cls, folder: Path) -> "Pulled":
        body = (folder / "manifest.json").read_bytes()
        digest = output(["skopeo", "manifest-digest", f"{folder}/manifest.json"]).strip()
        layers = {each["digest"]: each["size"] for each in json.loads(body)["layers"]}
        return cls(digest, layers)


def pull(ports: Ports, name: str, to: Path, tag: str = "", transport: str = "dir") -> None:
    target = f"{transport}:{to}" + (f":{tag}" if tag else "")
    source = f"docker://127.0.0.1:{ports.http}/{name}:latest"
    print(f"  $ skopeo copy --src-tls-verify=false {source} {target.replace(str(DEMO), '.demo')}")
    began = time.monotonic()
    run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", source, target])
    print(f"  pulled in {time.monotonic() - began:.2f} s", flush=True)


def time_manifests(ports: Ports) -> None:
    """How long the farm takes for what a client asks first."""
    url = f"{ports.url}/v2/{HELLO}/manifests/latest"
    took_s = []
    with httpx.Client(trust_env=False, headers={"accept": _MANIFEST_TYPE}) as client:
        for _ in range(MANIFESTS):
            began = time.monotonic()
            client.get(url).raise_for_status()
            took_s.append(time.monotonic() - began)
    print(f"  its manifest comes in {median(took_s) * 1000:.1f} ms "
          f"(the median of {MANIFESTS} requests)")  # fmt: skip


def unpack(image: str, bundle: Path) -> Path:
    """The root directory of an image in an OCI layout."""
    as_root = [] if os.geteuid() == 0 else ["--rootless"]
    run(["umoci", "unpack", *as_root, "--image", image, str(bundle)])
    return bundle / "rootfs"


def blobs(layout: Path) -> dict[str, int]:
    """Sizes by digest, of all that an OCI layout has."""
    return {each.name: each.stat().st_size for each in (layout / "blobs/sha256").iterdir()}


def kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f} kB"


def run(command: Sequence[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise OutsideError(f"this should work: {' '.join(command)}; see above and {DEMO}/logs")


def output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def say_where_next(ports: Ports, *, is_kept: bool) -> None:
    say("Where to look next")
    if is_kept:
        print(f"  The farm goes on: {ports.url}")
        print(f"  export GRANGE_URL={ports.url} GRANGE_TOKEN_FILE={ADMIN_TOKEN}")
        print(f"  export PATH={GRANGE.parent}:$PATH")
        print("  grange image list; grange image explain shell/web; grange image build shell/web")
        print(f"  podman run --tls-verify=false -it 127.0.0.1:{ports.http}/{MORE}")
        print("  make clean-demo            stops and removes it")
    else:
        print("  make demo-image KEEP=1     leaves the farm running for docker and podman")
    print("  examples/packages          the packages; examples/packages.toml the farm")
    print("  docs/operating/images.md   how to run a farm that makes images")


if __name__ == "__main__":
    sys.exit(main())
