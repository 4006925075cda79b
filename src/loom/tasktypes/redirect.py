"""Plans that Python tasks return: wrapped inputs become references to the task's own inputs."""

from loom.data.pack import to_packed
from loom.tasktypes.basic import get
from loom.tasktypes.python import PY_VALUE
from loom.tasktypes.task import InputReference, Source, Task
from loom.tasktypes.wrappers import Wrapper


def without_wrappers(root: Task) -> Task:
    """Replace the wrappers that are inputs of `root`, or of tasks behind it, in place.

    An input becomes an InputReference, an element a `get` of what it is an element of, a wrapped value a task that
    makes it.
    """
    replaced: dict[Wrapper, Source] = {}
    ahead = [root]
    seen = {root}
    while ahead:
        task = ahead.pop()
        if any(isinstance(given, Wrapper) for given in task.inputs):
            task.inputs = tuple(
                _source_of(given, replaced) if isinstance(given, Wrapper) else given for given in task.inputs
            )
        inner = [given for given in task.inputs if isinstance(given, Task) and given not in seen]
        seen.update(inner)
        ahead += inner
    return root


def _source_of(wrapper: Wrapper, replaced: dict[Wrapper, Source]) -> Source:
    """What stands for a wrapper in a plan, the same each time. An element in an element takes a `get` for each."""
    way = [wrapper]
    while way[-1].whole is not None and way[-1] not in replaced:
        way.append(way[-1].whole)
    for step in reversed(way):
        if step in replaced:
            continue
        if step.whole is not None:
            replaced[step] = get(replaced[step.whole], step.element)
        elif step.position is not None:
            replaced[step] = InputReference(step.position)
        else:
            replaced[step] = Task(PY_VALUE, (), to_packed(step.data_object))
    return replaced[wrapper]
