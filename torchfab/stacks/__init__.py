"""Stacks of the ranks of a job: interpret them, group equal ones, and render them. Pure.

model      Frame, Thread, RankStack, NodeStacks, StackDump
interpret  recognise what a stack waits for
groups     group equal stacks, the odd ones first
refusals   explain why a process has no stack, and how to fix it
report     human-readable text, and JSON
"""
