"""The files of cluster/: their syntax, by the tools' own schemas; the commands that they run; what they restart on.

Scripts run with stubs of the programs of a cluster (srun, gcloud, docker...), which write down how they were called.
"""

import json
import math
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

from packaging.requirements import Requirement
import pytest
import yaml

from adversarial_augment import config as configs
from adversarial_augment import prepare
from adversarial_augment.config import command_line
from adversarial_augment.parallel import launch

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / 'cluster'
DOCKERFILES = ('gpu.Dockerfile', 'tpu.Dockerfile')
FINAL, AGAIN = (1, 2, 3, 4, 5), (75, 134)
# Long options of sbatch and of `gcloud compute tpus queued-resources`, from their reference pages.
OPTIONS = {
  'sbatch': 'account array begin chdir comment constraint container cpus-per-gpu cpus-per-task dependency error '
  'exclude exclusive export gpus gpus-per-node gpus-per-task gres hold input job-name licenses mail-type '
  'mail-user mem mem-per-cpu mem-per-gpu no-requeue nodelist nodes ntasks ntasks-per-gpu ntasks-per-node open-mode '
  'output parsable partition prefer qos requeue reservation signal threads-per-core time time-min wait wckey',
  'create': 'zone node-id node-count node-prefix accelerator-type type topology runtime-version spot guaranteed '
  'reserved metadata metadata-from-file service-account network subnetwork internal-ips labels tags scopes async '
  'valid-until-duration valid-after-duration',
  'delete': 'zone force quiet async',
  'describe': 'zone format',
}


def load(name: str) -> list[dict[str, Any]]:
  return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def bare(manifest: dict[str, Any]) -> dict[str, Any]:
  """Returns a manifest with the values of a template that Kubernetes has expanded."""
  return json.loads(json.dumps(manifest).replace('$(MIRROR)', 'gs://BUCKET/ada'))


def tool(name: str) -> str:
  """Returns a program that a package of the extra has installed beside this Python, or elsewhere."""
  found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
  return found or pytest.skip(f"{name} is not installed: pip install -e '.[cluster]'")


def check_command(argv: list[str]) -> str:
  """Checks a command of this package by its own parser; returns its name."""
  module = argv[argv.index('-m') + 1].removeprefix('adversarial_augment.')
  # The packages of the buckets need not be installed here.
  rest = [re.sub('^--mirror=(gs|s3)://', '--mirror=memory://', flag) for flag in argv[argv.index('-m') + 2 :]]
  if module == 'train':
    parsed = command_line.parse_train(rest)
    assert parsed.config == 'configs/ada_edsr.py'
    assert parsed.mirror is not None
    configs.validate(configs.override(configs.load(str(ROOT / parsed.config)), parsed.overrides))
  else:
    assert module == 'prepare'
    prepare._parser().parse_args(rest)
  return module


