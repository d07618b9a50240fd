"""Seal and open files with a passphrase: scrypt (RFC 7914) and ChaCha20-Poly1305 (RFC 8439)."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hefl.errors import KeyFileError, UsageError
from hefl.files import read_private

MAX_FILE_BYTES = 4096
_NONCE_BYTES, _TAG_BYTES = 12, 16
_LIMITS = {"n": 1 << 18, "r": 8, "p": 4}
"""A file may ask for no more: 256 MiB of memory, four times."""


@dataclass(frozen=True, slots=True)
class Scrypted:
    """How a key is made of a passphrase.

    Attributes:
        salt: 16 bytes, random.
        n: Cost in memory and time, a power of two; the key takes 128 * n * r bytes to make.
        r: Size of a block in 128 bytes.
        p: Repetitions.
    """

    salt: bytes
    n: int = 1 << 17
    r: int = 8
    p: int = 1

    FORM = r"scrypt [1-9][0-9]{0,6}:[1-9][0-9]?:[1-9][0-9]? [0-9a-f]{32}"

    def __str__(self) -> str:
        return f"scrypt {self.n}:{self.r}:{self.p} {self.salt.hex()}"

    @classmethod
    def parse(cls, text: str, path: Path) -> Scrypted:
        """From a file's ``kdf``, in form. Raises KeyFileError where it asks for what nobody should compute."""
        n, r, p, salt = re.split("[ :]", text)[1:]
        found = cls(bytes.fromhex(salt), int(n), int(r), int(p))
        if found.n > _LIMITS["n"] or found.r > _LIMITS["r"] or found.p > _LIMITS["p"] or found.n & (found.n - 1):
            most = ":".join(map(str, _LIMITS.values()))
            raise KeyFileError(
                f"{path}: scrypt {n}:{r}:{p} is more than {most}, or {n} is no power of two",
                hint="copy the file again",
            )
        return found


class Passphrase:
    """Seals files, and opens them; asks for its words when they are first needed.

    Args:
        ask: Gives the words, and is told what for; it is called once at most.
    """

    def __init__(self, ask: Callable[[str], str]) -> None:
        self._ask = ask
        self._words: bytes | None = None
        self._keys: dict[Scrypted, bytes] = {}
        self._fresh: Scrypted | None = None

    def __repr__(self) -> str:
        return "Passphrase()"

    @classmethod
    def from_file(cls, path: Path) -> Passphrase:
        """The first line of a file that only its owner may read; a byte-order mark before it is no part of it.

        Raises:
            KeyFileError: It is missing, a link, readable by others, or no UTF-8 text.
        """
        data = read_private(path, MAX_FILE_BYTES)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
            raise KeyFileError(
                f"{path} is UTF-16 or UTF-32 text, and not UTF-8",
                hint="save it again as UTF-8, in Windows' Notepad under 'Save as', 'Encoding'",
            )
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise KeyFileError(
                f"{path} is not UTF-8 text", hint="save it again as UTF-8; its first line is the passphrase"
            ) from error
        line = re.split("[\r\n]", text, maxsplit=1)[0]
        if not line:
            raise KeyFileError(f"{path} begins with an empty line", hint="its first line is the passphrase")
        return cls(lambda _: line)

    def fresh(self) -> Scrypted:
        """How this process makes its key: one salt for all that it seals, because each key takes a second."""
        self._fresh = self._fresh or Scrypted(os.urandom(16))
        return self._fresh

    def seal(self, data: bytes, associated: bytes) -> bytes:
        """Nonce, ciphertext and tag, under the key that ``fresh`` tells how to make."""
        nonce = os.urandom(_NONCE_BYTES)
        key = self._key(self.fresh(), "new keys")
        return nonce + ChaCha20Poly1305(key).encrypt(nonce, data, associated)

    def open(self, path: Path, kdf: Scrypted, sealed: bytes, associated: bytes) -> bytes | None:
        """What was sealed, or None where the words are not those, or a byte differs."""
        if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
            return None
        try:
            return ChaCha20Poly1305(self._key(kdf, str(path))).decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated
            )
        except InvalidTag:
            return None

    def _key(self, kdf: Scrypted, what: str) -> bytes:
        if self._words is None:
            self._words = _bytes(self._ask(what))
        if kdf not in self._keys:
            self._keys[kdf] = Scrypt(kdf.salt, 32, kdf.n, kdf.r, kdf.p).derive(self._words)
        return self._keys[kdf]


def _bytes(words: str) -> bytes:
    """The same bytes on every machine, however its keyboard composes an accent."""
    if not words:
        raise UsageError("a passphrase has at least one character")
    try:
        return unicodedata.normalize("NFC", words).encode()
    except UnicodeEncodeError as error:
        raise UsageError("the passphrase is not text in this terminal's encoding") from error
