"""Read a party's certificate and key strictly, and make TLS 1.3 contexts of them."""

from __future__ import annotations

import logging
import os
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from hefl.errors import CertificateError, KeysError, MismatchError, StateError
from hefl.files import read_private
from hefl.identity import Identity
from hefl.keys.file_format import AGAIN, check_same, parse
from hefl.keys.passphrase import Passphrase
from hefl.keys.sealed import is_sealed, unseal
from hefl.keys.tls import UNREADABLE, Holder, Stem, from_der, holder_of, key_to_pem, to_pem
from hefl.params import EXPIRY_NOTICE_DAYS

log = logging.getLogger("hefl")

MAX_BYTES = 1 << 16
RENEW = "'hefl keygen DIR --renew' at the authority issues new ones; hand the folders out again"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What a party shows in TLS.

    Attributes:
        folder, stem: Where they were: ``stem.crt``, ``stem.key`` and ``ca.crt``.
        holder: Whom the certificate speaks for.
        certificate, key: The party's.
        root: The federation's.
    """

    folder: Path
    stem: Stem
    holder: Holder
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    root: x509.Certificate

    def notices(self) -> list[str]:
        """What is to be said of certificates that expire soon."""
        named = ((f"{self.stem}.crt", self.certificate), ("ca.crt", self.root))
        found = (expiry_notice(str(self.folder / name), certificate) for name, certificate in named)
        return [notice for notice in found if notice]

    def server_context(self) -> ssl.SSLContext:
        """TLS for ``hefl serve``: 1.3 only, and every caller shows a certificate that this federation's root signed."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = _Refusing
        return context

    def client_context(self) -> ssl.SSLContext:
        """TLS for ``hefl client``: 1.3 only, and the server must be this federation's, at the name that was called."""

        class Checking(ssl.SSLObject):
            def do_handshake(this) -> None:  # noqa: N805 - self is the credentials
                super().do_handshake()
                check_server(this.getpeercert(binary_form=True), self.holder.identity)

        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.sslobject_class = Checking
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        try:
            tempfile.gettempdir()
        except FileNotFoundError as error:
            hint = "let it write to /tmp, or name another with TMPDIR; in a container, mount a small volume there"
            raise StateError("there is no folder for temporary files, and TLS needs one", hint=hint) from error
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            context.load_verify_locations(cadata=to_pem(self.root).decode())
            self._load_into(context)
        except (ssl.SSLError, OSError) as error:
            raise CertificateError(f"TLS refuses the certificates in {self.folder}: {error}") from error
        return context

    def _load_into(self, context: ssl.SSLContext) -> None:
        """Through a file, which OpenSSL wants; what is in it opens with a password that nobody else ever has."""
        password = os.urandom(32).hex().encode()
        encrypted = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
        with tempfile.NamedTemporaryFile(prefix="hefl-") as file:  # mode 0600
            file.write(to_pem(self.certificate) + encrypted)
            file.flush()
            context.load_cert_chain(file.name, password=password)


class _Refusing(ssl.SSLObject):
    """Says in the log why a caller got no further: TLS 1.3 tells the caller nothing."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            log.warning("refused a caller's certificate: %s", error.verify_message)
            raise


def check_server(der: bytes | None, mine: Identity) -> None:
    """Refuse a peer that is no server, or whose keys were rotated away: its certificate may be a thief's by now.

    A server of a newer generation may go on, and says that this client is not of it.

    Raises:
        ssl.SSLCertVerificationError: As OpenSSL would.
    """
    try:
        holder = holder_of(from_der(der or b"", "the server's certificate"), "the server's certificate")
    except CertificateError as error:
        raise ssl.SSLCertVerificationError(error.message) from error
    if holder.is_client or holder.name != "server" or holder.identity.federation != mine.federation:
        raise ssl.SSLCertVerificationError(f"the certificate speaks for {holder.name} of {holder.identity}")
    if holder.identity.generation < mine.generation:
        raise ssl.SSLCertVerificationError(f"the certificate is of {holder.identity}, which is over")


def read_credentials(folder: Path, stem: Stem, passphrase: Passphrase | None = None) -> Credentials:
    """Read a party's ``stem.crt``, ``stem.key`` and ``ca.crt``, and check them against each other.

    Raises:
        CertificateError: One does not parse, they do not belong together, or today is outside their validity.
        MismatchError: The root did not sign the certificate, or is another generation's.
        KeyFileError: One is missing, may be read by others, or the passphrase does not open it.
    """
    path, key_path, ca_path = folder / f"{stem}.crt", folder / f"{stem}.key", folder / "ca.crt"
    certificate, root = read_certificate(path), read_root(ca_path)
    holder, authority = holder_of(certificate, path), holder_of(root, ca_path)
    _check_role(certificate, path, holder, stem)
    key = read_key(key_path, holder, passphrase)
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{key_path} is not the key of {path}", hint="copy both again")
    if holder.identity != authority.identity or not is_signed_by(certificate, root):
        raise MismatchError(
            f"{path} is of {holder.identity}, and {ca_path} of {authority.identity} did not sign it",
            hint="copy the whole folder again: its files belong together",
        )
    check_validity(str(path), certificate)
    check_validity(str(ca_path), root)
    return Credentials(folder, stem, holder, certificate, key, root)


def read_certificate(path: Path) -> x509.Certificate:
    """Read one certificate, and refuse a file with anything else in it.

    Raises:
        CertificateError: It is no certificate, or not to the byte as hefl writes one.
        KeyFileError: As read_private.
    """
    data = read_private(path, MAX_BYTES)
    try:
        certificate = x509.load_pem_x509_certificate(data)
        whole = to_pem(certificate) == data
        certificate.public_key()  # parsed only now, and with it what is wrong in it
    except UNREADABLE as error:
        raise CertificateError(f"{path} does not parse as a certificate", hint=AGAIN) from error
    if not whole:
        raise CertificateError(f"{path} holds more than one certificate as hefl writes it", hint=AGAIN)
    return certificate


def read_root(path: Path) -> x509.Certificate:
    """Read ``ca.crt``. Raises as read_certificate, and CertificateError where it is no root of a federation's."""
    root = read_certificate(path)
    if holder_of(root, path).name != "authority" or not is_signed_by(root, root):
        raise CertificateError(f"{path} is not the root certificate of a federation, or is damaged", hint=AGAIN)
    return root


