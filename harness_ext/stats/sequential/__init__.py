"""Group-sequential tests: the design, its boundaries, a monitor for each row, and the estimates after stopping."""

from harness_ext.stats.sequential.boundaries import Spending, boundaries, exit_probabilities
from harness_ext.stats.sequential.design import LOOKS, Design, TaskDesign, look_sizes, order_units
from harness_ext.stats.sequential.looks import Final, Look, Outcome
from harness_ext.stats.sequential.monitor import Monitor
from harness_ext.stats.sequential.ratio import Share, ShareTest
from harness_ext.stats.sequential.record import Record, sequential_record
from harness_ext.stats.sequential.stagewise import final_result

__all__ = [
    "LOOKS", "Design", "Final", "Look", "Monitor", "Outcome", "Record", "Share", "ShareTest", "Spending", "TaskDesign",
    "boundaries", "exit_probabilities", "final_result", "look_sizes", "order_units", "sequential_record",
]  # fmt: skip
