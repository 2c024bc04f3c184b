"""The jobs that were submitted for a run, RUN/jobs.json."""

from typing import Any

from hpcmpq.errors import DamagedFile
from hpcmpq.store.json_files import read_json
from hpcmpq.store.run_dir import RunDir


def read_submissions(run: RunDir) -> list[dict[str, Any]]:
    """All submissions, the latest last: `jobs` {name: the scheduler's id}, `scheduler`; none where there is no file.

    Raises:
        DamagedFile: If it is damaged; submitting again, which writes it anew, is no remedy for jobs that may still run.
    """
    if not run.jobs_path.exists():
        return []
    try:
        found: list[dict[str, Any]] = read_json(run.jobs_path, "hpcmpq submit")["submissions"]
        if all(submission["jobs"] for submission in found):
            return found
        said = f"{run.jobs_path} is damaged (a submission without jobs)"
    except DamagedFile as error:
        said = str(error).rpartition("; run `")[0]
    raise DamagedFile(f"{said}; move it away: the scheduler lists the jobs that it knew")
