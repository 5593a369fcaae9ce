"""Signing keys and signatures, in the format of ``nix-store --generate-binary-cache-key``.

``name:base64``: 32 bytes of Ed25519 for a public key, the same behind their 32 bytes of seed for a
secret one, 64 bytes for a signature. The name says which key to check with, and is not signed.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from grange.errors import OperatorError

SEED_BYTES: Final = 32
PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


def _split(text: str, size: int) -> tuple[str, bytes] | None:
    """Name and bytes of ``name:base64``, or None where the text is anything else."""
    name, _, encoded = text.partition(":")
    try:
        data = b64decode(encoded, validate=True)
    except ValueError:
        return None
    if not name or not name.isprintable() or " " in name or len(data) != size:
        return None
    return name, data


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks signatures."""

    name: str
    data: bytes
    _key: Ed25519PublicKey = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64``; raises OperatorError, since trusted keys are configuration."""
        parts = _split(text.strip(), PUBLIC_BYTES)
        if parts is None:
            raise OperatorError(
                f"{text[:200]!r} is not a public key; write it as Nix prints it, "
                "'name:' and the base 64 of 32 bytes"
            )
        return cls(*parts, Ed25519PublicKey.from_public_bytes(parts[1]))

    def show(self) -> str:
        return f"{self.name}:{b64encode(self.data).decode()}"

    def verify(self, text: str, signature: str) -> bool:
        """Whether `signature`, ``name:base64``, is this key's for `text`; junk is not."""
        parts = _split(signature, SIGNATURE_BYTES)
        if parts is None or parts[0] != self.name:
            return False
        try:
            self._key.verify(parts[1], text.encode())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key that signs. It shows its name only; `show` gives the secret away."""

    public: PublicKey
    _seed: bytes = field(repr=False)
    _key: Ed25519PrivateKey = field(compare=False, repr=False)

    @classmethod
    def generate(cls, name: str, seed: bytes) -> Self:
        """The key that follows from 32 random bytes; raises OperatorError for an unusable name."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        data = key.public_key().public_bytes_raw()
        public = PublicKey.parse(f"{name}:{b64encode(data).decode()}")
        if public.name != name:
            raise OperatorError(f"{name[:200]!r} cannot name a key; leave out colons and spaces")
        return cls(public, seed, key)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64`` of a key file; raises OperatorError, which never quotes it."""
        parts = _split(text.strip(), SEED_BYTES + PUBLIC_BYTES)
        if parts is not None:
            name, data = parts
            key = cls.generate(name, data[:SEED_BYTES])
            if key.public.data == data[SEED_BYTES:]:
                return key
        raise OperatorError(
            "this is not a secret key of Nix, 'name:' and the base 64 of 64 bytes; make one with: "
            "grange key generate"
        )

    def show(self) -> str:
        """The text of a key file: the secret itself."""
        return f"{self.public.name}:{b64encode(self._seed + self.public.data).decode()}"

    def sign(self, text: str) -> str:
        """``name:base64``, as in the ``Sig`` of a narinfo."""
        return f"{self.public.name}:{b64encode(self._key.sign(text.encode())).decode()}"


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The keys whose word is taken, by name; several may share one while a key is replaced."""

    by_name: Mapping[str, tuple[PublicKey, ...]]

    @classmethod
    def of(cls, keys: Iterable[PublicKey]) -> Self:
        by_name: dict[str, tuple[PublicKey, ...]] = {}
        for key in keys:
            by_name[key.name] = (*by_name.get(key.name, ()), key)
        return cls(by_name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read keys between white space, as ``trusted-public-keys`` of nix.conf has them."""
        return cls.of(map(PublicKey.parse, text.split()))

    def signer(self, text: str, signatures: Iterable[str]) -> PublicKey | None:
        """The first trusted key that signed `text`, or None."""
        for signature in signatures:
            for key in self.by_name.get(signature.partition(":")[0], ()):
                if key.verify(text, signature):
                    return key
        return None
