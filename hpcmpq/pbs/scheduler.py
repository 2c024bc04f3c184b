"""PBS, as one of the batch systems."""

from hpcmpq.batch.scheduler import Scheduler
from hpcmpq.pbs.chain import chain_script
from hpcmpq.pbs.settings import parse_settings, with_memory
from hpcmpq.pbs.states import states

PBS = Scheduler(
    "PBS", "qsub", "qdel", "jobs/pbs", "pbs", ("pbs.sh",), parse_settings, chain_script, states, with_memory
)
