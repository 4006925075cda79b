"""Every error that a user can meet. Its type says whose fault it is."""


class LoomException(Exception):
    """Anything that Loom raises."""


class TaskFailed(LoomException):
    """A task of the user's plan failed; everything that does not need it goes on.

    `id`: the task's number in its session; `worker`: where it ran; `error_msg`: what it said.
    """

    def __init__(self, id: int, worker: str, error_msg: str) -> None:
        super().__init__(id, worker, error_msg)
        self.id = id
        self.worker = worker
        self.error_msg = error_msg

    def __str__(self) -> str:
        return f"Task id={self.id} failed: {self.error_msg}"


class LoomError(LoomException):
    """Loom could not do what was asked: bad arguments, no server, a closed client."""


class InvalidPlan(LoomError):
    """What was submitted is no plan: a cycle, an input that is no task, a released future, a bound exceeded."""


class ConnectError(LoomError):
    """No session could be established: nobody listens, or who listens is not a Loom server."""


class KeyRefused(ConnectError):
    """The two ends of a connection do not have the same user's key."""


class VersionMismatch(ConnectError):
    """The two ends of a connection run different builds of Loom."""


class ConnectionLost(LoomError):
    """An established session is gone and did not come back."""


class ClientClosed(LoomError):
    """The client was closed, or lives in another process (a forked child cannot use its parent's client)."""


class ObjectLost(LoomError):
    """A result could not be brought here from the worker that holds it."""


class DeployError(LoomError):
    """Where workers were to be started (a host, a batch system, another engine), they could not be: it says why."""


class ProtocolError(LoomException):
    """The peer said something that the protocol does not allow: its link is closed, everybody else goes on."""
