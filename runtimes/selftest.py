"""The self-test: a session run on the golden feed of its graph, held against the outputs expected of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtimes.bundle import Bundle, Golden
from runtimes.errors import RuntimesError
from runtimes.spec import check_feed

if TYPE_CHECKING:
    from runtimes.session import Session


def self_test(session: Session, bundle: Bundle, golden: Golden) -> None:
    """Run the golden feed of the session's graph.

    Raises:
        RuntimesError: names the output that is not what was expected, or what the golden arrays lack.
    """
    where = f"self-test of {session.target!r} in bundle {bundle.path}"
    feed, expected = bundle.read_arrays(golden.feed), bundle.read_arrays(golden.expected)
    tolerance = golden.tolerance.get(session.target)
    if tolerance is None:
        raise RuntimesError(f"{where}: the manifest gives no tolerance for it; write the bundle again")
    missing = [spec.name for spec in session.inputs if spec.name not in feed]
    missing += [spec.name for spec in session.outputs if spec.name not in expected]
    if missing:
        raise RuntimesError(f"{where}: the golden arrays lack {missing[0]!r}; write the bundle again")
    golden_feed = {spec.name: feed[spec.name] for spec in session.inputs}
    results = session.run_checked(check_feed(session.inputs, golden_feed, source=where))    # whatever the limits
    for name, result in results.items():
        if result.shape != expected[name].shape:
            raise RuntimesError(f"{where}: output {name!r} has shape {result.shape}, expected {expected[name].shape}")
        difference = np.abs(result.astype(np.float64) - expected[name].astype(np.float64)).max(initial=0.0)
        if not difference <= tolerance:  # so that NaN fails
            raise RuntimesError(
                f"{where}: output {name!r} differs from the expected one by {difference:.3g}, allowed {tolerance:.3g}: "
                "this device computes something else; do not use it, and report the backend's version"
            )
