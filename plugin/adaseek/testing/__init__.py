"""What a test needs from AdaSeek: suites, servers, small models and pytest fixtures.

Experimental. Nothing is imported here, so that a test pays only for what it uses:

    conformance     the checks that every adapter passes, to inherit
    coverage        a table of what an adapter covers, every miss with its reason
    loopback        a model server that answers from a function, records and bills
    scripted        a program and an adapter without any model
    landscapes      programs of known truth, to compare search methods on
    models, local_engine, fixtures    small real models, and a real engine that serves them
"""
