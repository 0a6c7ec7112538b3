"""Work cut into tasks: run here, in local processes, or on a Ray cluster.

Results come back in the order of the tasks, whatever the order in which they end, so what is made
of them does not depend on who ran what.
"""

from qgraph.tasks.opening import open_executor
from qgraph.tasks.task import Executor, InProcess, SharedFolder, Task

__all__ = ["Executor", "InProcess", "SharedFolder", "Task", "open_executor"]
