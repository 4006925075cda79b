"""An embedded worker that is told to stop, and sees its server go in the same turn, says so on the user's terminal.

StopWorker waits in the worker shell's queue of events until the next turn, `on_closed` looks at `_stopping` at once
(loom/worker/shell.py, "the server is gone"). About one run in ten.
"""

from clusters import run_script


def test_a_script_that_lets_go_of_its_client_says_nothing() -> None:
    script = (
        "from loom.client import Client, tasks\n"
        "client = Client(cpus=1)\n"
        "futures = client.submit([tasks.run('sleep 100'), tasks.const('x')])\n"
        "futures[1].wait()\n"
        "del futures, client\n"
    )
    for _ in range(20):
        said, _ = run_script(script).communicate(timeout=30)
        assert said == ""
