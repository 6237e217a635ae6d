"""Sites, clouds, hosts and pairs as a Mermaid flowchart (mermaid.js.org/syntax/flowchart.html)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secondsite.client.topology import Cloud, Pair


def drawn(clouds: Sequence[Cloud], pairs: Sequence[Pair]) -> str:
    """The diagram's text: a box a site, in it its clouds with their hosts; an arrow a pair."""
    return "\n".join(_lines(clouds, pairs)) + "\n"


def _lines(clouds: Sequence[Cloud], pairs: Sequence[Pair]) -> Iterator[str]:
    yield "flowchart LR"
    numbers = {cloud.name: f"c{number}" for number, cloud in enumerate(clouds)}
    sites = list(dict.fromkeys(cloud.fabric for cloud in clouds))
    for number, site in enumerate(sites):
        yield f"    subgraph s{number} [{_quoted(site)}]"
        for cloud in clouds:
            if cloud.fabric == site:
                yield f"        {numbers[cloud.name]}[{_quoted(*_words(cloud))}]"
        yield "    end"
    for pair in pairs:
        yield f"    {numbers[pair.primary]} -->|{_quoted(*_mapped(pair))}| {numbers[pair.target]}"


def _words(cloud: Cloud) -> Iterator[str]:
    yield f"cloud {cloud.name}" + ("" if cloud.published else ", not published")
    for host in cloud.hosts:
        yield f"host {host.name}"


def _mapped(pair: Pair) -> Iterator[str]:
    yield pair.state
    for source, target in sorted(pair.networks.items()):
        yield f"network {source} = {target}"
    for source, target in sorted(pair.pools.items()):
        yield f"pool {source} = {target}"
    if pair.default_pool is not None:
        yield f"other pools = {pair.default_pool}"


def _quoted(*lines: str) -> str:
    """As Mermaid takes any text: in quotes, what would end them as an entity."""
    safe = (line.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;") for line in lines)
    return '"' + "<br/>".join(safe) + '"'
