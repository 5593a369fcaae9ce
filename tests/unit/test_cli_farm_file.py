"""The coordinator's file: what it may say, and how it is told what it may not."""

from pathlib import Path

import pytest

from grange.cli.config import Address, ServeConfig
from grange.cli.farm_file import FarmFile, TlsPaths, read_farm_file
from grange.errors import OperatorError
from grange.scheduler.facts import Limits, Policy, ProjectRule

GIVEN = Limits(silent_s=5, log_bytes=1000)


def read(folder: Path, text: str) -> FarmFile:
    path = folder / "farm.toml"
    path.write_text(text)
    return read_farm_file(path, GIVEN)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == FarmFile(GIVEN, {}, Policy(), is_fresh=False)


@pytest.mark.parametrize(
    ("http", "agents", "public_url", "is_refused"),
    [
        ("127.0.0.1:0", "[::1]:0", None, False),
        ("127.0.0.1:0", "localhost:0", "http://localhost:7380", False),
        ("0.0.0.0:0", "127.0.0.1:0", None, True),
        ("127.0.0.1:0", "[::]:0", None, True),
        ("127.0.0.1:0", "127.0.0.1:0", "https://farm.example", True),
        ("0.0.0.0:0", "127.0.0.1:0", "http://127.0.0.1:7380", True),
    ],
)
def test_only_a_farm_of_one_machine_trusts_that_machine(
    tmp_path: Path, http: str, agents: str, public_url: str | None, is_refused: bool
) -> None:
    file = read(tmp_path, "[access]\ntrust_loopback = true")
    assert file.trusts_loopback is True
    addresses = Address.parse(http), Address.parse(agents)
    config = ServeConfig(*addresses, public_url=public_url, farm=file)
    ServeConfig(*addresses, public_url=public_url, farm=read(tmp_path, "")).check()
    if is_refused:
        with pytest.raises(OperatorError, match="trust_loopback is for farms that only their own"):
            config.check()
    else:
        config.check()


def test_a_project_starts_from_the_farms_limits(tmp_path: Path) -> None:
    text = """
        present_outputs = "delete"
        [limits]
        build_s = 60
        [projects.slow]
        share = 2
        [projects.slow.limits]
        build_s = 0
        output_bytes = 7
        [retries]
        failures_max = 2
        backoff_s = 1
    """
    assert read(tmp_path, text) == FarmFile(
        Limits(silent_s=5, build_s=60, log_bytes=1000),
        {
            "slow": ProjectRule(
                share=2.0,
                limits=Limits(silent_s=5, build_s=0, log_bytes=1000, output_bytes=7),
            )
        },
        Policy(failures_max=2, backoff_s=1.0),
        is_fresh=True,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limit = 1", "limit is not known"),
        ("[limits]\nbuild = 1", "limits.build is not known; silent_s, build_s, log_bytes, output_"),
        ("[projects.a.keep]\nx = 1", "projects.a.keep.x is not known; last, days, inputs are"),
        ("[tls]\nca = 'x'", "tls.ca is not known; certificate, key, client_ca are"),
        ("[hooks.a]\nwhen = 'x'", "hooks.a.when is not known; "),
        ("[[derivation_sources]]\nkeys = []", "keys is not known; url, public_keys are"),
        ("[[derivation_sources]]\nurl = 'ftp://x'", "derivation_sources.0.url is 'ftp://x'"),
        ("[limits]\nbuild_s = -1", "limits.build_s is -1: input should be greater than or equal"),
        ("[limits]\nbuild_s = 1.5", "limits.build_s is 1.5: input should be a valid integer"),
        ("[limits]\nbuild_s = true", "limits.build_s is True: input should be a valid integer"),
        ("[retries]\nbackoff_s = nan", "retries.backoff_s is nan: input should be a finite"),
        ("[retries]\nfailures_max = 0", "input should be greater than or equal to 1"),
        ("[retries]\nlease_s = 1", "say it with --lease"),
        ("[projects.a]\nbuild_s = 1", "projects.a.build_s is not known"),
        ("[projects.a]\nshare = 0", "input should be greater than 0"),
        ("[projects]\na = 1", "projects.a is 1: input should be a valid dictionary"),
        ("limits = 3", "limits is 3: input should be a valid dictionary"),
        ('present_outputs = "keep"', "present_outputs is 'keep': input should be 'reuse' or"),
        ("limit = 1\n[limits]\nbuild = 1", "limits.build is not known"),
        ("[limits", "is not TOML"),
        ('[access]\nanonymous = "all"', "access.anonymous is 'all': input should be 'read' or"),
        ('[tls]\ncertificate = "a.pem"', "tls.key"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(OperatorError) as refused:
        read(tmp_path, text)
    assert said in str(refused.value)
    assert "farm.toml" in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"none\.toml cannot be read"):
        read_farm_file(tmp_path / "none.toml", GIVEN)


def test_certificates_lie_beside_the_file_that_names_them(tmp_path: Path) -> None:
    farm = read(
        tmp_path,
        '[access]\nanonymous = "none"\n[tls]\ncertificate = "a.pem"\nkey = "/etc/a.key"\n',
    )
    assert farm.anonymous == "none"
    assert farm.tls == TlsPaths(tmp_path / "a.pem", Path("/etc/a.key"))
    nothing = read(tmp_path, "")
    assert (nothing.anonymous, nothing.tls) == (None, None)
