"""Identity: how tasks, attempts and server incarnations are numbered.

A task id is one integer: the session in the high bits, the task's number within it in the low ones. The client
numbers its tasks in plan order; tasks that the server makes itself (redirection) use the upper half of the range, with
the server's incarnation in it, so that a restarted server never uses one again. The object a task makes has the task's
id.
"""

from typing import Final

NUMBER_BITS: Final = 40
NUMBER_MASK: Final = (1 << NUMBER_BITS) - 1
SERVER_MADE: Final = 1 << (NUMBER_BITS - 1)
LAST_SESSION: Final = (1 << 64 - NUMBER_BITS) - 1  # a task id has 64 bits
INCARNATION_BITS: Final = 12
_SERVER_COUNT_BITS: Final = NUMBER_BITS - 1 - INCARNATION_BITS
SERVER_MADE_COUNT: Final = 1 << _SERVER_COUNT_BITS  # of one session and incarnation
_RUN_BITS: Final = 16


def task_id(session: int, number: int) -> int:
    return session << NUMBER_BITS | number


def session_of(task: int) -> int:
    return task >> NUMBER_BITS


def number_of(task: int) -> int:
    return task & NUMBER_MASK


def first_server_made(incarnation: int) -> int:
    """The first task number that a server of this incarnation may give to a task of its own."""
    return SERVER_MADE | (incarnation & ((1 << INCARNATION_BITS) - 1)) << _SERVER_COUNT_BITS


def before_first_attempt(incarnation: int) -> int:
    """Attempts of one task count up from here; the incarnation is their high part."""
    return incarnation << _RUN_BITS


def incarnation_of(attempt: int) -> int:
    """That of the server which gave the task out."""
    return attempt >> _RUN_BITS


def run_number(attempt: int) -> int:
    """How often the task was given to a worker by that server, this time included: 1 for the first run."""
    return attempt & ((1 << _RUN_BITS) - 1)
