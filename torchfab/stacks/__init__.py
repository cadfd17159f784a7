"""The stacks of a job's ranks: what they mean, which are alike, and the page that says it. Pure.

values    Frame, Thread, RankStack, Dump
interpret what a stack waits for, in words
groups    equal stacks together, the odd ones first
refusals  why there is no stack, and what to do about it
page      for people, and for machines
"""
