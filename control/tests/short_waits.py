"""Hooks of Schemathesis: a long poll within the bounds of the API waits for a moment only.

A wait beyond the bounds stays as it is, since it must be refused.
"""

import schemathesis

LONGEST_MS = 25_000
SHORT_MS = 20


@schemathesis.hook
def before_call(context, case, kwargs):
    wait = (case.query or {}).get("wait_ms")
    if isinstance(wait, int) and SHORT_MS < wait <= LONGEST_MS:
        case.query["wait_ms"] = SHORT_MS
