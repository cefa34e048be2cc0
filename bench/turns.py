"""Runs processes one after the other, or lets them take turns, so that a slow minute of the machine falls on all alike.

Those that take turns all live at once, and only one of them works at any time: each waits before a step until it is told to
go on.
"""

import subprocess
import sys

WORD = "your turn?"


def wait():
    """In a process: waits for its turn."""
    print(WORD, flush=True)
    if not sys.stdin.readline():
        sys.exit("whoever gave turns is gone")


def take(commands):
    """Runs commands by name, in rounds of one turn each, and yields (name, line) for what else they print, and (name, exit
    code) at the end of each. What comes before the first turn, they do at the same time. Each round begins with another."""
    running = {}
    for name, command in commands.items():
        running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def until_next(name):
        for line in running[name].stdout:
            if line.strip() == WORD:
                return
            yield name, line.rstrip("\n")
        yield name, running.pop(name).wait()

    for name in commands:
        yield from until_next(name)
    order = list(commands)
    while running:
        order = [*order[1:], order[0]]
        for name in [name for name in order if name in running]:
            running[name].stdin.write("\n")
            running[name].stdin.flush()
            yield from until_next(name)


def together(commands):
    """Runs commands by name, in turns, and yields each one's name, the lines that it printed, and its exit code."""
    printed = {name: [] for name in commands}
    for name, said in take(commands):
        if isinstance(said, str):
            printed[name].append(said)
        else:
            yield name, printed[name], said


def one_by_one(commands):
    """As together, without turns."""
    for name, command in commands.items():
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        yield name, run.stdout.splitlines(), run.returncode
