"""All workloads by name, in the order of the table."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from benchmarks import alone, costs, graphs, memory, metg, objects, on_engines
from benchmarks.bench import Bench


class Workload(NamedTuple):
    run: Callable[[Bench], None]
    what: str


WORKLOADS: Final[Mapping[str, Workload]] = {
    "W1": Workload(graphs.w1, "bag of no-op Python tasks"),
    "W1t": Workload(graphs.w1t, "the same while a trace is written"),
    "W1j": Workload(graphs.w1j, "the same while the server writes a journal"),
    "W1e": Workload(graphs.w1e, "the same over encrypted links"),
    "W1ray": Workload(partial(on_engines.w1, engine=on_engines.RAY), "the same on a Ray cluster, beside Ray alone"),
    "W1dask": Workload(partial(on_engines.w1, engine=on_engines.DASK), "the same on a Dask cluster, beside Dask alone"),
    "W1u": Workload(graphs.w1u, "bag of uneven tasks: makespan over ideal"),
    "W2": Workload(graphs.w2, "many const and one merge"),
    "W3": Workload(graphs.w3, "chain of no-op Python tasks"),
    "W3n": Workload(graphs.w3n, "chain of light tasks"),
    "W4": Workload(graphs.w4, "binary tree of Python tasks"),
    "W5": Workload(graphs.w5, "stencil of Python tasks"),
    "W5ray": Workload(partial(on_engines.w5, engine=on_engines.RAY), "the same on a Ray cluster, beside Ray alone"),
    "W5dask": Workload(partial(on_engines.w5, engine=on_engines.DASK), "the same on a Dask cluster, beside Dask alone"),
    "W5n": Workload(graphs.w5n, "stencil of light tasks"),
    "W5b": Workload(metg.w5b, "METG(50 %): the smallest task at which the stencil is half efficient"),
    "W6": Workload(graphs.w6, "external programs"),
    "W7": Workload(objects.w7, "a large object from worker to worker, and to the client (W7g)"),
    "W7n": Workload(objects.w7n, "a large object from host to host (network namespaces; needs root)"),
    "W7e": Workload(objects.w7e, "the same over encrypted links"),
    "W8": Workload(memory.w8, "memory per task of the server, the client (W8c), the workers (W8w)"),
    "W8r": Workload(memory.w8r, "memory that plan after plan leaves behind"),
    "W9": Workload(costs.w9, "from Client() to the first result"),
    "W10": Workload(costs.w10, "gather of small results"),
    "WS": Workload(alone.ws, "the server alone: core plus wire, with workers that are only played"),
    "Wscale": Workload(graphs.wscale, "time per task by number of tasks (for the plot)"),
    "Wsize": Workload(objects.wsize, "throughput by size of object (for the plot)"),
}
