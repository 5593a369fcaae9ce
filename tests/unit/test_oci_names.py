"""Names and tags of images: what they mean, and the words for what means nothing."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import OperatorError, PeerError
from grange.oci.names import (
    NAME_CHARS_MAX,
    PACKAGES_MAX,
    Digest,
    ImageName,
    Tag,
    folded,
    parse_name,
    parse_reference,
    parse_sources,
    spelled,
    unknown_packages,
)
from grange.oci.refusal import MESSAGE_CHARS_MAX, Code, RefusedError, error_body

SPELLINGS = {
    (): folded(["bashInteractive", "haskellPackages", "hello", "git", "_1password", "htop", "GIT"]),
    ("haskellPackages",): folded(["HUnit", "hunit", "Cabal"]),
}
PACKAGES = st.from_regex(r"[a-z0-9]{1,8}(?:[._-][a-z0-9]{1,5}){0,2}", fullmatch=True).filter(
    lambda package: (
        package not in ("shell", "arm64", "work")
        and not package.startswith(("entrypoint.", "user."))
    )
)


def test_meta_packages_lead_in_any_order_and_packages_follow_in_any_order() -> None:
    wanted = ImageName(None, True, True, ("git", "htop"))
    for name in ("shell/arm64/git/htop", "arm64/shell/htop/git", "arm64/shell/shell/git/htop/git"):
        assert parse_name(name) == wanted
    assert wanted.show() == "shell/arm64/git/htop"
    assert wanted.system == "aarch64-linux"
    assert parse_name("git").system == "x86_64-linux"


def test_a_shell_alone_is_an_image() -> None:
    assert parse_name("shell").attributes({}) == (
        ("bashInteractive",),
        ("cacert",),
        ("coreutils",),
        ("iana-etc",),
        ("moreutils",),
        ("nano",),
    )


def test_how_a_container_starts_stands_before_packages() -> None:
    wanted = ImageName(None, True, False, ("git",), "python3.11", "web:65532")
    for name in (
        "shell/entrypoint.python3.11/user.web.65532/git",
        "user.web.65532/entrypoint.python3.11/shell/user.web.65532/git",
    ):
        assert parse_name(name) == wanted
    assert wanted.show() == "shell/entrypoint.python3.11/user.web.65532/git"
    assert wanted.without_runtime() == parse_name("shell/git")
    assert parse_name("user.nobody/shell").user == "nobody"
    assert parse_name("work/user.0/a", {"work"}) == ImageName("work", False, False, ("a",), "", "0")


def test_packages_that_only_resemble_meta_packages_are_packages() -> None:
    names = ("entrypoint", "linuxpackages.user", "user", "users.x")
    assert parse_name("/".join(names)).packages == names


def test_a_source_stands_first_and_hides_no_package_of_its_own() -> None:
    sources = parse_sources(["work", "unstable"])
    assert parse_name("work/shell/git", sources) == ImageName("work", True, False, ("git",))
    assert parse_name("work/git", ()) == ImageName(None, False, False, ("git", "work"))
    assert parse_name("work/unstable/work", sources).packages == ("unstable", "work")
    with pytest.raises(RefusedError, match="'work' in 'git/work' is no package"):
        parse_name("git/work", sources)


@given(st.sets(PACKAGES, min_size=1, max_size=6), st.booleans(), st.booleans(), st.randoms())
def test_a_name_shown_is_the_same_image_and_order_is_none(
    packages: set[str], has_shell: bool, in_source: bool, chance: random.Random
) -> None:
    parts = sorted(packages)
    chance.shuffle(parts)
    leading = ["work"] * in_source + ["shell"] * has_shell
    image = parse_name("/".join([*leading, *parts]), {"work"})
    assert image == ImageName("work" if in_source else None, has_shell, False, tuple(sorted(parts)))
    assert parse_name(image.show(), {"work"}) == image


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty part"),
        ("git//htop", "empty part"),
        ("/git", "empty part"),
        ("git/", "empty part"),
        ("..", "is no package"),
        ("git/../../etc", "is no package"),
        ("git/.", "is no package"),
        ("git/.hidden", "registries want"),
        ("a..b", "registries want"),
        ("a___b", "registries want"),
        ("git\n", "registries want"),
        ("git%2fhtop", "registries want"),
        ("gít", "ASCII"),
        ("git/٣", "ASCII"),
        ("GitHub", "write 'github'"),
        ("a.b.c.d.e.f.g.h.i", "more than 8 parts"),
        ("arm64", "names no package"),
        ("git/shell", "before all packages"),
        ("git/arm64", "before all packages"),
        ("git/entrypoint.git", "before all packages"),
        ("git/user.nobody", "before all packages"),
        ("entrypoint.git", "names no package"),
        ("entrypoint.a/entrypoint.b/git", "'entrypoint.a' and 'entrypoint.b'"),
        ("user.a/user.b/git", "starts in one way"),
        ("user.a.b.c/git", "is no user"),
        ("user.1a/git", "is no user"),
        ("/".join(["git"] * 10_000), "10000 parts"),
        ("/".join(["a"] * (PACKAGES_MAX + 1)), f"{PACKAGES_MAX + 1} parts"),
        ("a" * (NAME_CHARS_MAX + 1), "characters"),
    ],
)
def test_what_is_no_name_is_refused_with_a_remedy(name: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        parse_name(name)
    assert (caught.value.code, caught.value.code.status) == (Code.NAME_INVALID, 400)
    assert len(str(caught.value)) < 500


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        image = parse_name(text)
    except PeerError:
        return
    assert parse_name(image.show()) == image


def test_attributes_are_spelled_as_their_own_set_spells_them() -> None:
    assert spelled("bashinteractive", SPELLINGS) == ("bashInteractive",)
    assert spelled("1password", SPELLINGS) == ("_1password",)
    assert spelled("haskellpackages.cabal", SPELLINGS) == ("haskellPackages", "Cabal")
    assert spelled("haskellpackages.bashinteractive", SPELLINGS) == (
        "haskellPackages",
        "bashinteractive",
    )


def test_a_name_that_needs_no_folding_hides_those_that_do() -> None:
    assert spelled("git", SPELLINGS) == ("git",)
    assert spelled("haskellpackages.hunit", SPELLINGS) == ("haskellPackages", "hunit")
    assert folded(["AB", "aB"]) == folded(["aB", "AB"]) == {"ab": "AB"}
    assert folded(["_7z", "7z"]) == {"7z": "7z"}


def test_without_spellings_only_a_leading_digit_is_changed() -> None:
    assert spelled("7zip.x", {}) == ("_7zip", "x")
    assert spelled("haskellpackages.3d-graphics", {}) == ("haskellpackages", "3d-graphics")
    assert parse_name("7zip").attributes({}) == (("_7zip",), ("cacert",), ("iana-etc",))


def test_unknown_packages_are_told_with_what_is_near() -> None:
    error = unknown_packages(["hunit2", "helo", "haskellpackages.caball", "zzz"], SPELLINGS)
    assert error.code is Code.MANIFEST_UNKNOWN
    assert str(error) == (
        "the package set has no 'haskellpackages.caball' (did you mean haskellpackages.cabal?), "
        "'helo' (did you mean hello?), 'hunit2', 'zzz'"
    )
    many = unknown_packages([f"q{number}" for number in range(20)], SPELLINGS)
    assert str(many).endswith("and 15 more")


def test_references_are_tags_or_digests() -> None:
    commit = "ab" * 20
    digest = "sha256:" + "0" * 64
    assert parse_reference(digest) == Digest.parse(digest)
    tag = parse_reference(commit)
    assert isinstance(tag, Tag)
    assert tag.is_commit
    for text in ("latest", "release-24.05", "_x", "a" * 128):
        found = parse_reference(text)
        assert isinstance(found, Tag)
        assert not found.is_commit


@pytest.mark.parametrize("text", ["a" * 129, "", ".x", "-x", "a/b", "ä", "latest\n"])
def test_what_is_no_tag_is_unknown(text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_reference(text)
    assert (caught.value.code, caught.value.code.status) == (Code.MANIFEST_UNKNOWN, 404)


@pytest.mark.parametrize(
    "text",
    ["sha256-" + "0" * 64, "sha256-ab.sig", "sha512-" + "a" * 64, "v1.sig", "x.att", "x.sbom"],
)
def test_tags_of_signatures_and_attachments_are_never_packages(text: str) -> None:
    with pytest.raises(RefusedError, match="reserved") as caught:
        parse_reference(text)
    assert caught.value.code is Code.MANIFEST_UNKNOWN


@pytest.mark.parametrize(
    "text", ["sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "md5:" + "0" * 32, "a:b"]
)
def test_a_bad_digest_is_told_as_one(text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_reference(text)
    assert (caught.value.code, caught.value.code.status) == (Code.DIGEST_INVALID, 400)


def test_sources_are_named_so_that_names_can_carry_them() -> None:
    for name in ("shell", "arm64", "user.x", "entrypoint.x", "Work", "a/b", "", "x" * 129):
        with pytest.raises(OperatorError):
            parse_sources([name])


def test_refusals_are_told_in_the_specifications_json() -> None:
    error = RefusedError(Code.TOO_MANY_REQUESTS, "still building", {"log": "https://farm/1"})
    assert error.body() == (
        b'{"errors":[{"code":"TOOMANYREQUESTS","detail":{"log":"https://farm/1"},'
        b'"message":"still building"}]}'
    )
    long = json.loads(error_body([RefusedError(Code.DENIED, "é" * 9000), error]))["errors"]
    assert len(long[0]["message"]) == MESSAGE_CHARS_MAX
    assert [each["code"] for each in long] == ["DENIED", "TOOMANYREQUESTS"]
    assert all(code.status in range(400, 500) for code in Code)
