"""Scripts and answers of every batch system: texts in, texts out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from daskfleet.deploy.jobqueue import (
    HTCondorCluster,
    JobQueueCluster,
    LSFCluster,
    MoabCluster,
    OARCluster,
    PBSCluster,
    SGECluster,
    SLURMCluster,
)
from daskfleet.deploy.jobqueue.others import Condor, Lsf, Oar
from daskfleet.deploy.jobqueue.pbs import Moab, Pbs
from daskfleet.deploy.jobqueue.script import Resources, in_units, lifetime, seconds, split
from daskfleet.deploy.jobqueue.sge import Sge
from daskfleet.deploy.jobqueue.slurm import Slurm
from daskfleet.deploy.jobqueue.system import JobStatus, State
from daskfleet.exceptions import DaskfleetError

EVERY = (SLURMCluster, PBSCluster, SGECluster, LSFCluster, HTCondorCluster, OARCluster, MoabCluster)
SIZE = {"cores": 8, "memory": "24 GB", "dashboard_address": None}


def script(cls: type[JobQueueCluster], **options: object) -> str:
    with cls(**{**SIZE, "processes": 2, **options}) as cluster:
        text = cluster.job_script()
        assert cluster.security is not None and str(cluster.security.token) not in text
        return text


@pytest.mark.parametrize(
    ("cls", "lines"),
    [
        (SLURMCluster, ["#SBATCH -J dask-worker", "#SBATCH -p gpu", "#SBATCH -A me", "#SBATCH -n 1",
                        "#SBATCH --cpus-per-task=8", "#SBATCH --mem=22889M", "#SBATCH -t 02:00:00"]),
        (PBSCluster, ["#PBS -N dask-worker", "#PBS -q gpu", "#PBS -A me", "#PBS -l select=1:ncpus=8:mem=22889MB",
                      "#PBS -l walltime=02:00:00"]),
        (MoabCluster, ["#PBS -N dask-worker", "#PBS -q gpu", "#PBS -A me", "#PBS -l walltime=02:00:00"]),
        (SGECluster, ["#$ -N dask-worker", "#$ -q gpu", "#$ -P me", "#$ -l h_rt=02:00:00", "#$ -cwd", "#$ -j y"]),
        (LSFCluster, ["#BSUB -J dask-worker", "#BSUB -q gpu", "#BSUB -P me", "#BSUB -n 8",
                      '#BSUB -R "span[hosts=1]"', "#BSUB -M 24000000", "#BSUB -W 02:00"]),
        (OARCluster, ["#OAR -n dask-worker", "#OAR -q gpu", "#OAR --project me",
                      "#OAR -l /nodes=1/core=8,walltime=02:00:00"]),
        (HTCondorCluster, ["Request_Cpus = 8", "Request_Memory = 22889", "Accounting_Group = me", "Queue"]),
    ],
)  # fmt: skip
def test_directives(cls: type[JobQueueCluster], lines: list[str]) -> None:
    text = script(cls, queue="gpu", account="me", walltime="02:00:00")
    assert [line for line in lines if line not in text.splitlines()] == [], text
    command = next(line for line in text.splitlines() if "daskfleet.cli.worker" in line)
    for words in ("--scheduler-file", "--nthreads 4", "--nworkers 2", "--memory-limit 12000000000", "--nanny",
                  "--death-timeout 60", "--lifetime 6900s"):  # fmt: skip
        assert words in command


def test_everything_of_the_users_is_in_the_script() -> None:
    text = script(
        SLURMCluster,
        job_extra_directives=["--exclusive", "--gres=gpu:1"],
        job_directives_skip=["--mem", "-n 1"],
        job_script_prologue=["module load python"],
        job_script_epilogue=["echo over"],
        worker_extra_args=["--resources", "GPU=1"],
        shebang="#!/bin/zsh",
        python="/opt/python",
        interface="lo",
        local_directory="/scratch/$USER",
        nanny=False,
        job_name="sums",
    )
    lines = text.splitlines()
    assert lines[0] == "#!/bin/zsh"
    assert {"#SBATCH --exclusive", "#SBATCH --gres=gpu:1", "#SBATCH -J sums"} <= set(lines)
    assert not any("--mem=" in line or line == "#SBATCH -n 1" for line in lines)
    start = lines.index("module load python")
    assert lines[start + 1].startswith("/opt/python -m daskfleet.cli.worker --scheduler-file ")
    assert lines[start + 1].endswith("--resources GPU=1") and "--no-nanny" in lines[start + 1]
    assert "--interface lo" in lines[start + 1] and "--local-directory /scratch/$USER" in lines[start + 1]
    assert "--lifetime" not in text, "there is no walltime"
    assert lines[start + 2] == "echo over"
    assert not subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode


#: What dask-jobqueue 0.9.0 writes for the same arguments, without where logs go: there the two differ.
SAME = {"cores": 8, "memory": "24 GB", "processes": 2, "queue": "gpu", "walltime": "02:00:00",
        "job_extra_directives": ["-x y"], "job_script_prologue": ["module load python"]}  # fmt: skip
UPSTREAM = [
    (SLURMCluster, {"account": "me", "job_cpu": 4, "job_mem": "30G"}, "#SBATCH",
     ["-J dask-worker", "-p gpu", "-A me", "-n 1", "--cpus-per-task=4", "--mem=30G", "-t 02:00:00", "-x y"]),
    (PBSCluster, {"account": "me", "resource_spec": "select=1:ncpus=8:mem=23GB"}, "#PBS",
     ["-N dask-worker", "-q gpu", "-A me", "-l select=1:ncpus=8:mem=23GB", "-l walltime=02:00:00", "-x y"]),
    (MoabCluster, {"account": "me", "resource_spec": "nodes=1:ppn=8"}, "#PBS",
     ["-N dask-worker", "-q gpu", "-A me", "-l nodes=1:ppn=8", "-l walltime=02:00:00", "-x y"]),
    (SGECluster, {"project": "me", "resource_spec": "h_vmem=24G"}, "#$",
     ["-N dask-worker", "-q gpu", "-P me", "-l h_vmem=24G", "-l h_rt=02:00:00", "-cwd", "-j y", "-x y"]),
    (LSFCluster, {"project": "me", "walltime": "02:00", "lsf_units": "MB"}, "#BSUB",
     ["-J dask-worker", "-q gpu", "-P me", "-n 8", '-R "span[hosts=1]"', "-M 24000", "-W 02:00", "-x y"]),
    (OARCluster, {"project": "me", "memory_per_core_property_name": "memcore",
                  "job_extra_directives": ["-t besteffort", "-p gpu=1"]}, "#OAR",
     ["-n dask-worker", "-q gpu", "--project me", "-l /nodes=1/core=8,walltime=02:00:00", "-t besteffort",
      "-p 'gpu=1 AND memcore>=2862'"]),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "options", "marker", "expected"), UPSTREAM)
def test_the_directives_are_those_of_dask_jobqueue(
    cls: type[JobQueueCluster], options: dict[str, object], marker: str, expected: list[str]
) -> None:
    lines = script(cls, **{**SAME, **options}).splitlines()
    ours = [line.removeprefix(marker).strip() for line in lines if line.startswith(marker)]
    logs = ("-o", "-e", "-O", "-E", "-j oe") + (("-j y",) if marker == "#PBS" else ())
    assert sorted(line for line in ours if not line.startswith(logs)) == sorted(expected)
    assert "module load python" in lines


def test_condor_s_submit_description_asks_for_the_same_as_dask_jobqueue_s() -> None:
    text = script(HTCondorCluster, disk="2 GB", job_extra_directives={"Rank": "Memory"}, job_name="sums")
    said = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert said["Request_Cpus"] == "8" and said["batch_name"] == "sums" and said["Rank"] == "Memory"
    assert said["Request_Memory"] == "22889", "its floor(24e9 / 1048576), rounded up"
    assert said["Request_Disk"] == "1953125", "its floor(2e9 / 1024)"
    assert said["Stream_Output"] == "True" and text.rstrip().endswith("Queue")


def test_memory_in_the_units_of_the_site_s_lsf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSF_ENVDIR", str(tmp_path))
    assert "#BSUB -M 24000000\n" in script(LSFCluster), "kilobytes, if nothing is said"
    (tmp_path / "lsf.conf").write_text("LSF_X=1\nLSF_UNIT_FOR_LIMITS=GB\n")
    assert "#BSUB -M 24\n" in script(LSFCluster)
    assert "#BSUB -M 24000\n" in script(LSFCluster, lsf_units="mb")
    assert "#BSUB -M 30000\n" in script(LSFCluster, lsf_units="mb", mem=30 * 10**9)
    with pytest.raises(ValueError, match="SLURMCluster: unknown parameters lsf_units"):
        script(SLURMCluster, lsf_units="mb")


def test_a_configuration_file_of_dask_jobqueue_s() -> None:
    import dask

    upstream = {"worker-command": "distributed.cli.dask_worker", "job-extra": None, "job-extra-directives": [],
                "env-extra": ["module load a"], "ncpus": 4, "mem": 10**9, "queue": "long", "project": "p",
                "shebang": "#!/bin/zsh", "lsf-units": "MB"}  # fmt: skip
    with dask.config.set({"jobqueue.lsf": upstream}):
        lines = set(script(LSFCluster).splitlines())
    assert {"#BSUB -n 4", "#BSUB -M 1000", "#BSUB -q long", "#BSUB -P p", "module load a", "#!/bin/zsh"} <= lines
    assert any(" -m daskfleet.cli.worker " in line for line in lines)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put commands before all others: name and what it does, in sh; its calls are in the file that comes back."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, text: str) -> Path:
        path, calls = tmp_path / name, tmp_path / f"{name}.calls"
        path.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{text}\n')
        path.chmod(0o755)
        return calls

    return put


def test_a_queue_that_takes_no_arrays_gets_single_jobs(commands, tmp_path: Path) -> None:
    """Torque, say, whose qsub knows no -J: it refuses the script of the array, and no other."""
    calls = commands("qsub", 'grep -q "#PBS -J" "$1" && { echo "qsub: illegal -J value" >&2; exit 1; }; echo $$.torque')
    commands("qstat", "true")
    deleted = commands("qdel", "true")
    with PBSCluster(n_workers=4, shared_temp_directory=str(tmp_path / "shared"), **SIZE, processes=1) as cluster:
        ids = {job.job_id for job in cluster.workers.values()}
        assert len(ids) == 4 and all(id.isdecimal() for id in ids)
    names = [line.rpartition("/")[2] for line in calls.read_text().splitlines()]
    assert sorted(names) == [f"{cluster.name}-0-array.job", *(f"{cluster.name}-{i}.job" for i in range(4))]
    assert set(deleted.read_text().split()) == ids


def test_what_refuses_the_jobs_themselves_is_not_taken_for_a_refusal_of_arrays(commands, tmp_path: Path) -> None:
    calls = commands("qsub", 'echo "qsub: Unknown queue" >&2; exit 1')
    with pytest.raises(DaskfleetError, match="Unknown queue"):
        PBSCluster(n_workers=4, shared_temp_directory=str(tmp_path / "shared"), **SIZE, processes=1)
    assert len(calls.read_text().splitlines()) == 2, "the array, and one of its jobs"


def test_more_arguments_of_condor_s_commands_and_lsf_without_stdin(commands, tmp_path: Path) -> None:
    shared = {"shared_temp_directory": str(tmp_path / "shared"), **SIZE, "processes": 1}
    submitted, removed = commands("condor_submit", 'echo "7.0 - 7.0"'), commands("condor_rm", "true")
    commands("condor_q", "echo []")
    extra = {"submit_command_extra": ["-remote", "big"], "cancel_command_extra": ["-name", "big"]}
    with HTCondorCluster(n_workers=1, **extra, **shared):
        pass
    assert submitted.read_text().startswith("-terse -remote big /") and removed.read_text() == "-name big 7\n"
    submitted = commands("bsub", "echo 'Job <9> is submitted'")
    commands("bkill", "true"), commands("bjobs", "true")
    with LSFCluster(n_workers=1, use_stdin=False, **shared) as cluster:
        pass
    assert submitted.read_text().endswith(f"{cluster.name}-0.job\n")


def test_old_names_of_parameters() -> None:
    text = script(PBSCluster, env_extra=["module load a"], job_extra=["-W x"], project="p", extra=["--no-dashboard"])
    assert {"module load a", "#PBS -W x", "#PBS -A p"} <= set(text.splitlines()) and "--no-dashboard" in text


def test_condor_arguments_survive_its_quoting() -> None:
    text = script(HTCondorCluster, job_script_prologue=['echo "it\'s"'])
    (line,) = [line for line in text.splitlines() if line.startswith("Arguments")]
    assert line.startswith('Arguments = "-c \'echo ""it\'\'s""; ') and line.endswith("'\"")


@pytest.mark.parametrize("cls", EVERY)
def test_what_is_missing_is_said(cls: type[JobQueueCluster]) -> None:
    with pytest.raises(ValueError, match="how many cores"):
        cls(memory="1GB")
    with pytest.raises(ValueError, match="how much memory"):
        cls(cores=1)
    with pytest.raises(ValueError, match="unknown parameters coers"):
        cls(**SIZE, coers=2)
    with pytest.raises(ValueError, match="walltime 'soon'"):
        cls(**SIZE, walltime="soon")


def test_without_the_commands_of_the_queue() -> None:
    with pytest.raises(DaskfleetError, match="no command bsub here"):
        LSFCluster(n_workers=1, **SIZE)
    with pytest.raises(TypeError, match="use one of those"):
        JobQueueCluster(**SIZE)


def test_walltimes_and_lifetimes() -> None:
    assert seconds("01:30:00") == 5400 and seconds("1-00:00:10") == 86410 and seconds("2-03") == 2 * 86400 + 3 * 3600
    assert seconds("90") == 5400 and seconds("90", unit=1) == 90 and seconds(None) is None
    assert seconds("01:30") == 5400 and seconds("01:30", unit=1) == 90
    assert lifetime(None) is None
    assert lifetime(7200) == 6900 and lifetime(600) == 570 and lifetime(40) == 20
    assert [split(n) for n in (1, 2, 4, 8, 36, 7)] == [1, 2, 4, 4, 6, 7]
    assert in_units(24 * 10**9, "MiB") == 22889 and in_units(1, "GB") == 1


def test_slurm_answers() -> None:
    slurm = Slurm()
    assert slurm.job_id("123;cluster\n") == "123" and slurm.task_id("123", 4) == "123_4"
    assert slurm.statuses(
        "12_3|RUNNING|None|n1\n13|PENDING|Resources|\n14|OUT_OF_MEMORY|OutOfMemory|n2\n15|COMPLETED|None|n1\n"
    ) == {
        "12_3": JobStatus(State.running, "RUNNING", "None"),
        "13": JobStatus(State.pending, "PENDING", "Resources"),
        "14": JobStatus(State.failed, "OUT_OF_MEMORY", "OutOfMemory, on n2"),
        "15": JobStatus(State.done, "COMPLETED", "None"),
    }
    assert slurm.read_post_mortem("TIMEOUT|0:0\n") == JobStatus(State.failed, "TIMEOUT", "exit status 0")
    assert slurm.read_post_mortem("CANCELLED by 0|0:0\n").state is State.done
    assert slurm.read_post_mortem("") is None
    with pytest.raises(ValueError, match="no job id"):
        slurm.job_id("error")


def test_pbs_answers() -> None:
    pbs = Pbs()
    assert pbs.job_id("42.server.site\n") == "42"
    assert pbs.job_id("42[].server\n") == "42" and pbs.task_id("42", 3) == "42[3]"
    assert pbs.query("me", ["1", "42[0]", "42[3]"]) == ["qstat", "-t", "-f", "42[]", "1"]
    assert pbs.query("me", ["1", "2"]) == ["qstat", "-f", "1", "2"]
    assert "#PBS -J 0-3" in pbs.header(Resources("x", 1, 10**9, None, None, None, "/logs"), "0-3")
    tasks = pbs.statuses(
        "Job Id: 42[].server\n    job_state = B\n\nJob Id: 42[0].server\n    job_state = R\n\n"
        "Job Id: 42[1].server\n    job_state = X\n    Exit_status = 0\n"
    )
    assert tasks["42[0]"].state is State.running and tasks["42[1]"] == JobStatus(State.done, "X", "exit status 0")
    listed = pbs.statuses(
        "Job Id: 42.server\n    Job_Name = x\n    job_state = Q\n    comment = Not Running: no nodes\n\n"
        "Job Id: 43.server\n    job_state = R\n\nJob Id: 44.server\n    job_state = F\n    Exit_status = 271\n"
    )
    assert listed["42"] == JobStatus(State.pending, "Q", "Not Running: no nodes")
    assert listed["43"].state is State.running
    assert listed["44"] == JobStatus(State.failed, "F", "exit status 271")


def test_sge_answers() -> None:
    sge = Sge()
    assert sge.job_id("7.2-4:1\n") == "7"
    job = "<job_list><JB_job_number>{}</JB_job_number><state>{}</state><tasks>{}</tasks></job_list>"
    answer = f"<job_info>{job.format(7, 'r', 2)}{job.format(7, 'qw', '3-4:1')}{job.format(8, 'Eqw', '')}</job_info>"
    states = {id: status.state for id, status in sge.statuses(answer).items()}
    assert states == {"7.2": State.running, "7.3": State.pending, "7.4": State.pending, "8": State.failed}
    assert sge.cancel_arguments(["8", "7.2"]) == [["qdel", "8"], ["qdel", "7", "-t", "2"]]
    told = sge.read_post_mortem("failed       100 : assumedly after job\nexit_status  137\n")
    assert told == JobStatus(State.failed, "failed", "exit status 137, 100 : assumedly after job")


def test_answers_of_the_others() -> None:
    assert Lsf().job_id("Job <77> is submitted to queue <normal>.") == "77"
    assert Lsf().statuses("77|EXIT|130|-\n78|PEND|-|no hosts\n") == {
        "77": JobStatus(State.failed, "EXIT", "exit status 130"),
        "78": JobStatus(State.pending, "PEND", "no hosts"),
    }
    assert Condor().job_id("5.0 - 5.0") == "5"
    held = json.dumps([{"ClusterId": 5, "JobStatus": 5, "HoldReason": "no file"}])
    assert Condor().statuses(held) == {"5": JobStatus(State.failed, "held", "no file")}
    assert Oar().job_id("OAR_JOB_ID=9\n") == "9"
    assert Oar().statuses('{"9": {"state": "Waiting"}}')["9"].state is State.pending
    assert Moab().job_id("\nMoab.12\n") == "Moab.12"
    assert Moab().statuses('<job JobID="Moab.12" State="Running">')["Moab.12"].state is State.running
