"""Describe a file of hefl's: what it is, what it holds, who may see it, what is wrong.

Nothing here returns a secret. Secret contexts and private keys are read and checked; what is told of them is public.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cryptography import x509

from hefl.ckks.context import open_public, open_secret
from hefl.errors import HeflError, KeyFileError, SecretAtServerError, UsageError
from hefl.files import read_private
from hefl.inspection.compare import WHOLE_FOLDER, FileReport, References, compared
from hefl.keys import credentials, file_format, folders, keyfile
from hefl.keys.strays import AWAY, strays_in
from hefl.keys.tls import holder_of
from hefl.models.file import SUFFIXES, read_arrays
from hefl.protocol import frames
from hefl.server.journal import read_moment

FIRST_BYTES = 64
"""Enough to tell what a file is."""


def inspect(paths: Sequence[Path]) -> list[FileReport]:
    """Describe files, and those in folders, and compare them with each other.

    Raises:
        UsageError: A path does not exist, or there is no file.
    """
    found = {file: _describe(file) for path in paths for file in _files(path)}
    if not found:
        raise UsageError(f"there is no file in {', '.join(map(str, paths))}")
    places = sorted({file.parent for file in found} & {folder for path in paths for folder in _folders(path)})
    return compared([*found.values(), *(finding for folder in places for finding in _whole(folder))])


def _files(path: Path) -> Iterator[Path]:
    """A file itself; of a folder every file below it, but locks and what is half written."""
    if not path.exists() and not path.is_symlink():
        raise UsageError(f"{path} does not exist", hint="name files or folders of hefl's")
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        # What begins with two dots is how Kubernetes lays the files of a Secret out.
        if child.name != "lock" and child.suffix != ".part" and not child.name.startswith(".."):
            yield from _files(child)


def _folders(path: Path) -> Iterator[Path]:
    """A folder, and those below it."""
    if path.is_dir() and not path.is_symlink():
        yield path
        for child in path.iterdir():
            yield from _folders(child)


def _whole(folder: Path) -> Iterator[FileReport]:
    """What a party's folder lacks, or may not hold, or who may enter it that may not."""
    present = {path.name for path in folder.iterdir()}
    kind, names = max(folders.FOLDERS.items(), key=lambda item: len(present.intersection(item[1])))
    if len(present.intersection(names)) < 2:
        return
    problems: list[HeflError] = [
        KeyFileError(f"{folder / name} is missing", hint=WHOLE_FOLDER)
        for name in folders.FOLDERS[kind]
        if name not in present
    ]
    try:
        if kind == "server":
            problems += (
                SecretAtServerError(f"{stray.path} is a secret file in a server's folder: {stray.what}", hint=AWAY)
                for stray in strays_in(folder)
            )
        folders.check_private(folder)
    except HeflError as error:
        problems.append(error)
    if problems:
        whose = "a client's" if kind == "client" else f"the {kind}'s"
        yield FileReport(path=folder, what=f"{whose} folder", problems=tuple(problems))


# --- one file ---------------------------------------------------------------------------------------------------------


def _describe(path: Path) -> FileReport:
    """What one file is; whatever is wrong with it is told, not raised."""
    try:
        with path.open("rb") as file:
            start = file.read(FIRST_BYTES)
    except OSError as error:
        return FileReport(
            path=path, what="unknown", problems=(KeyFileError(f"{path} cannot be read: {error.strerror}"),)
        )
    kind = next((k for k in _KINDS if start.startswith(k.begins)), None)
    if kind is None and start and path.suffix in SUFFIXES:
        kind = _Kind(b"", "a model", _model)
    if kind:
        try:
            return kind.describe(path)
        except HeflError as error:
            return FileReport(path=path, what=f"{kind.what}, which cannot be used", problems=(error,))
    what = "an empty file" if not start else "no file that hefl inspects"
    known = {name for names in folders.FOLDERS.values() for name in names}
    if path.name not in known:
        return FileReport(path=path, what=what)
    return FileReport(path=path, what=what, problems=(KeyFileError(f"{path} is {what}", hint=file_format.AGAIN),))


def _key_file(path: Path) -> FileReport:
    file = file_format.read(path)
    kind, shown = file.kind, file.fields
    fingerprints = "-".join(shown[name] for name in ("ckks-fingerprint", "group-fingerprint") if name in shown)
    ties = References(
        identity=file.identity,
        holder=file.holder,
        is_client=file.holder not in ("server", "authority"),
        fingerprints=fingerprints,
        clients=frozenset(shown.get("clients", "").split()),
        hosts=tuple(urlsplit(url).hostname or "" for url in shown.get("servers", "").split()),
    )
    if kind == "secret":
        open_secret(keyfile.read_secret(path)[1])
    elif kind == "public":
        open_public(keyfile.read_public(path)[1])
    elif kind == "clients":
        keyfile.read_clients(path)
    what, audience = _KEY_FILES[shown["content"] if kind == "sealed" else kind]
    details = [(n, shown[n]) for n in ("created", "tenseal", "seal", "clients", "revoked", "servers") if n in shown]
    if kind == "sealed":
        details.append(("sealed", "with a passphrase; what is inside was not looked at"))
    expected = f"{shown['content'] if kind == 'sealed' else kind}.hefl"
    problems = _misnamed(path, expected) if expected != "tls-key.hefl" else ()
    return FileReport(
        path=path,
        what=what,
        audience=audience.format(file.holder),
        details=tuple(details),
        references=ties,
        problems=problems,
    )


