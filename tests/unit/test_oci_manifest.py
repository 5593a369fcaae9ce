"""Manifests, configs and indexes: golden bytes, and what must never change them."""

import json
from dataclasses import replace
from typing import Any

import pytest

from grange.oci.descriptor import LayerDescriptor
from grange.oci.manifest import (
    DOCKER_GZIP,
    OCI_GZIP,
    OCI_ZSTD,
    PLATFORMS,
    WORDS_CHARS_MAX,
    Compression,
    Document,
    Family,
    Layer,
    Runtime,
    Variant,
    choose_variant,
    image,
    index,
    labels,
    no_referrers,
    parse_user,
    parse_words,
)
from grange.oci.refusal import Code, RefusedError

LAYERS = [
    Layer(LayerDescriptor("sha256:" + "a" * 64, "sha256:" + "b" * 64, 1234), "glibc-2.40"),
    Layer(LayerDescriptor("sha256:" + "c" * 64, "sha256:" + "d" * 64, 5 << 32), "the root"),
]
AMD64 = PLATFORMS["x86_64-linux"]
ARM64 = PLATFORMS["aarch64-linux"]
RUNTIME = Runtime(
    entrypoint=("hello", "-g", "grüß"),
    command=("bash",),
    user="65532:65532",
    labels=labels("https://example.org/nixpkgs", "ab" * 20, ["git", "htop"]),
)

GOLDEN_CONFIG = (
    '{"architecture":"amd64","config":{"Cmd":["bash"],"Entrypoint":["hello","-g","grüß"],'
    '"Env":["PATH=/bin:/sbin:/usr/bin","SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt"],'
    '"Labels":{"grange.packages":"git htop",'
    '"org.opencontainers.image.revision":"' + "ab" * 20 + '",'
    '"org.opencontainers.image.source":"https://example.org/nixpkgs"},"User":"65532:65532"},'
    '"created":"1970-01-01T00:00:01Z",'
    '"history":[{"created":"1970-01-01T00:00:01Z","created_by":"glibc-2.40"},'
    '{"created":"1970-01-01T00:00:01Z","created_by":"the root"}],'
    '"os":"linux","rootfs":{"diff_ids":["sha256:' + "a" * 64 + '","sha256:' + "c" * 64 + '"],'
    '"type":"layers"}}'
).encode()
CONFIG_DIGEST = "sha256:1e505b3b1aecff919ff46a3a41c3cb0c3ae18080664ef1a236a6a6f72044049f"


def _read(document: Document) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(document.body)
    return value


def test_the_config_is_these_bytes() -> None:
    made = image(OCI_GZIP, AMD64, RUNTIME, LAYERS)
    assert made.config.body == GOLDEN_CONFIG
    assert made.config.digest == CONFIG_DIGEST


def test_the_manifest_is_these_bytes() -> None:
    layer = "application/vnd.oci.image.layer.v1.tar+gzip"
    wanted = (
        f'{{"config":{{"digest":"{CONFIG_DIGEST}",'
        f'"mediaType":"application/vnd.oci.image.config.v1+json","size":{len(GOLDEN_CONFIG)}}},'
        f'"layers":[{{"digest":"sha256:{"b" * 64}","mediaType":"{layer}","size":1234}},'
        f'{{"digest":"sha256:{"d" * 64}","mediaType":"{layer}","size":21474836480}}],'
        '"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
    )
    made = image(OCI_GZIP, AMD64, RUNTIME, LAYERS)
    assert made.manifest.body == wanted.encode()
    assert made.manifest.media_type == _read(made.manifest)["mediaType"]


