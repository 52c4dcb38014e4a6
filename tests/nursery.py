"""Starts trainers by forking a process that has imported all: python -m tests.nursery

Each line of standard input is JSON [arguments, file for the output]; the answer is the process id. Ends of processes
are reported as 'PID CODE' (negative: the signal) among the answers.
"""

import json
import os
import sys
import threading


def child(arguments: list[str], output: str) -> None:
  from adversarial_augment import cli, train

  file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
  for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, file), (2, file)):
    os.dup2(source, number)
  sys.argv[1:] = arguments
  cli.run(train.main)


def reap(pid: int) -> None:
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  os.write(1, f'{pid} {code}\n'.encode())


def main() -> None:
  import jax  # noqa: F401

  from adversarial_augment import train  # noqa: F401
  from adversarial_augment.evaluation import milestones  # noqa: F401
  from adversarial_augment.run import loop  # noqa: F401
  from adversarial_augment.training import builders, train_step  # noqa: F401

  for line in sys.stdin:
    arguments, output = json.loads(line)
    pid = os.fork()
    if not pid:
      child(arguments, output)
    os.write(1, f'{pid}\n'.encode())
    threading.Thread(target=reap, args=[pid], daemon=True).start()


if __name__ == '__main__':
  main()
