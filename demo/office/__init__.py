"""An office in AgentDojo's framework: eight tools, user tasks of one to four calls, and attackers.

    cb-datasets agentdojo --suite-module demo.office --suite 'office_test_*' --attack lookalike ...

Importing it registers the suites.
"""

from builders.agentdojo.suites import agentdojo_yaml


with agentdojo_yaml():
    from . import suites as suites