def read_key(path: Path, holder: Holder, passphrase: Passphrase | None = None) -> ec.EllipticCurvePrivateKey:
    """Read the private key of a certificate's holder, sealed or not.

    Raises:
        CertificateError: It is no private key as hefl writes one.
        MismatchError: It is sealed, and was issued to someone else.
        KeyFileError: As read_private, or the passphrase does not open it.
    """
    data = read_private(path, MAX_BYTES)
    if is_sealed(data):
        file = parse(path, data, "sealed")
        check_same(file, path.with_suffix(".crt"), holder.identity, holder.name)
        data = unseal(file, "tls-key", passphrase)
    return parse_key(path, data)


def parse_key(path: Path, data: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key from PEM. Raises CertificateError where it is none, or not to the byte as hefl writes one."""
    try:
        key = serialization.load_pem_private_key(data, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key_to_pem(key) != data:
            raise ValueError("not as hefl writes it")
    except UNREADABLE as error:
        raise CertificateError(f"{path} does not parse as a private key", hint=AGAIN) from error
    return key


def check_validity(what: str, certificate: x509.Certificate) -> None:
    """Refuse a certificate that is not valid now. Raises CertificateError, which names it, the dates and the mend."""
    now, begin, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin <= now <= end:
        return
    expired = now > end
    raise CertificateError(
        f"{what} {'has expired' if expired else 'is not yet valid'}: it is valid from {begin:%Y-%m-%d %H:%M} to "
        f"{end:%Y-%m-%d %H:%M} UTC, and now is {now:%Y-%m-%d %H:%M}",
        hint=RENEW if expired else f"look at this machine's clock; if it is right, {RENEW}",
    )


def expiry_notice(what: str, certificate: x509.Certificate) -> str | None:
    """What is to be said of a certificate that expires within EXPIRY_NOTICE_DAYS, and how to mend it; else None."""
    end = certificate.not_valid_after_utc
    if end - datetime.now(UTC) > timedelta(days=EXPIRY_NOTICE_DAYS):
        return None
    return f"{what} expires on {end:%Y-%m-%d %H:%M} UTC: {RENEW}"


def announce_expiry(credentials: Credentials) -> None:
    """Say in the log which certificates expire soon."""
    for notice in credentials.notices():
        log.warning("%s", notice)


def server_fault(url: str, der: bytes, credentials: Credentials) -> KeysError:
    """Say what is wrong with the certificate that a server showed, which TLS has refused."""
    mine, where = credentials.holder.identity, f"the certificate of {url}"
    try:
        certificate = from_der(der, where)
        holder = holder_of(certificate, where)
    except CertificateError:
        return CertificateError(
            f"{where} is not one of a hefl federation, and this client is of {mine}", hint="is it the right server?"
        )
    if holder.identity.federation != mine.federation or holder.identity.generation < mine.generation:
        return MismatchError(
            f"the server at {url} is of {holder.identity}, and this client of {mine}",
            hint="is it the right server? If so, copy server/ from the authority to it again, "
            "and this client's folder as well",
        )
    if not is_signed_by(certificate, credentials.root):
        return CertificateError(
            f"{where} says {holder.identity}, and {credentials.folder / 'ca.crt'} did not sign it",
            hint="it is not the federation's server, or the files are of different times: copy both folders again",
        )
    try:
        _check_role(certificate, where, holder, "server")
        check_validity(where, certificate)
    except CertificateError as error:
        return error
    return CertificateError(
        f"{where} does not name this address",
        hint="call the server as 'hefl keygen --server-name' named it, or issue new certificates for this name: "
        "'hefl keygen DIR --renew --server-name HOST[:PORT]'",
    )


def _check_role(certificate: x509.Certificate, where: Path | str, holder: Holder, stem: Stem) -> None:
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if stem == "client" else ExtendedKeyUsageOID.SERVER_AUTH
    try:
        found = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, *UNREADABLE):
        found = []
    if found != [usage] or (stem == "client") != holder.is_client:
        who = f"client {holder.name}" if holder.is_client else f"the {holder.name}"
        raise CertificateError(
            f"{where} speaks for {who}, and is not a {stem}'s certificate", hint="each party uses its own folder, whole"
        )


def is_signed_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether the root's key signed the certificate."""
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True
