"""What everything else stands on: task, data, loss, counters, intervals, errors. Imports torch and nothing above."""
