"""Certificates of one federation, and TLS 1.3 contexts that take no others.

Each certificate states in a URI what it is: ``urn:hefl:FEDERATION:GENERATION:server`` or ``...:client:NAME``.
A server's may only serve, a client's may only call (extended key usage), and both parties check the other's.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hefl.ckks.context import Identity
from hefl.errors import CertificateError, MismatchError
from hefl.files import read_private, write_private

CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid from a little before they are made: clocks differ."""

MAX_BYTES = 1 << 16
_URN = re.compile(r"urn:hefl:([0-9a-f]{32}):([1-9][0-9]*):(?:(server|authority)|client:([a-z0-9-]+))")


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
    def new(cls, identity: Identity, days: int) -> CertificateAuthority:
        """Make a root for a federation, valid for so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"hefl federation {identity.federation}")
        usage = _key_usage(signs_certificates=True)
        builder = _builder(Holder(identity, "authority", is_client=False), name, name, key, days, key, [])
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def issue(self, folder: Path, stem: str, holder: Holder, days: int, hosts: tuple[str, ...] = ()) -> None:
        """Write ``stem.crt``, ``stem.key`` and ``ca.crt`` into a folder.

        Args:
            folder: The party's.
            stem: ``server`` or ``client``.
            holder: Whom the certificate speaks for.
            days: How long.
            hosts: A server's names and addresses.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if holder.is_client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = _builder(holder, _name(holder.name), self.certificate.subject, key, days, self.key, list(hosts))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        write_private(folder / f"{stem}.crt", _pem(certificate))
        write_private(folder / f"{stem}.key", _key_pem(key))
        write_private(folder / "ca.crt", _pem(self.certificate))

    def write(self, folder: Path) -> None:
        """Write ``ca.crt`` and ``ca.key``."""
        write_private(folder / "ca.crt", _pem(self.certificate))
        write_private(folder / "ca.key", _key_pem(self.key))


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS for ``hefl serve``: 1.3 only, and every caller shows a certificate of this federation's."""
    return _context(ssl.PROTOCOL_TLS_SERVER, folder, "server")


def client_context(folder: Path) -> ssl.SSLContext:
    """TLS for ``hefl client``: 1.3 only, and the server must be this federation's, at the name that was called."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, folder, "client")


def _context(protocol: int, folder: Path, stem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(folder / "ca.crt")
        context.load_cert_chain(folder / f"{stem}.crt", folder / f"{stem}.key")
    except (ssl.SSLError, OSError) as error:
        raise CertificateError(f"TLS refuses the certificates in {folder}: {error}") from error
    return context


def read_holder(folder: Path, stem: str) -> Holder:
    """Check a party's ``stem.crt``, ``stem.key`` and ``ca.crt`` against each other, and say whom they speak for.

    Raises:
        CertificateError: One does not parse, they do not belong together, or today is outside their validity.
        KeyFileError: One is missing or may be read by others.
    """
    certificate_path, key_path, ca_path = folder / f"{stem}.crt", folder / f"{stem}.key", folder / "ca.crt"
    certificate, authority = _read_certificate(certificate_path), _read_certificate(ca_path)
    try:
        key = serialization.load_pem_private_key(read_private(key_path, MAX_BYTES), None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{key_path} does not parse as a private key", hint="copy the file again") from error
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{key_path} is not the key of {certificate_path}", hint="copy both again")
    holder, root = holder_of(certificate, certificate_path), holder_of(authority, ca_path)
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise MismatchError(
            f"{certificate_path} is of {holder.identity}, and {ca_path} of {root.identity} did not sign it",
            hint="copy the whole folder again: its files belong together",
        ) from error
    now = datetime.now(UTC)
    for path, found in ((certificate_path, certificate), (ca_path, authority)):
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
            raise CertificateError(
                f"{path} is valid from {found.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and now is {now:%Y-%m-%d %H:%M}",
                hint="look at this machine's clock, or have the authority issue new certificates",
            )
    return holder


def holder_of(certificate: x509.Certificate, where: Path | str) -> Holder:
    """Whom a certificate speaks for. Raises CertificateError where it is not one of hefl's."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    found = _URN.fullmatch(uris[0]) if len(uris) == 1 else None
    if not found:
        raise CertificateError(f"{where} is not a certificate of a hefl federation")
    federation, generation, role, client = found.groups()
    return Holder(Identity(federation, int(generation)), client or role, is_client=client is not None)


def holder_of_der(der: bytes, where: str) -> Holder:
    """holder_of, from a certificate as TLS hands it over."""
    try:
        return holder_of(x509.load_der_x509_certificate(der), where)
    except ValueError as error:
        raise CertificateError(f"{where} does not parse as a certificate") from error


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_private(path, MAX_BYTES))
    except ValueError as error:
        raise CertificateError(f"{path} does not parse as a certificate", hint="copy the file again") from error


def _builder(
    holder: Holder,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: int,
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
        .not_valid_after(now + timedelta(days=days))
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


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
