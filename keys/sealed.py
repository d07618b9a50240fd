"""Key files that a passphrase seals."""

from __future__ import annotations

from typing import Literal

from hefl.errors import KeyFileError
from hefl.identity import Identity
from hefl.keys.file_format import AGAIN, FIELDS, VERSION_LINE, KeyFile, checksummed, from_base64, lines, to_base64
from hefl.keys.passphrase import Passphrase, Scrypted

Content = Literal["secret", "tls-key"]
"""What a sealed file holds: a secret key file, or a private TLS key in PEM."""


def is_sealed(data: bytes) -> bool:
    """Whether a file's bytes begin as a sealed file's do."""
    return data.startswith(f"{VERSION_LINE} sealed\n".encode())


def seal(data: bytes, content: Content, identity: Identity, holder: str, passphrase: Passphrase) -> bytes:
    """A sealed file that holds ``data``; its tag covers every line before it."""
    more = {"content": content, "kdf": str(passphrase.fresh())}
    head = lines("sealed", identity, holder, more, FIELDS["sealed"][:-2])
    return checksummed(head + f"sealed: {to_base64(passphrase.seal(data, head))}\n".encode("ascii"))


def unseal(file: KeyFile, content: Content, passphrase: Passphrase | None) -> bytes:
    """What a sealed file holds.

    Raises:
        KeyFileError: It holds something else, or the passphrase does not open it.
    """
    if file.fields["content"] != content:
        raise KeyFileError(f"{file.path} holds a {file.fields['content']}, not a {content}", hint=AGAIN)
    if passphrase is None:
        raise KeyFileError(f"{file.path} is sealed with a passphrase", hint="give it with --passphrase-file F")
    kdf = Scrypted.parse(file.fields["kdf"], file.path)
    head = lines("sealed", file.identity, file.holder, file.fields, FIELDS["sealed"][:-2])
    data = passphrase.open(file.path, kdf, from_base64(file, "sealed"), head)
    if data is None:
        raise KeyFileError(
            f"the passphrase does not open {file.path}",
            hint="it is the one that 'hefl keygen' was given when it made this file",
        )
    return data
