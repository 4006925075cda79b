"""Two constants, merged: the smallest plan."""

from loom.client import Client, tasks


def main() -> None:
    task1 = tasks.const("Hello ")  # a plain object
    task2 = tasks.const("world!")
    task3 = tasks.merge((task1, task2))  # the two in a row

    with Client() as client:  # a server and a worker on this machine, as long as the block lasts
        result = client.submit_one(task3)  # returns at once
        print(result.gather())  # b'Hello world!'


if __name__ == "__main__":
    main()
