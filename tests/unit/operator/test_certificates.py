"""The status endpoint's certificates: kept while they hold, renewed in time, trusted by name."""

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from olivine_operator.runtime.certificates import CA_LIFETIME, SERVER_LIFETIME, Identity, Pair, renewed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTS = ("olivine-status.olivine-system.svc",)


def test_a_good_identity_is_kept_as_it_is() -> None:
    first = renewed(None, HOSTS, NOW)
    assert renewed(first, HOSTS, NOW + timedelta(days=30)) is first


def test_near_its_end_the_server_certificate_is_renewed_by_the_same_authority() -> None:
    first = renewed(None, HOSTS, NOW)
    second = renewed(first, HOSTS, NOW + SERVER_LIFETIME - timedelta(days=30))
    assert second.authority == first.authority
    assert second.server != first.server


def test_near_its_end_the_authority_is_renewed_and_the_certificate_with_it() -> None:
    first = renewed(None, HOSTS, NOW)
    second = renewed(first, HOSTS, NOW + CA_LIFETIME - timedelta(days=30))
    assert second.authority != first.authority
    assert second.server != first.server


def test_another_name_needs_another_certificate() -> None:
    first = renewed(None, HOSTS, NOW)
    second = renewed(first, ("olivine-status.elsewhere.svc",), NOW)
    assert second.authority == first.authority
    assert second.server != first.server


def test_what_cannot_be_read_is_made_anew() -> None:
    junk = Pair(certificate="junk", key="junk")
    assert renewed(Identity(authority=junk, server=junk), HOSTS, NOW).authority != junk


def test_a_client_with_the_authority_trusts_the_server_by_its_name_under_strict_rules() -> None:
    identity = renewed(None, HOSTS, datetime.now(UTC))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "c", Path(folder) / "k"
        certificate.write_text(identity.server.certificate)
        key.write_text(identity.server.key)
        server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cadata=identity.authority.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=HOSTS[0])
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ours.version() == "TLSv1.3"
