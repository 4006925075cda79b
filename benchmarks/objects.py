"""Workloads that move objects: W7 and Wsize."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import bodies, cluster
from benchmarks.bench import Bench
from benchmarks.measuring import Side, Target
from benchmarks.meter import Meter
from benchmarks.namespaces import two_hosts, why_not
from benchmarks.peer_runs import Asked
from benchmarks.references import LoopbackPeer, loopback_peer, memory_copy
from loom.client import Client, Future, tasks

_KIB, _MIB = 1 << 10, 1 << 20
_OBJECT_MIB = 256
_TRIES = 20  # for the two objects of W7 to be made on different workers
_SIZES = (_KIB, 16 * _KIB, 256 * _KIB, 4 * _MIB, 16 * _MIB, 64 * _MIB, 256 * _MIB)
_CONST_BYTES = 16 * _MIB  # what travels inside a plan is limited to 32 MiB
_LONG_BYTES = 64 * _MIB  # making one takes long enough for a second one to go to the other worker
_SMALL_TIMES = 20  # an object below a MiB goes so often, since once takes too little time
_PEERS = {"dask": 1, "ray": 1, "parsl": 1}  # HyperQueue's tasks are programs: it has no objects

make_slowly = tasks.py_task(n_direct_args=1)(bodies.make_slowly)
make = tasks.py_task(n_direct_args=1)(bodies.make)
sizes = tasks.py_task()(bodies.sizes)
places = tasks.py_task()(bodies.places)


def w7(bench: Bench) -> None:
    size_bytes = bench.size(_OBJECT_MIB) * _MIB
    mib = size_bytes // _MIB
    with loopback_peer() as peer, bench.loom() as running:
        client = running.client
        if running.n_workers > 1:
            bench.compare(
                f"{mib} MiB from one worker to a task on another",
                "ms",
                Side("loom", partial(hand_over, client, size_bytes, False), _ms),
                Side("memory copy", partial(memory_copy, size_bytes, 1), _ms),
                _sockets(peer, size_bytes, _ms),
                target=Target(5, "at most", "figure"),
                asked=_asked("transfer", size_bytes, _ms),
            )
            bench.compare(
                f"2 x {mib} MiB, one from another worker, read whole",
                "ms",
                Side("loom", partial(hand_over, client, size_bytes, True), _ms),
                Side("2 memory copies", partial(memory_copy, size_bytes, 2), _ms),
                suffix="r",
            )
        else:
            bench.skip(f"{mib} MiB from one worker to a task on another", "there is one worker only")
        rate = partial(_gb_per_s, size_bytes)
        bench.compare(
            f"{mib} MiB to the client",
            "GB/s",
            Side("loom", partial(to_client, client, size_bytes), rate),
            _sockets(peer, size_bytes, rate),
            Side("memory copy", partial(memory_copy, size_bytes, 1), rate),
            target=Target(0.8, "at least"),
            suffix="g",
            asked=_asked("gather", size_bytes, rate),
        )


def w7n(bench: Bench) -> None:
    size_bytes = bench.size(_OBJECT_MIB) * _MIB
    what = f"{size_bytes // _MIB} MiB from a worker to a task on another host"
    if reason := why_not():
        bench.skip(what, reason)
        return
    rate = partial(_gb_per_s, size_bytes)
    with (
        two_hosts() as hosts,
        loopback_peer(hosts.near_address, hosts.far_namespace) as peer,
        cluster.running(False, hosts.near_address, [[], hosts.far_prefix], links="insecure") as running,
    ):
        bench.compare(
            what,
            "GB/s",
            Side("loom", partial(hand_over, running.client, size_bytes, False), rate),
            _sockets(peer, size_bytes, rate),
            target=Target(0.8, "at least"),
        )


def w7e(bench: Bench) -> None:
    size_bytes = bench.size(_OBJECT_MIB) * _MIB
    what = f"{size_bytes // _MIB} MiB from a worker to a task on another host, encrypted"
    if reason := why_not():
        bench.skip(what, reason)
        return
    rate = partial(_gb_per_s, size_bytes)
    with two_hosts() as hosts:
        places = False, hosts.near_address, [[], hosts.far_prefix]
        with cluster.running(*places) as encrypted, cluster.running(*places, links="insecure") as plain:
            bench.compare(
                what,
                "GB/s",
                Side("encrypted", partial(hand_over, encrypted.client, size_bytes, False), rate),
                Side("plain", partial(hand_over, plain.client, size_bytes, False), rate),
            )


def wsize(bench: Bench) -> None:
    """Throughput one object at a time, so that for small ones it says how long a single one takes."""
    with bench.loom() as running:
        client = running.client
        for size_bytes in _SIZES:
            if size_bytes >= 64 * _MIB and bench.options.quick:
                continue
            times = 1 if size_bytes >= _MIB else _SMALL_TIMES
            rate = partial(_gb_per_s, size_bytes * times)
            text = f"{size_bytes // _MIB} MiB" if size_bytes >= _MIB else f"{size_bytes // _KIB} KiB"
            ways: list[tuple[str, str, Callable[[Meter], None]]] = [
                ("g", "to the client", partial(to_client, client, size_bytes, times=times))
            ]
            if size_bytes <= _CONST_BYTES:
                ways.append(("p", "from the client, as const", partial(_from_client, client, size_bytes, times)))
            if running.n_workers > 1:
                one = partial(_gb_per_s, size_bytes)
                side = Side("loom", partial(hand_over, client, size_bytes, False), one)
                bench.compare(f"{text} from one worker to a task on another", "GB/s", side, suffix="h", x=size_bytes)
            for suffix, way, run in ways:
                bench.compare(f"{text} {way}", "GB/s", Side("loom", run, rate), suffix=suffix, x=size_bytes)


def _asked(job: str, size_bytes: int, figure: Callable[[Meter], float]) -> Asked:
    return Asked(
        job,
        _PEERS,
        lambda _: {"size_bytes": size_bytes},
        lambda _, meter: figure(meter),
        n_tasks=lambda _: 0,
    )


def _sockets(peer: LoopbackPeer, size_bytes: int, figure: Callable[[Meter], float]) -> Side:
    return Side("blocking sockets", partial(peer.receive, size_bytes), figure)


def hand_over(client: Client, size_bytes: int, read: bool, meter: Meter) -> None:
    """Make an object on either worker, then time a task that takes both, so that one of them has to move.

    The two are made at the same time by workers of one core, so one each, nearly always: where not, once more.
    """
    for _ in range(_TRIES):
        maker = make if size_bytes >= _LONG_BYTES else make_slowly
        made = client.submit([maker(size_bytes), maker(size_bytes)])
        client.wait(made)
        first: Future | None = None
        with meter:
            if not read:
                first = client.submit_one(sizes(*made))
                first.wait()
            else:
                found = client.submit_one(places(*made)).gather()
        if first is not None:
            if first.gather() != b"%d %d" % (size_bytes, size_bytes):
                raise RuntimeError("the objects did not come whole")
            found = client.submit_one(places(*made)).gather()
        client.release(made)
        assert isinstance(found, bytes)
        if found[: bodies.PLACE_BYTES] != found[bodies.PLACE_BYTES :]:
            return
    raise RuntimeError(f"both objects were made on one worker, {_TRIES} times")


def to_client(client: Client, size_bytes: int, meter: Meter, times: int = 1) -> None:
    futures = client.submit([make(size_bytes) for _ in range(times)])
    client.wait(futures)
    with meter:
        values = [future.gather() for future in futures]
    for value in values:
        assert isinstance(value, bytes)
        if len(value) != size_bytes:
            raise RuntimeError("the object did not come whole")


def _from_client(client: Client, size_bytes: int, times: int, meter: Meter) -> None:
    """Until a task that takes it has finished."""
    content = bytes(size_bytes)
    with meter:
        for _ in range(times):
            future = client.submit_one(sizes(tasks.const(content)))
            future.wait()
            if future.gather() != b"%d" % size_bytes:
                raise RuntimeError("the object did not come whole")


def _gb_per_s(size_bytes: int, meter: Meter) -> float:
    return size_bytes / meter.wall_s / 1e9


def _ms(meter: Meter) -> float:
    return meter.wall_s * 1e3
