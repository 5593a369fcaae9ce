"""The tables of images: what they come to, and how what is wrong in them is named."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from grange.cli.farm_file import FarmFile, read_farm_file
from grange.cli.image_tables import ImageFile, ImageTables, settings_digest
from grange.client.image_models import SourceSpec
from grange.errors import OperatorError
from grange.scheduler.facts import Limits

SOURCE = '[images.sources.nixpkgs]\nchannel = "nixos-25.05"\n'


def farm_file(folder: Path, text: str) -> FarmFile:
    path = folder / "farm.toml"
    path.write_text(text)
    return read_farm_file(path, Limits())


def of_farm(folder: Path, text: str) -> ImageFile:
    file = farm_file(folder, text).images
    assert file is not None
    return file


def test_a_farm_without_the_table_makes_no_images(tmp_path: Path) -> None:
    assert farm_file(tmp_path, "").images is None


def test_what_the_table_says_comes_before_what_holds_by_itself(tmp_path: Path) -> None:
    usual = of_farm(tmp_path, SOURCE)
    assert (usual.settings.layer_budget, usual.settings.fresh_s, usual.wait_s) == (96, 21_600, 30)
    assert (usual.precompute, usual.may_all_pull, usual.unused_s) == ("idle", False, None)
    assert (usual.settings.is_zstd_allowed, usual.evaluates_here) == (False, None)
    said = of_farm(
        tmp_path,
        """
[images]
project = "pulls"
layer_budget = 40
fresh_s = 60
wait_s = 5
precompute = "upload"
zstd = true
anonymous_pulls = true
keep_days = 2
[images.evaluation]
here = false
store = "eval"
agent_tag = "trusted"
timeout_s = 30
memory_bytes = 1_000_000_000
import_from_derivation = true
"""
        + SOURCE,
    )
    settings = said.settings
    assert (settings.project, settings.layer_budget, settings.fresh_s) == ("pulls", 40, 60)
    assert (settings.evaluation_s, settings.evaluation_bytes) == (30, 1_000_000_000)
    assert (settings.may_import, settings.is_zstd_allowed) == (True, True)
    assert (said.wait_s, said.precompute, said.may_all_pull) == (5, "upload", True)
    assert (said.unused_s, said.evaluates_here) == (172_800, False)
    assert (said.store, said.agent_tag) == (tmp_path / "eval", "trusted")


def test_sources_keep_their_order_and_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "ours.nix").write_text("final: prev: { }\n")
    file = of_farm(
        tmp_path,
        """