_KEY_FILES = {
    "secret": ("secret keys", "{} alone: whoever has it and sees ciphertexts can read every update"),
    "public": ("the server's keyless context", "the server, and anybody: it holds no secret"),
    "clients": ("the list of clients", "the authority and the server: it names who takes part"),
    "address": ("the server's addresses", "{}, and anybody: it holds no secret"),
    "tls-key": ("a private TLS key", "{} alone: whoever has it can pose as its holder"),
}


def _certificate(path: Path) -> FileReport:
    certificate = credentials.read_certificate(path)
    holder = holder_of(certificate, path)
    end = certificate.not_valid_after_utc
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    problems: list[HeflError] = []
    try:
        credentials.check_validity(str(path), certificate)
    except HeflError as error:
        problems.append(error)
    notice = None if problems else credentials.expiry_notice(str(path), certificate)
    whose = f"client {holder.name}" if holder.is_client else f"the {holder.name}"
    return FileReport(
        path=path,
        what=f"the certificate of {whose}",
        audience="anybody",
        details=(
            ("valid", f"{certificate.not_valid_before_utc:%Y-%m-%d} to {end:%Y-%m-%d}"),
            *((("names", " ".join(hosts)),) if hosts else ()),
        ),
        references=References(
            identity=holder.identity,
            holder=holder.name,
            is_client=holder.is_client,
            certificate=certificate,
            hosts=tuple(hosts),
        ),
        problems=tuple(problems),
        notices=(notice,) if notice else (),
    )


def _private_key(path: Path) -> FileReport:
    key = credentials.parse_key(path, read_private(path, credentials.MAX_BYTES))
    return FileReport(
        path=path,
        what="a private TLS key",
        audience="its holder alone: whoever has it can pose as the holder",
        details=(("sealed", "no: it needs no passphrase"),),
        references=References(public_key=key.public_key()),
    )


def _frame(path: Path) -> FileReport:
    frame = frames.open_frame(path)
    header = frame.header
    of = f"round {header.round}, attempt {header.attempt}"
    update = header.kind == "update"
    return FileReport(
        path=path,
        what=f"the encrypted update of client {header.name}, {of}" if update else f"the encrypted sum of {of}",
        audience="whoever holds no secret.hefl of its key generation: with one, it can be read",
        details=(
            ("engine", header.engine),
            ("values", f"{header.values:,} in {header.block_count} blocks"),
            *((("members", " ".join(m.name for m in frame.members)),) if frame.members else ()),
        ),
        references=References(identity=header.identity),
    )


def _journal(path: Path) -> FileReport:
    run = read_moment(path.parent).run
    return FileReport(
        path=path,
        what="the journal of a run, at the server",
        audience="the server's operator: it names who takes part",
        details=(("run", run.run), ("state", f"{run.phase.value}, round {run.shown_round} of {run.last_training}")),
    )


def _model(path: Path) -> FileReport:
    arrays = read_arrays(path)
    return FileReport(
        path=path,
        what="a model, not encrypted",
        audience="the clients: a model can tell of the data that it was trained on",
        details=(
            ("values", f"{sum(a.size for a in arrays.values()):,} in {len(arrays)} tensors"),
            *((name, f"{array.dtype.name} {array.shape}") for name, array in arrays.items()),
        ),
    )


class _Kind(NamedTuple):
    """A kind of file: how its bytes begin, what it is called, and who describes it."""

    begins: bytes
    what: str
    describe: Callable[[Path], FileReport]


_KINDS = (
    _Kind(b"hefl/", "a key file", _key_file),
    _Kind(b"-----BEGIN CERTIFICATE", "a certificate", _certificate),
    _Kind(b"-----BEGIN", "a private key", _private_key),
    _Kind(frames.MAGIC, "an update or a sum", _frame),
    _Kind(b"SQLite format 3\0", "a run's journal", _journal),
)


def _misnamed(path: Path, expected: str) -> tuple[HeflError, ...]:
    """A key file under another kind's name is read as that, and refused."""
    if path.suffix != ".hefl" or path.name == expected:
        return ()
    return (KeyFileError(f"{path} is called {path.name}, and holds what {expected} does", hint=WHOLE_FOLDER),)
