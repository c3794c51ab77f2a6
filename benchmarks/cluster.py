"""From measured rates to 100 million cells: hosts, hours, cost, and what is in the way, simulated.

    python benchmarks/cluster.py --rate 243 --picture-kb 5

No machine is needed but this one: hosts, a shared storage and the first process are simulated event
by event, as `score --engine ray` uses them. A host takes a shard, which comes through the storage,
one request after the other at its bandwidth, and through the host's own network, while it scores;
the result waits its turn at the first process, which writes it. A host that dies loses its shard
and is back after its start. The same is reckoned in a line: the longest of the four ways (hosts,
storage, network, first process), and the two should agree.

Measured on one host: --rate, --picture-kb. Assumed, so give your own: storage, network, latency,
price, seconds to start and to write a part, how often a host dies.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Sequence
from typing import NamedTuple

HOSTS = (1, 4, 16, 64, 256)


class Setting(NamedTuple):
    """Rates in pictures and bytes a second, times in seconds.

    open_time: from asking for a file to its first byte. per_file: pictures in one file. at_once:
    files that a host opens side by side.
    """

    cells: float
    rate: float
    picture: float
    per_part: int
    per_file: int
    at_once: int
    open_time: float
    storage: float
    network: float
    write_time: float
    start: float
    between_deaths: float


class Result(NamedTuple):
    """Seconds in all, and how busy the storage and the first process were (0 to 1)."""

    seconds: float
    storage: float
    writer: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    number = {"type": float, "metavar": "X"}
    parser.add_argument("--cells", default=100e6, help="default: 100 million", **number)
    parser.add_argument("--rate", default=243, help="pictures a second of a host", **number)
    parser.add_argument("--picture-kb", default=5, help="bytes of a picture", **number)
    parser.add_argument("--per-part", type=int, default=4096, help="pictures in a shard")
    parser.add_argument("--write-ms", default=5, help="to write a part", **number)
    parser.add_argument("--start", default=30, help="seconds until a host scores", **number)
    parser.add_argument("--storage-mb", default=120, help="all together, a second", **number)
    parser.add_argument("--network-mb", default=120, help="of a host, a second", **number)
    parser.add_argument("--open-ms", default=20, help="to open a file", **number)
    parser.add_argument("--death-hours", default=500, help="of a host, on average", **number)
    parser.add_argument("--price", default=0.1, help="of a host-hour", **number)
    arguments = parser.parse_args(argv)
    for name, per_file in (("shards", arguments.per_part), ("loose files", 1)):
        print(f"{arguments.cells:,.0f} cells, {name}")
        print(
            "hosts    hours  reckoned  host-hours    price  storage busy  writer busy  in the way"
        )
        for hosts in HOSTS:
            print_row(hosts, make_setting(arguments, per_file), price=arguments.price)


def make_setting(arguments: argparse.Namespace, per_file: int) -> Setting:
    return Setting(
        cells=arguments.cells,
        rate=arguments.rate,
        picture=arguments.picture_kb * 1e3,
        per_part=arguments.per_part,
        per_file=per_file,
        at_once=1 if per_file > 1 else 2,
        open_time=arguments.open_ms / 1e3,
        storage=arguments.storage_mb * 1e6,
        network=arguments.network_mb * 1e6,
        write_time=arguments.write_ms / 1e3,
        start=arguments.start,
        between_deaths=arguments.death_hours * 3600,
    )


def print_row(hosts: int, setting: Setting, *, price: float) -> None:
    result = simulate(setting, hosts=hosts)
    ways = reckon(setting, hosts=hosts)
    hours, longest = result.seconds / 3600, max(ways, key=lambda way: ways[way])
    print(
        f"{hosts:5} {hours:8.2f} {(ways[longest] + setting.start) / 3600:9.2f} "
        f"{hours * hosts:11.0f} {price * hours * hosts:8.0f} {result.storage:13.2f} "
        f"{result.writer:12.2f}  {longest}"
    )


def reckon(setting: Setting, *, hosts: int) -> dict[str, float]:
    """Return the seconds that each way would take by itself."""
    parts = setting.cells / setting.per_part
    size = setting.cells * setting.picture
    openings = setting.cells / setting.per_file * setting.open_time / setting.at_once
    return {
        "hosts' cores": setting.cells / (hosts * setting.rate),
        "storage": size / setting.storage,
        "hosts' network and openings": (size / setting.network + openings) / hosts,
        "first process": parts * setting.write_time,
    }


def simulate(setting: Setting, *, hosts: int, seed: int = 0) -> Result:
    """Play the run through, part by part."""
    draw = random.Random(seed)
    size = setting.per_part * setting.picture
    scoring = setting.per_part / setting.rate
    openings = setting.per_part / setting.per_file * setting.open_time / setting.at_once
    waiting = round(setting.cells / setting.per_part)
    storage = writer = last = 0.0  # free from then on
    free = [(setting.start, host) for host in range(hosts)]
    dies = [draw.expovariate(1 / setting.between_deaths) for _ in free]
    heapq.heapify(free)
    while waiting:
        now, host = heapq.heappop(free)
        storage = max(storage, now) + size / setting.storage
        reading = max(storage - now, size / setting.network) + openings
        # A host scores what it has while the rest of the shard is on its way.
        ready = now + max(reading, scoring)
        if ready > dies[host]:
            back = max(now, dies[host]) + setting.start
            dies[host] = back + draw.expovariate(1 / setting.between_deaths)
            heapq.heappush(free, (back, host))
            continue
        waiting -= 1
        writer = max(writer, ready) + setting.write_time
        last = max(last, writer)
        heapq.heappush(free, (ready, host))
    parts = setting.cells / setting.per_part
    busy = parts * size / setting.storage / last, parts * setting.write_time / last
    return Result(last, *(min(share, 1.0) for share in busy))


if __name__ == "__main__":
    main()