@pytest.mark.parametrize(
    ("variant", "manifest", "config", "layer"),
    [
        (
            OCI_ZSTD,
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        (
            DOCKER_GZIP,
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ],
)
def test_other_variants_say_the_same_in_their_own_types(
    variant: Variant, manifest: str, config: str, layer: str
) -> None:
    made = image(variant, AMD64, RUNTIME, LAYERS)
    assert (made.manifest.media_type, made.config.media_type) == (manifest, config)
    assert made.config.body == GOLDEN_CONFIG
    said = _read(made.manifest)
    assert (said["mediaType"], said["config"]["mediaType"]) == (manifest, config)
    assert said["config"]["digest"] == CONFIG_DIGEST
    assert [each["mediaType"] for each in said["layers"]] == [layer] * 2


def test_no_layer_of_docker_is_zstd() -> None:
    with pytest.raises(AssertionError):
        Variant(Family.DOCKER, Compression.ZSTD)


def test_what_is_not_wanted_is_not_said() -> None:
    config = _read(image(OCI_GZIP, ARM64, Runtime(env={}), LAYERS).config)
    assert config["config"] == {"Env": []}
    assert (config["architecture"], config["variant"]) == ("arm64", "v8")
    assert labels(None, None, []) == {"grange.packages": ""}


def test_the_order_of_layers_counts_and_that_of_labels_and_variables_does_not() -> None:
    made = image(OCI_GZIP, AMD64, RUNTIME, LAYERS)
    assert image(OCI_GZIP, AMD64, RUNTIME, LAYERS[::-1]).manifest.digest != made.manifest.digest
    turned = replace(
        RUNTIME,
        env=dict(reversed([*RUNTIME.env.items()])),
        labels=dict(reversed([*RUNTIME.labels.items()])),
    )
    assert image(OCI_GZIP, AMD64, turned, LAYERS) == made


@pytest.mark.parametrize("family", Family)
def test_an_index_names_each_machine_in_any_order(family: Family) -> None:
    variant = Variant(family, Compression.GZIP)
    images = [image(variant, platform, RUNTIME, LAYERS) for platform in (ARM64, AMD64)]
    made = index(family, images)
    assert made == index(family, images[::-1])
    said = _read(made)
    assert said["mediaType"] == made.media_type
    assert [each["platform"] for each in said["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux", "variant": "v8"},
    ]
    for each, of in zip(said["manifests"], reversed(images), strict=True):
        assert each["digest"] == of.manifest.digest
        assert each["size"] == len(of.manifest.body)
        assert each["mediaType"] == of.manifest.media_type


def test_nobody_refers_to_an_image() -> None:
    assert no_referrers().body == (
        b'{"manifests":[],"mediaType":"application/vnd.oci.image.index.v1+json","schemaVersion":2}'
    )


@pytest.mark.parametrize(
    ("accept", "is_zstd_allowed", "variant"),
    [
        (["application/vnd.oci.image.manifest.v1+json"], True, OCI_ZSTD),
        (["application/vnd.oci.image.manifest.v1+json"], False, OCI_GZIP),
        (["application/vnd.oci.image.index.v1+json;q=0.9, text/html"], True, OCI_ZSTD),
        (["application/vnd.docker.distribution.manifest.v2+json", "*/*"], True, DOCKER_GZIP),
        (
            [
                "application/vnd.docker.distribution.manifest.list.v2+json",
                "Application/VND.oci.image.manifest.v1+json",
            ],
            True,
            OCI_ZSTD,
        ),
        ([], True, OCI_GZIP),
        (["*/*"], True, OCI_GZIP),
    ],
)
def test_clients_get_the_best_form_that_they_are_sure_to_read(
    accept: list[str], is_zstd_allowed: bool, variant: Variant
) -> None:
    assert choose_variant(accept, is_zstd_allowed=is_zstd_allowed) == variant


def test_users_and_entrypoints_are_what_runtimes_take() -> None:
    for user in ("root", "65532", "nobody:nogroup", "_x-1:0"):
        assert parse_user(user) == user
    for user in ("", "a b", "A", "a:", ":a", "a:b:c", "1" * 11, "root\n"):
        with pytest.raises(RefusedError, match="is no user") as caught:
            parse_user(user)
        assert caught.value.code is Code.NAME_INVALID
    assert parse_words(["hello", ""]) == ("hello", "")
    assert parse_words([]) == ()
    for words in ([""], ["a\0"], ["a", "\udc80"], ["a" * WORDS_CHARS_MAX]):
        with pytest.raises(RefusedError, match="an entrypoint"):
            parse_words(words)
