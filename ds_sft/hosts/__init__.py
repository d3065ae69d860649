"""The hosts of a job: which, what they are like, and a program on each that is watched."""