[images.sources.ours]
path = "packages"
config = { allowUnfree = true, permitted = ["a-1", "b-2"], depth = { of = 3, ratio = 0.5 } }
overlays = ["ours.nix"]
[images.sources.far]
git = "https://git.example/packages.git"
ref = "release-25.05"
[images.sources.near]
git = "../packages.git"
[images.sources.ssh]
git = "git@git.example:packages"
[images.sources.exact]
channel = "https://releases.example/nixexprs.tar.xz"
archive = "https://archive.example/{commit}.tar.gz"
"""
        + SOURCE,
    )
    assert [*file.settings.sources] == ["ours", "far", "near", "ssh", "exact", "nixpkgs"]
    ours, far, near, ssh, exact, nixpkgs = [each.spec for each in file.settings.sources.values()]
    assert file.settings.sources["ours"].settings == settings_digest(ours)
    assert ours == SourceSpec(
        name="ours",
        kind="path",
        location=str(tmp_path / "packages"),
        config={
            "allowUnfree": True,
            "permitted": ["a-1", "b-2"],
            "depth": {"of": 3, "ratio": 0.5},
        },
        overlays=["final: prev: { }\n"],
    )
    assert (far.kind, far.location) == ("git", "https://git.example/packages.git")
    assert far.ref == "release-25.05"
    assert (near.location, near.ref) == (str(tmp_path / "../packages.git"), "")
    assert ssh.location == "git@git.example:packages"
    assert exact.location == "https://releases.example/nixexprs.tar.xz"
    assert exact.archive == "https://archive.example/{commit}.tar.gz"
    assert nixpkgs.archive.startswith("https://github.com/NixOS/nixpkgs/")
    assert (nixpkgs.kind, nixpkgs.location) == (
        "channel",
        "https://channels.nixos.org/nixos-25.05",
    )


def test_settings_are_told_apart_by_config_and_overlays_and_by_no_place() -> None:
    plain = SourceSpec(name="a", kind="path", location="/a")
    digest = settings_digest(plain)
    assert len(digest) == 64
    assert settings_digest(SourceSpec(name="b", kind="git", location="/b", ref="x")) == digest
    turned = {"config": {"a": 1, "b": {"c": 2, "d": 3}}}
    again = {"config": {"b": {"d": 3, "c": 2}, "a": 1}}
    one, two = [settings_digest(plain.model_copy(update=update)) for update in (turned, again)]
    assert one == two, "the order of keys means nothing in Nix"
    others: list[dict[str, object]] = [
        {"config": {"a": True}},
        {"config": {"a": "true"}},
        {"overlays": ["a", "b"]},
        {"overlays": ["b", "a"]},
        {"overlays": ["ab"]},
    ]
    digests = {settings_digest(plain.model_copy(update=update)) for update in others}
    assert len({digest, one, *digests}) == 2 + len(others)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[images]", r"images\.sources is missing"),
        ("[images.sources]", r"images\.sources is \{\}"),
        ("[images]\nlayers = 3\n" + SOURCE, r"images\.layers is not known; project, layer_budget"),
        ("[images]\nlayer_budget = 127\n" + SOURCE, r"images\.layer_budget is 127"),
        ("[images]\nlayer_budget = 1\n" + SOURCE, r"images\.layer_budget is 1:"),
        ('[images]\nfresh_s = "6h"\n' + SOURCE, r"images\.fresh_s is '6h'"),
        ("[images]\nwait_s = 61\n" + SOURCE, r"images\.wait_s is 61"),
        ('[images]\nprecompute = "later"\n' + SOURCE, r"images\.precompute is 'later'"),
        ("[images]\nkeep_days = nan\n" + SOURCE, r"images\.keep_days is nan"),
        (SOURCE + "here = true", r"images\.sources\.nixpkgs\.here is not known; path, git, chan"),
        (SOURCE + 'path = "x"', r"nixpkgs is wrong: .*exactly one .* there is path and channel"),
        (SOURCE + 'ref = "x"', r"nixpkgs is wrong: ref is a branch or tag of git, and .*channel"),
        (
            '[images.sources.a]\npath = "x"\narchive = "https://a/{commit}"',
            "archive is where a chann",
        ),
        (
            SOURCE + 'archive = "https://a/x.tar"',
            r"archive is wrong: 'https://a/x\.tar' is no URL, .* with \{commit\} in it",
        ),
        ("[images.sources.a]", r"images\.sources\.a is wrong: .* there is none"),
        ('[images.sources.a]\ngit = "/a"\nref = "-x"', r"images\.sources\.a\.ref is '-x'"),
        ('[images.sources.a]\ngit = "/a"\nref = "a b"', r"images\.sources\.a\.ref is 'a b'"),
        ('[images.sources.a]\nchannel = "../x"', r"a\.channel is wrong: '\.\./x' is neither"),
        (
            '[images.sources.shell]\npath = "x"',
            "images.sources is wrong: .*cannot be called 'shell",
        ),
        ('[images.sources.Big]\npath = "x"', "the package source 'Big' cannot stand in the name"),
        (SOURCE + "config.day = 2026-01-01", r"nixpkgs\.config is wrong: 2026-01-01 is a date"),
        (SOURCE + "config.big = 9223372036854775808", "9223372036854775808 is no number of 64"),
        (SOURCE + "config.ratio = [inf]", r"nixpkgs\.config is wrong: Nix has no number inf"),
        (SOURCE + 'config.text = "a\\u0000b"', "Nix has no text with a zero byte"),
        (SOURCE + 'config."a\\u0000b" = 1', "Nix has no text with a zero byte"),
        (SOURCE + f"config.deep = {'[' * 30}{']' * 30}", "more than 20 tables deep"),
        (SOURCE + f'config.long = "{"x" * 70_000}"', "more than 64 KiB"),
        (
            SOURCE + 'overlays = ["none.nix"]',
            "overlay of images.sources.nixpkgs, .*none.nix, cannot",
        ),
        (SOURCE + 'overlays = ["large.nix"]', "large.nix, has more than 1 MiB"),
        (SOURCE + 'overlays = ["bytes.nix"]', "bytes.nix, is not UTF-8"),
        (SOURCE + "[images.evaluation]\ntimeout_s = 0", r"images\.evaluation\.timeout_s is 0"),
        (SOURCE + "[images.evaluation]\nmemory_bytes = 1", r"evaluation\.memory_bytes is 1:"),
        (SOURCE + '[images.evaluation]\nhere = "yes"', r"images\.evaluation\.here is 'yes'"),
    ],
)
def test_what_is_wrong_in_the_farms_file_is_named(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "large.nix").write_text("#" * ((1 << 20) + 1))
    (tmp_path / "bytes.nix").write_bytes(b"\xff\xfe")
    with pytest.raises(OperatorError, match=complaint):
        farm_file(tmp_path, text)


def test_an_overlay_of_the_most_that_is_read_is_read(tmp_path: Path) -> None:
    (tmp_path / "large.nix").write_text("#" * (1 << 20))
    file = of_farm(tmp_path, SOURCE + 'overlays = ["large.nix"]')
    assert len(file.settings.sources["nixpkgs"].spec.overlays[0]) == 1 << 20


def test_sources_are_read_anew_and_the_rest_takes_a_restart(tmp_path: Path) -> None:
    overlay = tmp_path / "ours.nix"
    overlay.write_text("a")
    text = SOURCE + 'overlays = ["ours.nix"]\n'
    before = farm_file(tmp_path, text)
    overlay.write_text("b")
    after = farm_file(tmp_path, text)
    assert after.images != before.images
    assert after.needs_start(before) == []
    assert farm_file(tmp_path, text + "config.a = 1").needs_start(before) == []
    for more in (
        "[images.evaluation]\ntimeout_s = 5\nagent_tag = 'x'",
        "[images]\nlayer_budget = 5",
    ):
        assert farm_file(tmp_path, text + more).needs_start(before) == []
    for more in ("[images.evaluation]\nhere = true", "[images]\nproject = 'x'"):
        [told] = farm_file(tmp_path, text + more).needs_start(before)
        assert "of evaluation here or store, of [images]" in told
    without = farm_file(tmp_path, "")
    assert without.needs_start(before) == ["whether there are [images]"]
    assert before.needs_start(without) == ["whether there are [images]"]


VALUES = st.recursive(
    st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(st.characters(codec="ascii")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_one_config_has_one_digest(config: dict[str, object]) -> None:
    spec = SourceSpec(name="a", kind="path", location="/a", config=config)
    turned = spec.model_copy(update={"config": dict(reversed(config.items()))})
    assert settings_digest(spec) == settings_digest(turned)


def test_every_key_is_in_the_operators_page() -> None:
    page = (Path(__file__).parents[2] / "docs/operating/images.md").read_text()
    reference = page.partition("## The file")[2]
    rows = [line.split("|")[1] for line in reference.splitlines() if line.startswith("| `")]
    shown = {word for row in rows for word in row.split("`")[1::2]}
    assert shown == keys(ImageTables) - {"images"}


def keys(model: type[BaseModel]) -> set[str]:
    found = set(model.model_fields)
    for each in model.model_fields.values():
        kinds = [each.annotation]
        while kinds:
            kind = kinds.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= keys(kind)
            kinds += get_args(kind)
    return found
