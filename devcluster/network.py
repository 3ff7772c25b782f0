"""A cluster's network: a namespace with a bridge, and a pair of links by which the host reaches it."""

from pathlib import Path

from devcluster.shell import run
from devcluster.slots import Slot

BRIDGE = "olivine"


def enter(slot: Slot) -> list[str]:
    """The words that run a command in the namespace. (`ip netns exec` mounts a new /sys, which hides the cgroups.)"""
    return ["nsenter", f"--net={slot.namespace}", "--"]


def create(slot: Slot) -> None:
    """Makes the namespace, the bridge with the node's address, the links and the routes."""
    inside = enter(slot)
    here, there = str(slot.link[2]), str(slot.link[1])
    run(["ip", "netns", "add", slot.name])
    run([*inside, "ip", "link", "set", "lo", "up"])
    run([*inside, "ip", "link", "add", BRIDGE, "type", "bridge"])
    run([*inside, "ip", "address", "add", f"{slot.address}/{slot.pods.prefixlen}", "dev", BRIDGE])
    run([*inside, "ip", "link", "set", BRIDGE, "up"])
    run(["ip", "link", "add", slot.host_link, "type", "veth", "peer", "name", "host", "netns", slot.name])
    run(["ip", "address", "add", f"{here}/{slot.link.prefixlen}", "dev", slot.host_link])
    run(["ip", "link", "set", slot.host_link, "up"])
    run([*inside, "ip", "address", "add", f"{there}/{slot.link.prefixlen}", "dev", "host"])
    run([*inside, "ip", "link", "set", "host", "up"])
    run([*inside, "ip", "route", "add", "default", "via", here])
    for network in (slot.pods, slot.services):
        run(["ip", "route", "add", str(network), "via", there])
    run([*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])


def bridge_is_filtered(slot: Slot) -> bool:
    """Whether packets between two pods pass iptables, so that the answer of a Service is translated back."""
    setting = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    return run([*enter(slot), "sh", "-c", f"cat {setting} 2>/dev/null || echo 0"]).strip() == "1"


def remove(slot: Slot) -> None:
    """Deletes the namespace and the host's link; the routes and the far ends go with them."""
    if Path(f"/sys/class/net/{slot.host_link}").exists():
        run(["ip", "link", "delete", slot.host_link])
    if slot.namespace.exists():
        run(["ip", "netns", "delete", slot.name])
