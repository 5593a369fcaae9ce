"""Images of a farm of two coordinators: either serves them, and one may go while they are made."""

from pathlib import Path

import pytest

from tests.integration.farm import make_farm, until
from tests.integration.image_pulls import (
    HELLO,
    manifest,
    pulled_meanwhile,
    run,
    skopeo,
    unpack,
    write_config,
)
from tests.integration.test_farm_failover import SharedFarm
from tests.postgres import running_postgres

pytestmark = pytest.mark.peer


def test_whoever_leads_makes_images_and_both_serve_them(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with running_postgres() as postgres:
        farm = make_farm(tmp_path / "farm")
        shared = SharedFarm(farm, postgres.new_database(), "--config", str(config))
        try:
            with pulled_meanwhile(farm, HELLO, port=shared.other.http_port):
                until(farm.client.builds, "the leader should build what the standby was asked for")
                shared.lead.process.kill()
                dead = shared.await_takeover()
            shared.restart(dead)
            shared.add_agent("one")
            made, said = manifest(farm, HELLO)
            assert manifest(farm, HELLO, port=shared.other.http_port) == (made, said)
            # Of one that nobody has asked for yet, through the coordinator that stands by.
            source = f"docker://127.0.0.1:{shared.other.http_port}/shell/git"
            target = f"oci:{tmp_path}/layout:git"
            skopeo("copy", "--src-tls-verify=false", source, target)
            root = unpack(tmp_path / "layout", "git", tmp_path / "bundle")
            assert run(root, "/bin/git").startswith("git init")
        finally:
            farm.stop()
            shared.stop()
