"""A worker that is told to stop, and sees its server go in the same turn, does not say so on the user's terminal."""

from clusters import run_script


def test_a_script_that_lets_go_of_its_client_says_nothing() -> None:
    script = (
        "from loom.client import Client, tasks\n"
        "client = Client(cpus=1)\n"
        "futures = client.submit([tasks.run('sleep 100'), tasks.const('x')])\n"
        "futures[1].wait()\n"
        "del futures, client\n"
    )
    for _ in range(8):
        said, _ = run_script(script).communicate(timeout=30)
        assert said == ""


def test_what_functions_log_is_seen_and_nothing_else() -> None:
    script = (
        "from loom.client import Client, tasks\n"
        "@tasks.py_task(context=True)\n"
        "def speak(ctx):\n"
        "    ctx.log_debug('unheard')\n"
        "    ctx.log_info('heard')\n"
        "    return b''\n"
        "with Client(cpus=1) as client:\n"
        "    client.submit_one(speak()).gather()\n"
    )
    said, _ = run_script(script).communicate(timeout=30)
    (line,) = said.splitlines()
    assert "INFO" in line
    assert line.endswith("heard")
