"""The certificates of encrypted links: one authority for each key, which signs what all who have the key present.

The authority's own key is derived from the user's key. So whoever has the key can present a certificate that all others
with the key accept, without one more file to copy, and nobody else can. What a process presents is kept beside the key
(`key.pem`), since making it takes a library that is slow to import; where it cannot be kept it is made again.
"""

import hmac
import os
import secrets
import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from loom.errors import LoomError

# RFC 5280, 4.1.2.5: the last one says that it never ends. Clocks of machines differ, and a pipeline may run for long.
_VALID_FROM: Final = datetime(2000, 1, 1, tzinfo=UTC)
_VALID_UNTIL: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_MAX_FILE_BYTES: Final = 64 << 10


def certificate_path(key_file: Path) -> Path:
    return key_file.with_name(key_file.name + ".pem")


def forget_certificate(key_file: Path) -> None:
    """Remove what is kept beside the key, if it is ours. Raises OSError."""
    path = certificate_path(key_file)
    if _is_ours(path):
        path.unlink(missing_ok=True)


def encryption_context(key: bytes, beside: Path | None, *, accepting: bool) -> ssl.SSLContext:
    """TLS 1.3, where each end presents a certificate of the key's authority and asks for one.

    `beside` is the key file. Raises LoomError where a certificate has to be made and cannot be.
    """
    text = _kept(key, beside) if beside is not None else None
    if text is None:
        text = _make(key)
        if beside is not None:
            _keep(text, certificate_path(beside))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if accepting else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who has the key is who is meant, whatever the name of the machine
    context.verify_mode = ssl.CERT_REQUIRED
    if accepting:
        context.num_tickets = 0  # nobody resumes
    authority, own = _split(text)
    context.load_verify_locations(cadata=authority)
    memory = os.memfd_create("loom-certificate", os.MFD_CLOEXEC)  # OpenSSL reads files only
    try:
        os.write(memory, own.encode("ascii"))
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


def _split(text: str) -> tuple[str, str]:
    """The authority's certificate; the own one with its key."""
    begin = text.index("-----BEGIN PRIVATE KEY-----")
    return text[text.index("-----BEGIN CERTIFICATE-----") : begin], text[begin:]


def _signed(key: bytes, text: str) -> str:
    """With a first line that only this key makes for this text."""
    return f"# loom {hmac.digest(key, b'loom certificate file' + text.encode('ascii'), 'sha256').hex()}\n{text}"


def _kept(key: bytes, key_file: Path) -> str | None:
    """What the file holds, if it is of this key and nobody else can read or have written it."""
    with suppress(OSError, UnicodeDecodeError):
        descriptor = os.open(certificate_path(key_file), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid not in (os.geteuid(), 0):
                return None
            text = os.read(descriptor, _MAX_FILE_BYTES).decode("ascii")
        finally:
            os.close(descriptor)
        if hmac.compare_digest(text, _signed(key, text.partition("\n")[2])):
            return text
    return None


def _is_ours(path: Path) -> bool:
    """Whether it is such a file, of whichever key; somebody may have another one of that name."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            return stat.S_ISREG(os.fstat(descriptor).st_mode) and os.read(descriptor, len(_MARK)) == _MARK
        finally:
            os.close(descriptor)
    return False


_MARK: Final = b"# loom "


def _keep(text: str, path: Path) -> None:
    """Whole or not at all; where it cannot be written, or something else is there, every process makes its own."""
    if os.path.lexists(path) and not _is_ours(path):
        return
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with suppress(OSError):
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
            os.replace(draft, path)
        except OSError:
            os.unlink(draft)


def _make(key: bytes) -> str:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        from cryptography.x509.oid import NameOID
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # where its native part is broken, it raises what is no Exception
        raise LoomError(
            f"links to other machines are encrypted, and that needs the package cryptography ({error}): install it, or "
            "copy the file beside the key (key.pem) from a machine that has it"
        ) from error

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def signed(subject: str, public: Ed25519PublicKey, serial: int, is_authority: bool) -> str:
        builder = (
            x509.CertificateBuilder()
            .issuer_name(name("Loom authority"))
            .subject_name(name(subject))
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(_VALID_FROM)
            .not_valid_after(_VALID_UNTIL)
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
        )
        return builder.sign(authority, None).public_bytes(Encoding.PEM).decode("ascii")

    authority = Ed25519PrivateKey.from_private_bytes(hmac.digest(key, b"loom certificate authority", "sha256"))
    own = Ed25519PrivateKey.generate()
    own_text = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    text = signed("Loom authority", authority.public_key(), 1, True) + own_text
    return _signed(key, text + signed("Loom", own.public_key(), x509.random_serial_number(), False))
