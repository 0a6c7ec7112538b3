"""Who runs the tasks of a command, from what the user asked for."""

from qgraph.errors import UsageError
from qgraph.tasks.task import Executor, InProcess

LOCAL = "local"


def open_executor(workers: int | None = None, ray: str | None = None) -> Executor:
    """Choose who runs tasks; nothing starts before there are some.

    Args:
        workers: Worker processes on this machine; None or 1 for none beside this process. With
            `ray="local"`, the processors of the cluster that is started.
        ray: Address of a Ray cluster as `ray.init` takes it, or `local` to start one here.

    Raises:
        UsageError: A number below 1, workers for a cluster that has its own, or Ray is missing.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers can't do anything", fix="give 1 or more")
    if ray is not None:
        from qgraph.tasks.ray_cluster import RayCluster

        if workers is not None and ray != LOCAL:
            raise UsageError(
                f"the cluster at {ray} decides how many tasks run at a time",
                fix="leave out --workers",
            )
        return RayCluster(ray, workers)
    if workers is None or workers == 1:
        return InProcess()
    from qgraph.tasks.processes import Processes

    return Processes(workers)
