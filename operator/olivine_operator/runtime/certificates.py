"""The status endpoint's own certificate authority and server certificate. No I/O, no clock."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=365)
# Long before the end: an operator may be down for a while.
CA_RENEWAL = timedelta(days=365)
SERVER_RENEWAL = timedelta(days=60)
# Longer than kubelet takes to bring a ConfigMap to its pods, and than a replica goes on with the certificate that it has.
OVERLAP = timedelta(days=7)
# Clocks of nodes differ.
_SKEW = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The authorities that pods trust, and the server's certificate from the first of them."""

    authority: Pair
    server: Pair
    coming: Pair | None = None
    """The next authority: trusted already, issues nothing yet."""
    previous: str | None = None
    """The last authority's certificate: issues nothing more, trusted as long as a replica may still show what it issued."""

    @property
    def bundle(self) -> str:
        """Every certificate that pods trust, PEM."""
        others = (self.coming.certificate if self.coming else None, self.previous)
        return "".join(text if text.endswith("\n") else f"{text}\n" for text in (self.authority.certificate, *others) if text)


def renewed(
    known: Identity | None, hosts: tuple[str, ...], now: datetime, *, overlap: timedelta = OVERLAP, rotate: bool = False
) -> Identity:
    """The identity to use from now on: the known one, or as much of it as still holds.

    An authority is followed in three steps, `overlap` apart, so that running pods trust whatever certificate they meet: the
    next one is made and told; it issues the server's certificate; the old one is told no more.
    """
    if known is None or not _usable(known.authority, now):
        authority = _make_authority(now)
        return Identity(authority=authority, server=_make_server(authority, hosts, now))
    authority, coming, previous = known.authority, known.coming, known.previous
    if coming is not None and not _usable(coming, now):
        coming = None  # spoilt by other hands
    if previous is not None and not _lasts(Pair(certificate=previous, key=""), timedelta(), now):
        previous = None
    if coming is not None and _made(coming) + overlap <= now:
        authority, coming, previous = coming, None, authority.certificate
    elif coming is None and (rotate or not _lasts(authority, CA_RENEWAL, now)):
        coming = _make_authority(now)
    # It was replaced one overlap after its successor was made.
    if previous is not None and authority is known.authority and _made(authority) + 2 * overlap <= now:
        previous = None
    holds = authority is known.authority and _serves(known.server, hosts, now) and _issued(known.server, by=authority)
    server = known.server if holds else _make_server(authority, hosts, now)
    wanted = Identity(authority=authority, server=server, coming=coming, previous=previous)
    return known if wanted == known else wanted


def _usable(pair: Pair, now: datetime) -> bool:
    """Whether an authority can issue: its certificate holds, and its key is the one that belongs to it."""
    if not _lasts(pair, timedelta(), now):
        return False
    try:
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
    except (ValueError, TypeError):
        return False
    return x509.load_pem_x509_certificate(pair.certificate.encode()).public_key() == key.public_key()


def _made(pair: Pair) -> datetime:
    return x509.load_pem_x509_certificate(pair.certificate.encode()).not_valid_before_utc + _SKEW


def _lasts(pair: Pair, at_least: timedelta, now: datetime) -> bool:
    try:
        return x509.load_pem_x509_certificate(pair.certificate.encode()).not_valid_after_utc > now + at_least
    except ValueError:
        return False


def _serves(server: Pair, hosts: tuple[str, ...], now: datetime) -> bool:
    if not _lasts(server, SERVER_RENEWAL, now):
        return False
    certificate = x509.load_pem_x509_certificate(server.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName)) == set(hosts)


def _issued(server: Pair, *, by: Pair) -> bool:
    issuer = x509.load_pem_x509_certificate(by.certificate.encode())
    return x509.load_pem_x509_certificate(server.certificate.encode()).issuer == issuer.subject


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _make_authority(now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial number in the name tells two generations of the authority apart.
    serial = x509.random_serial_number()
    name = _name(f"olivine-status-ca-{serial % 16**8:08x}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=serial)
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    return _pem(builder.sign(key, hashes.SHA256()), key)


def _make_server(authority: Pair, hosts: tuple[str, ...], now: datetime) -> Pair:
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issuer_key = serialization.load_pem_private_key(authority.key.encode(), password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder(issuer_name=issuer.subject, subject_name=_name("olivine-status"), public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(now + SERVER_LIFETIME, issuer.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier), critical=False)
    )
    return _pem(builder.sign(issuer_key, hashes.SHA256()), key)
