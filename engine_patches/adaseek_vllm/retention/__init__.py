"""Keeps, copies or drops the KV cache of sessions that wait for a tool's answer.

`waste`, `costs`, `durations`, `sessions`, `policies` and `policy` are pure: no vLLM, no clock.
"""
