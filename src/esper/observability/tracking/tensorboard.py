"""TensorBoard: event files in ``tensorboard/`` of the run directory, written by TensorBoard's own writer.

Neither torch nor TensorFlow takes part. A run that is resumed begins another file; what a process that was killed wrote
beyond the step that it noted is told again, so that TensorBoard is to forget it.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from esper.observability.tracking.tracker import Run

FOLDER = "tensorboard"
BUCKETS = 30


class TensorBoard:
    """Writes event files.

    Args:
        run: the run.

    Attributes:
        id: None: the directory is its name.
    """

    def __init__(self, run: Run) -> None:
        self.id: str | None = None
        self._writer = EventFileWriter(str(run.directory / FOLDER))
        self._writer.add_event(Event(step=run.next_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        self._add(step, [Summary.Value(tag=name, histo=histogram(one)) for name, one in values.items()])

    def text(self, step: int, text: str) -> None:
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        is_text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._add(step, [Summary.Value(tag="growth/text_summary", metadata=is_text, tensor=tensor)])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, values: list[Any]) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def histogram(values: Sequence[float]) -> Any:
    """A histogram of equal buckets over the range of the values. Places have few seeds: numpy takes longer."""
    low, high = min(values), max(values)
    width = (high - low) / BUCKETS or 1.0
    counts = [0] * BUCKETS
    for value in values:
        counts[min(int((value - low) / width), BUCKETS - 1)] += 1
    return HistogramProto(
        min=low,
        max=high,
        num=len(values),
        sum=sum(values),
        sum_squares=sum(value * value for value in values),
        bucket_limit=[low + width * end for end in range(1, BUCKETS + 1)],
        bucket=counts,
    )
