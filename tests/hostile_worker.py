"""Runs command lines, each in a process of its own that is forked after the imports; says how they ended, as JSON."""

import json
import os
from pathlib import Path
import resource
import runpy
import signal
import sys
import traceback
import warnings

import orbax.checkpoint  # noqa: F401
import tensorflow_datasets.proto  # noqa: F401

# What the commands import while they run, too, lest every process imports it again.
from adversarial_augment import convert, deepaugment, evaluate, inference, plan, prepare, pretrain, report, train  # noqa: F401
from adversarial_augment.evaluation import attack_run, bench  # noqa: F401
from adversarial_augment.exporting import card  # noqa: F401
from adversarial_augment.preparation import corruptions, images  # noqa: F401
from adversarial_augment.reporting import runs  # noqa: F401
from adversarial_augment.run import train_job  # noqa: F401

PATIENCE = 60  # seconds, on a busy machine
ADDRESSES = 12 << 30  # bytes of address space, lest a failure takes the machine's memory


def child(command: list[str], errors: Path, folder: Path) -> None:
  os.chdir(folder)
  sys.path.insert(0, str(folder))  # as for a script that lies beside the data
  for number, path in ((1, os.devnull), (2, errors)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
  signal.alarm(PATIENCE)
  warnings.filterwarnings('ignore', '.*found in sys.modules')  # of `runpy`, since this has imported them
  module, *sys.argv[1:] = command
  code = 0
  try:
    runpy.run_module(f'adversarial_augment.{module}', run_name='__main__', alter_sys=True)
  except SystemExit as end:
    code = end.code or 0
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stderr.flush()
  os._exit(code)


def main() -> None:
  outcomes = {}
  for name, (command, folder) in json.load(sys.stdin).items():
    errors = Path(folder) / 'stderr'
    process = os.fork()
    if not process:
      child(command, errors, Path(folder))
    _, status, usage = os.wait4(process, 0)
    outcomes[name] = {
      'code': os.waitstatus_to_exitcode(status),
      'seconds': usage.ru_utime + usage.ru_stime,  # of the processor: others may be at work
      'bytes': usage.ru_maxrss << 10,
      'said': errors.read_text(errors='replace') if errors.exists() else '',
    }
  json.dump(outcomes, sys.stdout)


if __name__ == '__main__':
  main()
