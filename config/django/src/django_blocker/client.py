"""Who is at the other end, as far as it can be known without believing a visitor."""

import ipaddress

from . import conf


def address(meta):
    """The client's address as text, or None when it is not known.

    The peer of the connection, unless that is a listed proxy; then the rightmost address of the forwarded header that
    is not a listed proxy itself. Everything left of that was written by the visitor.
    """
    if meta is None:
        return None
    networks, unix = conf.trusted_proxies()
    remote = (meta.get("REMOTE_ADDR") or "").strip()
    peer = parse(remote)
    if peer is None:
        # A unix socket has no address, and an unreadable one is not guessed at.
        if remote not in ("", "unix:") or not unix:
            return None
    elif not _listed(peer, networks):
        return str(peer)
    return _forwarded(meta, networks)


def _forwarded(meta, networks):
    header = str(conf.get("BLOCKER_FORWARDED_HEADER")).upper().replace("-", "_")
    value = meta.get("HTTP_" + header) or ""
    for hop in reversed(value.split(",")):
        found = parse(_for_parameter(hop) if header == "FORWARDED" else hop)
        if found is None:
            # A hop that cannot be read hides who is behind it.
            return None
        if not _listed(found, networks):
            return str(found)
    return None


def _for_parameter(hop):
    """The `for` of one element of a Forwarded header (RFC 7239)."""
    for pair in hop.split(";"):
        name, _, value = pair.strip().partition("=")
        if name.strip().lower() == "for":
            return value.strip().strip('"')
    return ""


def _listed(found, networks):
    return any(found in network for network in networks if network.version == found.version)


def parse(text):
    """An address from text as proxies write it: perhaps in brackets, perhaps with a port. None for anything else."""
    text = text.strip()
    if not text.isascii():
        return None
    if text.startswith("["):
        text, closed, rest = text[1:].partition("]")
        if not closed or (rest and not (rest.startswith(":") and rest[1:].isdigit())):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not port.isdigit():
            return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if getattr(found, "scope_id", None):
        return None
    return getattr(found, "ipv4_mapped", None) or found
