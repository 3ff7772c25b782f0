"""The cluster's certificates and kubeconfigs, made anew for each cluster."""

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID_FOR = datetime.timedelta(days=3650)
_PRIVATE = serialization.PrivateFormat.PKCS8
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Authority:
    """The one certificate authority, and the folder that everything is written to."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, folder: Path) -> "Authority":
        """Makes the authority in a folder that is not there yet."""
        folder.mkdir(parents=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _subject("olivine-devcluster", "")
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = (
            _builder(name, name, key.public_key()).add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
        )
        authority = cls(folder, key, builder.sign(key, hashes.SHA256()))
        _write(folder / "ca.key", _private_bytes(key), secret=True)
        _write(folder / "ca.crt", authority.certificate.public_bytes(_PEM))
        return authority

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """The authority that was made in a folder."""
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{folder / 'ca.key'} is no key of ours")
        return cls(folder, key, x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()))

    def bundle(self) -> str:
        """The authority's certificate as API objects carry it."""
        return base64.b64encode(self.certificate.public_bytes(_PEM)).decode()

    def client(self, name: str, user: str, group: str = "") -> None:
        """A certificate for a user of the API server."""
        self._issue(name, _subject(user, group), ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def server(self, name: str, hosts: Sequence[str]) -> None:
        """A certificate for a server that answers under these names and addresses."""
        self._issue(name, _subject(hosts[0], ""), ExtendedKeyUsageOID.SERVER_AUTH, [_general_name(host) for host in hosts])

    def token_key(self) -> None:
        """The key pair that signs ServiceAccount tokens."""
        key = rsa.generate_private_key(65537, 2048)
        _write(self.folder / "sa.key", _private_bytes(key), secret=True)
        _write(self.folder / "sa.pub", key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo))

    def kubeconfig(self, name: str, server: str, target: Path) -> None:
        """A kubeconfig that carries the certificate `name` in itself. (JSON is YAML.)"""

        def data(file: str) -> str:
            return base64.b64encode((self.folder / file).read_bytes()).decode()

        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "devcluster", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}],
            "users": [
                {"name": name, "user": {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")}}
            ],
            "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": name}}],
            "current-context": "devcluster",
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, json.dumps(config, indent=2).encode(), secret=True)

    def _issue(self, name: str, subject: x509.Name, usage: x509.ObjectIdentifier, hosts: Sequence[x509.GeneralName]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self.certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(x509.ExtendedKeyUsage([usage]), False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), False)
        _write(self.folder / f"{name}.key", _private_bytes(key), secret=True)
        _write(self.folder / f"{name}.crt", builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    # An hour early: the clocks of two machines may differ.
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _VALID_FOR)
    )


def _subject(user: str, group: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_bytes(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(_PEM, _PRIVATE, serialization.NoEncryption())


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    path.touch(mode=0o600 if secret else 0o644)
    path.write_bytes(content)
