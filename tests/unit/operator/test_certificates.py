"""The status endpoint's certificates: kept while they hold, renewed in time, trusted by name."""

import ssl
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from olivine_operator.runtime.certificates import CA_LIFETIME, OVERLAP, SERVER_LIFETIME, Identity, Pair, renewed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which ssl does not name
HOSTS = ("olivine-status.olivine-system.svc",)


def test_a_good_identity_is_kept_as_it_is() -> None:
    first = renewed(None, HOSTS, NOW)
    assert renewed(first, HOSTS, NOW + timedelta(days=30)) is first


def test_near_its_end_the_server_certificate_is_renewed_by_the_same_authority() -> None:
    first = renewed(None, HOSTS, NOW)
    second = renewed(first, HOSTS, NOW + SERVER_LIFETIME - timedelta(days=30))
    assert second.authority == first.authority
    assert second.server != first.server


def test_near_its_end_an_authority_is_followed_by_the_next_and_pods_always_trust_what_they_meet() -> None:
    now = NOW + CA_LIFETIME - timedelta(days=30)
    # The server's certificate is as good as the authority's end allows.
    first = renewed(renewed(None, HOSTS, NOW), HOSTS, now)
    assert first.coming is not None
    assert first.bundle == first.authority.certificate + first.coming.certificate
    # For the whole overlap the old one goes on to issue: pods are told of the next one meanwhile.
    told = renewed(first, HOSTS, now + OVERLAP - timedelta(minutes=1))
    assert (told.authority, told.coming, told.bundle) == (first.authority, first.coming, first.bundle)
    changed = renewed(told, HOSTS, now + OVERLAP)
    assert (changed.authority, changed.coming, changed.previous) == (first.coming, None, first.authority.certificate)
    assert trusts(told.bundle, changed)
    # A replica that has not looked yet shows the old certificate for a while.
    assert trusts(changed.bundle, told)
    assert renewed(changed, HOSTS, now + OVERLAP + timedelta(days=1)) is changed
    settled = renewed(changed, HOSTS, now + 2 * OVERLAP)
    assert (settled.authority, settled.coming, settled.previous) == (changed.authority, None, None)
    assert settled.server == changed.server
    assert not trusts(settled.bundle, told)


def test_an_authority_is_followed_early_where_the_administrator_asks() -> None:
    first = renewed(None, HOSTS, NOW)
    asked = renewed(first, HOSTS, NOW, rotate=True)
    assert asked.authority == first.authority
    assert asked.coming is not None
    assert renewed(asked, HOSTS, NOW, rotate=True) is asked


def test_an_authority_that_has_ended_is_replaced_at_once() -> None:
    first = renewed(None, HOSTS, NOW)
    second = renewed(first, HOSTS, NOW + CA_LIFETIME)
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
    good = renewed(None, HOSTS, NOW)
    foreign = Pair(certificate=good.authority.certificate, key=good.server.key)
    assert renewed(replace(good, authority=foreign), HOSTS, NOW).authority != foreign
    spoilt = renewed(replace(good, coming=junk, previous="junk"), HOSTS, NOW)
    assert spoilt == good


def test_a_client_with_the_authority_trusts_the_server_by_its_name_under_strict_rules() -> None:
    identity = renewed(None, HOSTS, datetime.now(UTC))
    assert trusts(identity.bundle, identity, at=datetime.now(UTC))


def trusts(bundle: str, identity: Identity, *, at: datetime | None = None) -> bool:
    """Whether a client that trusts these authorities gets through to a server with this certificate."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "c", Path(folder) / "k"
        certificate.write_text(identity.server.certificate)
        key.write_text(identity.server.key)
        server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cadata=bundle)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    if at is None:
        # These certificates are of another time; what is asked is who vouches for whom.
        client.verify_flags |= NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=HOSTS[0])
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return ours.version() == "TLSv1.3"
