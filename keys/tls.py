"""Certificates of one federation: whom each speaks for, and the root that makes them.

Each certificate states in a URI what it is: ``urn:hefl:FEDERATION:GENERATION:server`` or ``...:client:NAME``.
A server's may only serve, a client's may only call (extended key usage).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hefl.errors import CertificateError
from hefl.files import write_private
from hefl.identity import Identity
from hefl.keys.file_format import AGAIN
from hefl.keys.passphrase import Passphrase
from hefl.keys.sealed import seal
from hefl.params import NAME_PATTERN

CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid from a little before they are made: clocks differ."""

Stem = Literal["server", "client"]
"""What a party's certificate and key are called."""

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises at a certificate or a key that does not parse, by what is wrong with it."""

_URN = re.compile(rf"urn:hefl:([0-9a-f]{{32}}):([1-9][0-9]{{0,8}}):(?:(server|authority)|client:({NAME_PATTERN}))")


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a certificate speaks for: a client's name, ``server`` or ``authority``, in one federation's generation."""

    identity: Identity
    name: str
    is_client: bool

    @property
    def urn(self) -> str:
        """As it stands in the certificate."""
        who = f"client:{self.name}" if self.is_client else self.name
        return f"urn:hefl:{self.identity.federation}:{self.identity.generation}:{who}"


@dataclass(frozen=True, slots=True, repr=False)
class CertificateAuthority:
    """The federation's own root. Its key signs the parties' certificates and stays in ``authority/``."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, identity: Identity, days: int, key: ec.EllipticCurvePrivateKey | None = None) -> CertificateAuthority:
        """Make a root for a federation, valid for so many days.

        Args:
            identity: Federation and key generation.
            days: How long.
            key: An earlier root's. What that one signed then still gets through the handshake, and a server can say
                what is wrong with it.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        name = _name(f"hefl federation {identity.federation}")
        usage = _key_usage(signs_certificates=True)
        end = datetime.now(UTC) + timedelta(days=days)
        builder = _builder(Holder(identity, "authority", is_client=False), name, name, key, end, key, [])
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def issue(
        self,
        folder: Path,
        stem: Stem,
        holder: Holder,
        days: int,
        hosts: tuple[str, ...] = (),
        passphrase: Passphrase | None = None,
    ) -> None:
        """Write ``stem.crt``, ``stem.key`` and ``ca.crt`` into a folder.

        Args:
            folder: The party's.
            stem: Names the files.
            holder: Whom the certificate speaks for.
            days: How long, and no longer than the root's certificate.
            hosts: A server's names and addresses.
            passphrase: Seals the private key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if holder.is_client else ExtendedKeyUsageOID.SERVER_AUTH
        end = min(datetime.now(UTC) + timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = _builder(holder, _name(holder.name), self.certificate.subject, key, end, self.key, list(hosts))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        write_private(folder / f"{stem}.crt", to_pem(certificate))
        _write_key(folder / f"{stem}.key", key, holder, passphrase)
        write_private(folder / "ca.crt", to_pem(self.certificate))

    def write(self, folder: Path, passphrase: Passphrase | None = None) -> None:
        """Write ``ca.crt`` and ``ca.key``."""
        write_private(folder / "ca.crt", to_pem(self.certificate))
        _write_key(folder / "ca.key", self.key, holder_of(self.certificate, "ca.crt"), passphrase)


def holder_of(certificate: x509.Certificate, where: Path | str) -> Holder:
    """Whom a certificate speaks for. Raises CertificateError where it is not one of hefl's."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, *UNREADABLE):
        uris = []
    found = _URN.fullmatch(uris[0]) if len(uris) == 1 else None
    if not found:
        hint = AGAIN if isinstance(where, Path) else None
        raise CertificateError(f"{where} is not a certificate of a hefl federation", hint=hint)
    federation, generation, role, client = found.groups()
    return Holder(Identity(federation, int(generation)), client or role, is_client=client is not None)


def from_der(der: bytes, where: str) -> x509.Certificate:
    """A certificate as TLS hands it over. Raises CertificateError where it does not parse."""
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise CertificateError(f"{where} does not parse as a certificate") from error


def _builder(
    holder: Holder,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    end: datetime,
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: list[str],
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    names = [x509.UniformResourceIdentifier(holder.urn), *map(_host_name, hosts)]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def to_pem(certificate: x509.Certificate) -> bytes:
    """The one way in which a certificate's file is written."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The one way in which a private key's file is written, where no passphrase seals it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey, holder: Holder, passphrase: Passphrase | None) -> None:
    data = key_to_pem(key)
    if passphrase:
        data = seal(data, "tls-key", holder.identity, holder.name, passphrase)
    write_private(path, data)
