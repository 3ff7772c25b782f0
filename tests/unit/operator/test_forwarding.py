"""Where reports are handed to: the address that the Lease names, in every form that addresses have."""

import asyncio
import ssl
from dataclasses import replace

import pytest

from olivine_operator.runtime.config import this_replica
from olivine_operator.runtime.forwarding import Forwarder, ForwardError, Replica
from tests.unit.operator.builders import SETTINGS

REPLICA = Replica(name="olivine-operator-x", host="10.0.0.7", port=8443)


def test_the_identity_names_the_address() -> None:
    assert REPLICA.identity == "olivine-operator-x@10.0.0.7:8443"
    assert replace(REPLICA, host="fd00::7").identity == "olivine-operator-x@[fd00::7]:8443"


def test_a_container_that_starts_again_in_its_pod_is_another_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVINE_POD_NAME", "olivine-operator-x")
    monkeypatch.setenv("OLIVINE_POD_IP", "10.0.0.7")
    first, second = this_replica(SETTINGS), this_replica(SETTINGS)
    assert first.identity != second.identity
    assert first.address == second.address == "10.0.0.7:8443"
    assert first.name.startswith("olivine-operator-x-")


@pytest.mark.parametrize("leader", [None, REPLICA.identity, "junk", "elsewhere@127.0.0.1:1", "elsewhere@not an address"])
def test_without_another_that_leads_nothing_is_handed_on(leader: str | None) -> None:
    async def scenario() -> None:
        forwarder = Forwarder(
            own=REPLICA.identity, leader=lambda: leader, trusted=ssl.create_default_context, server_name="olivine-status.o.svc"
        )
        with pytest.raises(ForwardError):
            await forwarder.forward("/v1/x", "Bearer t", b"{}")
        await forwarder.close()

    asyncio.run(scenario())
