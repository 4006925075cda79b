"""Objects between processes: who holds them serves them, who needs them fetches them.

Two ways lead to a holder. Its TCP port carries payloads in bulk frames; its handover socket, which only processes of
the same host can reach, carries descriptors of the files that hold them. A fetcher takes the second where it can.
"""

from loom.net.objects.fetcher import Fetched, ObjectFetcher
from loom.net.objects.server import Held, ObjectServer

__all__ = ["Fetched", "Held", "ObjectFetcher", "ObjectServer"]
