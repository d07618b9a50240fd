"""Compare files with each other: federation, generation, party."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hefl.errors import HeflError, MismatchError
from hefl.identity import Identity
from hefl.keys.credentials import is_signed_by

WHOLE_FOLDER = "copy the whole folder again: its files belong together"


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What a file says of its place among others; each is empty where it says nothing.

    Attributes:
        identity: Federation and key generation.
        holder: Whom it was issued to.
        is_client: The holder is a client.
        fingerprints: Of the keys that it holds, or that belong to it.
        certificate, public_key: What it holds, or the public half of what it holds.
        clients: Names on a server's list.
        hosts: Under which clients call the server.
    """

    identity: Identity | None = None
    holder: str = ""
    is_client: bool = False
    fingerprints: str = ""
    certificate: x509.Certificate | None = field(default=None, repr=False)
    public_key: ec.EllipticCurvePublicKey | None = field(default=None, repr=False)
    clients: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """One file, described.

    Attributes:
        path: Where it is.
        what: Its kind, in words.
        audience: Who may see it.
        details: What it holds: a label and a text each.
        references: What it says of its place among others.
        problems: What is wrong with it.
        notices: What is not wrong yet.
    """

    path: Path
    what: str
    audience: str = ""
    details: tuple[tuple[str, str], ...] = ()
    references: References = References()
    problems: tuple[HeflError, ...] = ()
    notices: tuple[str, ...] = ()


def compared(findings: Sequence[FileReport]) -> list[FileReport]:
    """Each finding, with what does not fit the others added to its problems."""
    identities = Counter(f.references.identity for f in findings if f.references.identity)
    common = identities.most_common(1)[0][0] if identities else None
    reference = next((f for f in findings if f.references.identity == common and common), None)
    kin = [f for f in findings if f.references.identity == common]
    return [replace(f, problems=(*f.problems, *_misfits(f, reference, kin, findings))) for f in findings]


def _misfits(
    finding: FileReport, reference: FileReport | None, kin: Sequence[FileReport], everything: Sequence[FileReport]
) -> Iterator[HeflError]:
    """What does not fit: of another federation than most, other keys, another signer, another holder, not on a list."""
    ties, path = finding.references, finding.path
    if reference and reference.references.identity and ties.identity and ties.identity != reference.references.identity:
        if not ties.holder and ties.identity.federation == reference.references.identity.federation:
            return  # what an earlier key generation encrypted, in its own place
        yield MismatchError(
            f"{path} is of {ties.identity}, and {reference.path} of {reference.references.identity}", hint=WHOLE_FOLDER
        )
        return
    keys = next((f for f in kin if f.references.fingerprints), None)
    if keys and ties.fingerprints and ties.fingerprints != keys.references.fingerprints:
        yield MismatchError(f"{path} and {keys.path} bear the same name, and hold different keys", hint=WHOLE_FOLDER)
    yield from _wrong_signer(finding, everything)
    yield from _wrong_key(finding, everything)
    yield from _wrong_address(finding, kin)
    yield from _wrong_holder(finding, everything)
    lists = [f for f in kin if f.references.clients]
    if ties.is_client and ties.certificate and lists and not any(ties.holder in f.references.clients for f in lists):
        yield MismatchError(
            f"{path} is of client {ties.holder}, and {lists[0].path} does not list it",
            hint="copy server/ to the server again; a client that was revoked has no folder any more",
        )


def _wrong_holder(finding: FileReport, everything: Sequence[FileReport]) -> Iterator[HeflError]:
    """A folder is of one party, as most of its files say; but the root's certificate is in each."""
    beside = [
        f
        for f in everything
        if f.path.parent == finding.path.parent and f.references.holder and f.path.name != "ca.crt"
    ]
    if finding not in beside:
        return
    holder = Counter(f.references.holder for f in beside).most_common(1)[0][0]
    other = next(f for f in beside if f.references.holder == holder)
    if finding.references.holder != holder:
        yield MismatchError(
            f"{finding.path} was issued to {finding.references.holder}, and {other.path} to {holder}",
            hint="each party uses its own folder, whole",
        )


def _wrong_signer(finding: FileReport, everything: Sequence[FileReport]) -> Iterator[HeflError]:
    certificate = finding.references.certificate
    roots = [f for f in everything if f.path.name == "ca.crt" and f.references.certificate]
    near = [f for f in roots if f.path.parent == finding.path.parent] or roots
    if certificate is None or not near:
        return
    if not any(f.references.certificate and is_signed_by(certificate, f.references.certificate) for f in near):
        yield MismatchError(f"{near[0].path} did not sign {finding.path}", hint=WHOLE_FOLDER)


def _wrong_key(finding: FileReport, everything: Sequence[FileReport]) -> Iterator[HeflError]:
    """A private key belongs to the certificate of its name beside it."""
    own = finding.path.with_suffix(".crt")
    beside = next((f for f in everything if f.path == own and f.references.certificate), None)
    if finding.references.public_key is None or beside is None or beside.references.certificate is None:
        return
    if beside.references.certificate.public_key() != finding.references.public_key:
        yield MismatchError(f"{finding.path} is not the key of {own}", hint=WHOLE_FOLDER)


def _wrong_address(finding: FileReport, kin: Sequence[FileReport]) -> Iterator[HeflError]:
    """The name that clients call stands in the server's certificate."""
    ties = finding.references
    server = next((f for f in kin if f.references.certificate and f.references.holder == "server"), None)
    if server and ties.hosts and ties.certificate is None and ties.hosts[0] not in server.references.hosts:
        yield MismatchError(
            f"{finding.path} says that the server is {ties.hosts[0]}, and {server.path} does not name it",
            hint="issue both again: 'hefl keygen DIR --renew --server-name HOST[:PORT]'",
        )