class Stubs:
  """A folder of programs that write down their arguments, and a home without anything else."""

  def __init__(self, folder: Path):
    self.folder, self._log = folder / 'bin', folder / 'calls'
    self.folder.mkdir()
    self.add('sleep')

  def add(self, name: str, body: str = '') -> None:
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\nprintf "%q " {name} "$@" >>{self._log}; echo >>{self._log}\n{body}\n')
    path.chmod(0o755)

  def run(self, script: str, **variables: str) -> int:
    environment = {'PATH': f'{self.folder}:{os.environ["PATH"]}', 'HOME': str(self.folder.parent), **variables}
    done = subprocess.run(['bash', '-c', script], env=environment, cwd=self.folder.parent, timeout=60, check=False)
    return done.returncode

  def calls(self, name: str) -> list[list[str]]:
    lines = [shlex.split(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []
    return [arguments for called, *arguments in lines if called == name]


@pytest.fixture
def stubs(tmp_path) -> Stubs:
  return Stubs(tmp_path)


# What each file restarts on.


def action(job: dict[str, Any], code: int) -> str | None:
  """Returns what the first rule of a Job does that fits an exit code, as Kubernetes decides it; None: no rule fits."""
  for rule in job['podFailurePolicy']['rules']:
    on = rule.get('onExitCodes')
    if on and (code in on['values']) == (on['operator'] == 'In'):
      return rule['action']
  return None


def test_kubernetes_restarts_pods_after_75_and_lost_nodes_and_not_after_wrong_input():
  job, service = load('kubernetes-gpu.yaml')
  spec = job['spec']
  assert {action(spec, code) for code in FINAL} == {'FailJob'}
  assert {action(spec, code) for code in AGAIN} == {'Ignore'}  # does not count
  assert action(spec, 137) is None  # counts
  lost = [rule['action'] for rule in spec['podFailurePolicy']['rules'] if 'onPodConditions' in rule]
  assert lost == ['Ignore']
  assert spec['backoffLimit'] > 10
  assert spec['completions'] == spec['parallelism'] == int(job['metadata']['annotations']['pods'])
  pod = spec['template']['spec']
  assert pod['restartPolicy'] == 'Never'  # a podFailurePolicy demands it
  assert pod['terminationGracePeriodSeconds'] >= 60
  labels = spec['template']['metadata']['labels']
  assert service['spec']['selector'] == labels
  assert pod['subdomain'] == service['metadata']['name']


def test_the_pods_of_kubernetes_find_each_other(monkeypatch):
  job, service = load('kubernetes-gpu.yaml')
  container = job['spec']['template']['spec']['containers'][0]
  for variable in container['env']:
    index = 'valueFrom' in variable
    if index:
      assert variable['valueFrom']['fieldRef']['fieldPath'].endswith("/job-completion-index']")
    monkeypatch.setenv(variable['name'], '1' if index else variable['value'])
  found = launch.find(command_line.parse_train(['--config=a.py']))
  address = f'{job["metadata"]["name"]}-0.{service["metadata"]["name"]}:8476'
  assert (found.number, found.process, found.address) == (job['spec']['completions'], 1, address)


def test_a_jobset_restarts_all_pods_but_not_after_wrong_input():
  (jobset,) = load('tpu-jobset.yaml')
  (replicated,) = jobset['spec']['replicatedJobs']
  spec, policy = replicated['template']['spec'], jobset['spec']['failurePolicy']
  assert {action(spec, code) for code in FINAL} == {'FailJob'}
  assert {action(spec, code) for code in (*AGAIN, 137)} == {None}
  assert spec['backoffLimit'] == 0  # so that the Job fails, for another reason than PodFailurePolicy
  (rule,) = policy['rules']
  assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
  assert re.fullmatch('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])
  assert policy['maxRestarts'] > 10
  pod = spec['template']['spec']
  assert (pod['restartPolicy'], pod['terminationGracePeriodSeconds'] >= 60) == ('Never', True)
  chips = math.prod(map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')))
  each = pod['containers'][0]['resources']['limits']['google.com/tpu']
  assert spec['completions'] == spec['parallelism'] == chips // each


@pytest.mark.parametrize(
  'code, restarts, requeued',
  [*((code, 0, False) for code in (0, *FINAL)), *((code, 0, True) for code in (*AGAIN, 137)), (75, 100, False)],
)
def test_slurm_requeues_the_job(code, restarts, requeued, stubs, tmp_path):
  stubs.add('python', 'mkdir -p data/cifar10')
  stubs.add('srun', f'exit {code}')
  stubs.add('scontrol')
  (tmp_path / '.venv' / 'bin').mkdir(parents=True)
  (tmp_path / '.venv' / 'bin' / 'activate').touch()
  script = (CLUSTER / 'slurm.sh').read_text()
  variables = {'SLURM_JOB_ID': '7', 'SLURM_JOB_NAME': 'ada', 'SLURM_RESTART_COUNT': str(restarts)}
  for _ in range(2):  # the second time, the data set is there
    assert stubs.run(script, **variables) == code
  assert stubs.calls('scontrol') == 2 * [['requeue', '7']] * requeued
  commands = [check_command(argv) for argv in (*stubs.calls('python'), *stubs.calls('srun'))]
  assert commands == ['prepare', 'train', 'train']


def test_slurm_does_not_requeue_what_was_cancelled(stubs, tmp_path):
  stubs.add('srun', 'kill -TERM $PPID; exit 75')
  stubs.add('scontrol')
  (tmp_path / 'data' / 'cifar10').mkdir(parents=True)
  (tmp_path / '.venv' / 'bin').mkdir(parents=True)
  (tmp_path / '.venv' / 'bin' / 'activate').touch()
  assert stubs.run((CLUSTER / 'slurm.sh').read_text(), SLURM_JOB_ID='7', SLURM_JOB_NAME='ada') == 75
  assert stubs.calls('scontrol') == []


def test_the_directives_of_slurm_are_known():
  lines = re.findall('^#SBATCH --([a-z-]+)(?:=(.*))?$', (CLUSTER / 'slurm.sh').read_text(), re.MULTILINE)
  options = dict(lines)
  assert len(lines) == (CLUSTER / 'slurm.sh').read_text().count('\n#SBATCH ')
  assert options.keys() <= {*OPTIONS['sbatch'].split()}
  assert options['signal'] == 'TERM@120'  # the steps, not this script
  assert {'requeue', 'open-mode'} <= options.keys()
  assert options['ntasks-per-node'] == options['gpus-per-node']  # JAX gives each task one


def boot(tmp_path: Path) -> str:
  """Returns the script that each host of a slice of queued resources runs at boot."""
  text = (CLUSTER / 'tpu-queue.sh').read_text()
  made = text[: text.index('\nqueued() {')] + '\ncat "$boot"; rm "$boot"'
  return subprocess.run(['bash', '-c', made], capture_output=True, text=True, check=True, cwd=tmp_path).stdout


@pytest.mark.parametrize(
  'codes, host, reported',
  [
    ('0', 0, '0'), ('75 134 137 0', 0, '0'), ('75 0', 1, None), ('2', 0, '2'), ('75 3', 1, '3'),
  ],
)  # fmt: skip
def test_the_hosts_of_queued_resources_train_until_they_end_for_good(codes, host, reported, stubs, tmp_path):
  (tmp_path / 'codes').write_text(f'0 {codes}')  # the first one is that of `prepare`
  stubs.add('docker', 'read -r first rest <codes; echo "$rest" >codes; exit "$first"')
  stubs.add('gcloud', f'[[ $1 == storage ]] && cat >{tmp_path}/reported')
  stubs.add('curl', f'echo {host}')
  stubs.add('mkdir')
  stubs.run(boot(tmp_path))
  report = tmp_path / 'reported'
  assert (report.read_text().strip() if report.exists() else None) == reported
  commands = [check_command(argv) for argv in stubs.calls('docker')]
  assert commands == ['prepare'] + ['train'] * len(codes.split())
  if reported:
    assert stubs.calls('gcloud')[-1] == ['storage', 'cp', '-', 'gs://BUCKET/ada.exit_code']


def test_hosts_without_data_report_it(stubs, tmp_path):
  stubs.add('docker', 'exit 2')
  stubs.add('gcloud', f'[[ $1 == storage ]] && cat >{tmp_path}/reported')
  stubs.add('curl', 'echo 1')
  stubs.add('mkdir')
  stubs.run(boot(tmp_path))
  assert (tmp_path / 'reported').read_text() == '2\n'
  assert len(stubs.calls('docker')) == 1


@pytest.mark.parametrize('final', [0, 2])
def test_another_slice_is_asked_for_when_one_was_taken_away(final, stubs, tmp_path):
  """The states that `describe` gives, one after the other; 'ended': a host has written its exit code."""
  (tmp_path / 'states').write_text('none WAITING_FOR_RESOURCES ACTIVE SUSPENDING SUSPENDED none ACTIVE ended')
  stubs.add(
    'gcloud',
    f"""
    read -r state rest <states
    case "$*" in
      'storage cat'*) [[ $state == ended ]] && echo {final} ;;
      *describe*) echo "$rest" >states; [[ $state == none ]] && exit 1; echo "$state" ;;
    esac""",
  )
  assert stubs.run((CLUSTER / 'tpu-queue.sh').read_text(), TMPDIR=str(tmp_path)) == final
  queued = [call[3:] for call in stubs.calls('gcloud') if call[2:3] == ['queued-resources']]
  assert [call[0] for call in queued if call[0] != 'describe'] == ['create', 'delete', 'create', 'delete']
  for name, resource, *flags in queued:
    assert resource == 'ada'
    known = {f'--{flag}' for flag in OPTIONS[name].split()}
    assert {flag.partition('=')[0] for flag in flags} <= known
  [created, _] = [call for call in queued if call[0] == 'create']
  assert {'--spot', '--accelerator-type=v5litepod-16'} <= {*created}


def test_skypilot_recovers_after_75_and_not_after_wrong_input(stubs, tmp_path):
  (task,) = load('skypilot.yaml')
  recovery = task['resources']['job_recovery']
  assert {*AGAIN, 137} <= {*recovery['recover_on_exit_codes']}
  assert not {0, *FINAL} & {*recovery['recover_on_exit_codes']}
  assert recovery['max_restarts_on_errors'] == 0
  assert task['resources']['use_spot'] is True
  stubs.add('../venv/bin/python', 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID" >found; exit 75')
  nodes = {'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': '1'}
  assert stubs.run(task['run'], **nodes, **task['envs']) == 75
  assert (tmp_path / 'found').read_text() == '10.0.0.1:8476 2 1\n'
  (tmp_path / 'data' / 'cifar10').mkdir(parents=True)
  stubs.add('python3')
  stubs.add('../venv/bin/pip')
  assert stubs.run(task['setup']) == 0
  (tmp_path / 'data' / 'cifar10').rmdir()
  assert stubs.run(task['setup']) == 75
  argvs = stubs.calls('../venv/bin/python')
  assert [check_command(argv) for argv in argvs] == ['train', 'prepare']


@pytest.mark.parametrize('name', ['kubernetes-gpu.yaml', 'tpu-jobset.yaml'])
def test_pods_run_the_commands(name):
  manifest = bare(load(name)[0])
  spec = manifest['spec']
  job = spec if 'template' in spec else spec['replicatedJobs'][0]['template']['spec']
  pod = job['template']['spec']
  made = [check_command(one['command'] + one.get('args', [])) for one in (*pod['initContainers'], *pod['containers'])]
  assert made == ['prepare', 'train']
  assert {one['image'] for one in (*pod['initContainers'], *pod['containers'])} == {
    manifest['metadata']['annotations']['image']
  }


# Syntax, by the tools' own schemas.


@pytest.mark.parametrize('name', ['slurm.sh', 'tpu-queue.sh', 'boot', 'setup', 'run'])
def test_scripts_are_sound(name, tmp_path):
  path = tmp_path / 'script'
  if name == 'boot':
    path.write_text(boot(tmp_path))
  elif name in ('setup', 'run'):
    path.write_text('#!/usr/bin/env bash\n' + load('skypilot.yaml')[0][name])
  else:
    path = CLUSTER / name
    assert os.access(path, os.X_OK)
  subprocess.run(['bash', '-n', path], check=True)
  found = subprocess.run([tool('shellcheck'), path], capture_output=True, text=True, check=False)
  assert found.returncode == 0, found.stdout


def test_manifests_have_the_schema_of_kubernetes():
  kubernetes_validate = pytest.importorskip('kubernetes_validate', reason="pip install -e '.[cluster]'")
  (jobset,) = load('tpu-jobset.yaml')
  job = jobset['spec']['replicatedJobs'][0]['template'] | {'apiVersion': 'batch/v1', 'kind': 'Job'}
  for manifest in (*load('kubernetes-gpu.yaml'), job):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
  job['spec']['backOffLimit'] = 0
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_jobset_has_the_schema_of_jobset():
  models = pytest.importorskip('kubeflow_trainer_api.models', reason="pip install -e '.[cluster]'")
  (jobset,) = load('tpu-jobset.yaml')
  parsed = models.JobsetV1alpha2JobSet.from_dict(jobset)
  assert parsed.to_dict() == jobset  # unknown fields would be gone


def test_the_task_has_the_schema_of_skypilot(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))  # importing SkyPilot writes there
  sky = pytest.importorskip('sky', reason='pip install skypilot')
  parsed = sky.Task.from_yaml_config(load('skypilot.yaml')[0])
  (resources,) = parsed.resources
  assert (resources.use_spot, resources.accelerators) == (True, {'H100': 1})
  assert resources.job_recovery == load('skypilot.yaml')[0]['resources']['job_recovery'] | {'strategy': None}
  with pytest.raises(ValueError, match='num_node'):
    sky.Task.from_yaml_config(load('skypilot.yaml')[0] | {'num_node': 1})


@pytest.mark.parametrize('name', DOCKERFILES)
def test_images_are_pinned_and_do_not_run_as_root(name):
  text = (CLUSTER / name).read_text()
  assert f'docker build --file cluster/{name} ' in text
  assert re.search(r'^FROM python:3\.\d+\.\d+-', text, re.MULTILINE)
  assert re.findall('^USER (.*)$', text, re.MULTILINE) == ['1000']
  for installed in re.findall(r'pip install((?: .*\\\n)*.*)', text):
    assert '--constraint constraints.txt' in installed or installed.endswith('--no-deps .')
  found = subprocess.run([tool('hadolint'), CLUSTER / name], capture_output=True, text=True, check=False)
  assert found.returncode == 0, found.stdout


def test_every_version_in_an_image_is_pinned_and_allowed():
  lines = (CLUSTER / 'constraints.txt').read_text().splitlines()[1:]
  pinned = dict(line.split('==') for line in lines)
  assert len(pinned) == len(lines)
  for line in (ROOT / 'requirements.txt').read_text().splitlines():
    if not line.startswith('#'):
      requirement = Requirement(line)
      assert pinned[re.sub('[-_.]+', '-', requirement.name).lower()] in requirement.specifier, line


# The steps of the Dockerfiles, without Docker.


def steps(name: str) -> list[tuple[str, str]]:
  """Returns the instructions of a Dockerfile: word and text."""
  text = re.sub('^#.*\n', '', (CLUSTER / name).read_text(), flags=re.MULTILINE).replace('\\\n', ' ')
  return [(line.partition(' ')[0], line.partition(' ')[2]) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('name', DOCKERFILES)
def test_the_steps_of_an_image_make_an_environment_that_trains(name, tmp_path):
  """Runs them in a bare virtual environment.

  Replaced are the image by a Python of its minor version, WORKDIR and /runs by folders of the test, useradd and USER by
  nothing, and the quick start by its smoke form. Of `jax[cuda13]`, whose wheels have 3 GB, the versions are resolved,
  and jax is installed without CUDA.
  """
  venv, root = tmp_path / 'venv', tmp_path / 'root'
  version = re.search(r'^FROM python:(3\.\d+)', (CLUSTER / name).read_text(), re.MULTILINE)[1]
  python = shutil.which(f'python{version}')
  if python is None or subprocess.run([python, '--version'], capture_output=True).returncode:  # pyenv's may not start
    pytest.skip(f'there is no python{version} that starts, for which versions are pinned')
  subprocess.run([python, '-m', 'venv', venv], check=True)
  environment = {'PATH': f'{venv / "bin"}:/usr/bin:/bin', 'HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
  environment |= {name: value for name, value in os.environ.items() if name.startswith(('PIP_', 'XDG_'))}
  here = root
  for word, text in steps(name):
    if word == 'WORKDIR':
      here = Path(f'{root}{text}')
      here.mkdir(parents=True)
    elif word == 'COPY':
      *sources, target = text.split()
      for source in sources:
        path = ROOT / source
        if path.is_dir():
          shutil.copytree(path, here / target, ignore=shutil.ignore_patterns('__pycache__'))
        else:
          shutil.copy(path, here / target)
    elif word == 'ENV':
      environment |= dict([text.split('=', 1)])
    elif word == 'RUN' and not text.startswith('useradd'):
      if 'cuda13' in text:
        subprocess.run(['bash', '-c', f'{text} --dry-run'], cwd=here, env=environment, check=True)
        text = text.replace('jax[cuda13]', 'jax')
      subprocess.run(['bash', '-c', text], cwd=here, env=environment, check=True)
    elif word == 'CMD':
      text = text.replace(':quickstart', ':smoke').replace('/runs', str(tmp_path / 'runs'))
      subprocess.run(json.loads(text), cwd=here, env=environment, check=True)
    else:
      assert word in ('FROM', 'USER', 'RUN'), word
  installed = subprocess.run([venv / 'bin' / 'pip', 'freeze'], capture_output=True, text=True, check=True).stdout
  pinned = {*(CLUSTER / 'constraints.txt').read_text().splitlines()}
  normal = lambda line: re.sub('[-_.]+', '-', line.partition('==')[0]).lower() + '==' + line.partition('==')[2]
  assert {normal(line) for line in installed.splitlines() if '==' in line} <= pinned
  (trained,) = (tmp_path / 'runs').glob('*/results/train.json')
  versions = json.loads(trained.read_text())['versions']
  assert f'jax=={versions["jax"]}' in pinned
