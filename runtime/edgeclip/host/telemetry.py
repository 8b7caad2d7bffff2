"""Switch off onnxruntime's telemetry, before onnxruntime is imported.

From 1.31 on, official builds of onnxruntime look up a host of Microsoft's, send events to it and keep a device id in
the cache folder, from any process that imports them. "Disabling Telemetry" in the wheel's Privacy.md documents the
variable that prevents all of it; it is read once, when onnxruntime's library is loaded. So `edgeclip/__init__.py`
calls this first: every module of this project's packages that imports onnxruntime has run that file before.
"""

import sys
from collections.abc import MutableMapping

VARIABLE = "ORT_DISABLE_TELEMETRY"


def disable_telemetry(environment: MutableMapping[str, str]) -> None:
    """Set ORT_DISABLE_TELEMETRY=1 in `environment` (os.environ) unless the user set it. Child processes inherit it.

    An empty value is none that a user set: `ORT_DISABLE_TELEMETRY: ${X:-}` in a compose file leaves one, and
    onnxruntime sends then (measured with 1.31.1: it takes 1, true, yes and on, in any case, and nothing else).

    An onnxruntime that the process imported earlier has read its environment by then and written its device id: its
    API can only stop it from sending more events, which this does.
    """
    if environment.get(VARIABLE, "").strip():
        return
    environment[VARIABLE] = "1"
    loaded = sys.modules.get("onnxruntime")
    # There is none in a version without telemetry, nor in a folder that is no onnxruntime.
    if stop := getattr(loaded, "disable_telemetry_events", None):
        stop()
