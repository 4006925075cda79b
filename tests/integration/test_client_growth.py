"""One plan after the other leaves nothing in a client."""

import gc
import types

from clusters import eventually
from loom.client import Client, tasks

_PLANS = 20


@tasks.py_task(n_direct_args=1)
def same(value: int) -> bytes:
    return b"%d" % value


def reachable(client: Client) -> int:
    """How many objects hang on the client, those of types and modules aside."""
    gc.collect()
    seen: set[int] = set()
    ahead: list[object] = [client]
    while ahead:
        found = ahead.pop()
        if id(found) in seen or isinstance(found, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(found))
        ahead += gc.get_referents(found)
    return len(seen)


def run_plan(client: Client) -> None:
    futures = client.submit([*(same(i) for i in range(200)), tasks.merge([tasks.const("a")] * 5), tasks.const("b")])
    assert client.gather(futures[:100])[99] == b"99"
    client.release(futures[100:150])
    client.wait(futures[150:])
    del futures  # the others are collected
    client.submit_one(tasks.run("sleep 100")).cancel()


def test_nothing_grows_with_the_number_of_plans() -> None:
    with Client(cpus=2) as client:
        for _ in range(3):
            run_plan(client)
        after_three = reachable(client)
        for _ in range(_PLANS - 3):
            run_plan(client)
        eventually(lambda: reachable(client) <= after_three, what="a client as small as it was")
