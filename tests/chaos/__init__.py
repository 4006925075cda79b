"""Real faults in real processes, chosen by a seed, and what is counted afterwards: `python -m tests.chaos --seed N`.

A run starts a server, workers and a client, each a process; lets the client work through a plan whose results are known
beforehand, does harm meanwhile, and then compares results, ledger and what is left. The ledger is a file to which every
execution of a task appends a line when it begins and one when it ends, and the server one for each result it accepts.
"""
