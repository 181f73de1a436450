"""What everything else stands on: the task, the data, the loss, counters, intervals and errors. Imports torch and
nothing above.
"""
